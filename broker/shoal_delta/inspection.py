"""What a delta says about itself: sizes, digests, segments, and where its bytes went.

It applies nothing. With the old model it can name the tensors and share out every stream.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shoal_delta.arithmetic import Bytes
from shoal_delta.coders import Reader, mode_name
from shoal_delta.container import DEFAULT_MAX_OUTPUT_BYTES, VERSION, Header, Layout, Segment
from shoal_delta.decoding import (
    check_work,
    decode_global_block,
    global_segment,
    read_header,
    reader_of,
)
from shoal_delta.errors import WrongBaseError
from shoal_delta.onnx_wire import Tensor, walk
from shoal_delta.operations import FROM_OLD, WIDTH, Kind, Operation
from shoal_delta.segment import Known, Stream, opened, streams_of
from shoal_delta.solid import opened as opened_solid
from shoal_delta.views import Views
from shoal_delta.work import Work


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """One packed stream of a segment; sizes in bytes."""

    stream: str
    mode: str
    size: int
    coded_size: int


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One segment: `size` bytes of the new file at `offset`. A copy segment has no streams."""

    offset: int
    size: int
    coded_size: int
    streams: tuple[StreamInfo, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Stretches of the new file that are built alike: a tensor, or what stands between tensors.

    `name` is "" for what is not a tensor of the old model (or when no old model was given).
    `coded_size` is this stretch's share of the streams it is packed in, by its information.
    """

    name: str
    modes: tuple[str, ...]
    size: int
    coded_size: float


@dataclass(frozen=True, slots=True)
class Info:
    """Everything about a delta; sizes in bytes.

    Digests are the first bytes of sha256's, in hexadecimal, as many as a delta carries.
    """

    version: int
    layout: str
    size: int
    old_size: int
    new_size: int
    old_digest: str
    new_digest: str
    header_size: int
    global_size: int
    global_coded_size: int
    segments: tuple[SegmentInfo, ...]
    tensors: tuple[TensorInfo, ...]


def inspect(
    delta: bytes, old: bytes | None = None, *, max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES
) -> Info:
    """What `delta` holds; with the `old` file also which tensors.

    Raises:
        DeltaError: as `apply` would for a damaged header, operations or stream sizes; content is not
            checked.
    """
    read = reader_of(delta)
    header = read_header(read, len(delta), max_output_bytes)
    if old is not None and not hashlib.sha256(old).digest().startswith(header.old_digest):
        raise WrongBaseError("the old file is not the one this delta was made from")
    if old is not None:
        check_work(header, read, reader_of(old))
    model = walk(old) if old is not None else None
    seen, coded = global_segment(header, read)
    shares = _Shares(
        model.tensors if model is not None else (),
        seen,
        seen.reader(reader_of(old)) if old is not None else None,
        decode_global_block(header, read, reader_of(old))[0] if old is not None else b"",
        Work(header.new_size),
    )
    at = header.body_at
    if header.global_size:
        shares.segment(
            coded, 0, Segment(header.global_size, None, len(coded)), None, is_global=True
        )
        at += header.global_coded_size
    segments, start = [], 0
    for entry in header.segments:
        streams: tuple[StreamInfo, ...] = ()
        if entry.copy_from is not None:
            shares.add(Operation(Kind.COPY, entry.size, entry.copy_from), 0.0)
        elif header.layout is Layout.SOLID:
            streams = shares.solid(read, header)
        else:
            body = read(at, entry.coded_size)
            streams = shares.segment(body, start, entry, header.global_size)
        segments.append(SegmentInfo(start, entry.size, entry.coded_size, streams))
        at += entry.coded_size
        start += entry.size
    return Info(
        version=VERSION,
        layout=header.layout.name.lower().replace("_", "-"),
        size=len(delta),
        old_size=header.old_size,
        new_size=header.new_size,
        old_digest=header.old_digest.hex(),
        new_digest=header.new_digest.hex(),
        header_size=header.body_at,
        global_size=header.global_size,
        global_coded_size=header.global_coded_size,
        segments=tuple(segments),
        tensors=shares.tensors(),
    )


@dataclass(slots=True)
class _Shares:
    """Adds up, by tensor, what operations make and what they cost."""

    old_tensors: Sequence[Tensor]
    views: Views
    read_old: Reader | None
    block: bytes
    work: Work
    """Without the old file it is not known before."""
    _modes: dict[str, list[str]] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    _coded: dict[str, float] = field(default_factory=dict)

    def add(self, operation: Operation, coded_size: float, *, is_global: bool = False) -> None:
        mode = operation.kind.name.lower().replace("_", "-")
        for name, size in self._parts(operation):
            modes = self._modes.setdefault(name, [])
            if mode not in modes and not is_global:
                modes.append(mode)
            self._sizes[name] = self._sizes.get(name, 0) + (0 if is_global else size)
            share = coded_size * size / operation.size
            self._coded[name] = self._coded.get(name, 0.0) + share

    def segment(
        self,
        data: bytes,
        start: int,
        entry: Segment,
        global_size: int | None,
        *,
        is_global: bool = False,
    ) -> tuple[StreamInfo, ...]:
        plan, packed = opened(data, start, entry.size, self.views.end, global_size, self.work)
        if self.read_old is None:
            self.work.add_operations(plan, self.views.old_size)
        left = len(data) - sum(len(content) for _, content in packed.values())
        costs = [left / len(plan)] * len(plan)
        taken = dict.fromkeys(Stream, 0)
        bits = {stream: np.ones(size) for stream, (size, _) in packed.items()}
        # Without the old file not every stream can be unpacked: each byte then counts the same.
        if self.read_old is not None:
            known = Known(plan, self.read_old, b"" if is_global else self.block)
            known.unpack(packed)
            bits = {stream: _bits(raw) for stream, raw in known.streams.items()}
        for index, operation in enumerate(plan):
            for stream, count in streams_of(operation).items():
                at = taken[stream]
                taken[stream] = at + count
                whole = bits[stream].sum()
                share = bits[stream][at : at + count].sum() / whole
                costs[index] += len(packed[stream][1]) * float(share)
            if Stream.STEPS in streams_of(operation) and Stream.BITS in packed:
                # How many bits each number takes, only the steps tell: all count the same.
                stepped = packed[Stream.STEPS][0] * WIDTH[operation.kind]
                costs[index] += len(packed[Stream.BITS][1]) * operation.size / stepped
        for operation, cost in zip(plan, costs, strict=True):
            self.add(operation, cost, is_global=is_global)
        return tuple(
            StreamInfo(stream.name.lower(), mode_name(content[0]), size, len(content))
            for stream, (size, content) in packed.items()
        )

    def solid(self, read: Reader, header: Header) -> tuple[StreamInfo, ...]:
        body = (header.body_at, header.body_size)
        found = opened_solid(read, body, header.old_size, header.new_size)
        front = found.coded_size / len(found.plan)
        for operation in found.plan:
            cost = front
            if operation.kind in found.parts:
                share = operation.size / found.sizes[operation.kind]
                cost += found.parts[operation.kind][1] * share
            self.add(operation, cost)
        names = {Kind.LITERAL: "literal", Kind.SUBTRACT: "residual"}
        return tuple(
            StreamInfo(names[kind], mode_name(read(at, 1)[0]), found.sizes[kind], size)
            for kind, (at, size) in found.parts.items()
        )

    def tensors(self) -> tuple[TensorInfo, ...]:
        return tuple(
            TensorInfo(name, tuple(modes), self._sizes[name], round(self._coded[name], 1))
            for name, modes in self._modes.items()
        )

    def _parts(self, operation: Operation) -> list[tuple[str, int]]:
        """The old tensors an operation reads, and how much of each: [(name, bytes)]."""
        if operation.kind not in FROM_OLD:
            return [("", operation.size)]
        start, end = operation.source, operation.source + operation.size
        shown = self.views.origin(start)
        if shown != start:
            names = [tensor.name for tensor in self.old_tensors if tensor.offset == shown]
            return [(names[0] if names else "", operation.size)]
        first = bisect_right(self.old_tensors, start, key=lambda t: t.offset + t.size)
        parts, named = [], 0
        for tensor in self.old_tensors[first:]:
            if tensor.offset >= end:
                break
            size = min(end, tensor.offset + tensor.size) - max(start, tensor.offset)
            parts.append((tensor.name, size))
            named += size
        return [*parts, ("", operation.size - named)] if named < operation.size else parts


def _bits(raw: Bytes) -> npt.NDArray[np.float64]:
    """About how many bits each byte of a stream takes, by how often it is there."""
    counts = np.bincount(raw, minlength=256)
    return np.log2((raw.size + 1) / np.maximum(counts, 1))[raw]
