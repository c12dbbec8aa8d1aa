"""One segment: operations and streams -> its stretch of the new file, and back.

A segment needs the old file, the global block and its own bytes, nothing else. The global block is
itself a segment without a global block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial

import numpy as np

from shoal_delta import float_steps, framing, operations
from shoal_delta.arithmetic import (
    MAX_INTEGER_SHIFT,
    Bytes,
    as_bytes,
    differences,
    from_planes,
    planes,
    products,
    rescaled_integers,
    undo_differences,
)
from shoal_delta.coders import Contexts, Reader, Span, pack, unpack
from shoal_delta.contexts import (
    Expected,
    channel_ratios,
    expected,
    expected_floats,
    plane_side,
    predicted,
    residual_contexts,
    steps_contexts,
)
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.operations import GAINED, WIDTH, Kind, Operation
from shoal_delta.wire import Cursor
from shoal_delta.work import Work


class Stream(IntEnum):
    """The streams of a segment, in this order; the operations say which are there."""

    OPERATIONS = 0
    LITERAL = 1
    FRESH = 2
    RESIDUAL = 3
    PLANE0 = 4
    PLANE1 = 5
    PLANE2 = 6
    PLANE3 = 7
    STEPS = 8
    BITS = 9
    """Of stepped floats; how many there are, only the steps tell."""


_BYTE_STREAM = {Kind.LITERAL: Stream.LITERAL, Kind.FRESH: Stream.FRESH}
_RESIDUAL = GAINED | {Kind.SUBTRACT, Kind.SCALED_S8, Kind.SCALED_U8}
_FLOATS = frozenset({Kind.FLOAT16, Kind.FLOAT32})
_PLAIN_PLANES = frozenset({Kind.PLANES16, Kind.PLANES32})


def encode(
    plan: list[Operation],
    new: bytes,
    start: int,
    *,
    read: Reader,
    block: bytes = b"",
    dictionary: Sequence[Span] = (),
    is_quick: bool = False,
    prime: Sequence[Span] = (),
    is_slow_allowed: bool = True,
) -> bytes:
    """The segment that makes `new` (of the file's offset `start`) by `plan`.

    The global block's own segment is made with the whole `block`.

    `is_quick` packs for an estimate: the same streams, not the smallest. `is_slow_allowed` as in
    `coders.pack`.
    """
    streams: list[list[bytes]] = [[] for _ in Stream]
    streams[Stream.OPERATIONS].append(operations.encode(plan, start))
    position = 0
    for operation in plan:
        piece = new[position : position + operation.size]
        for stream, data in demands(operation, piece, read, block):
            streams[stream].append(data)
        position += operation.size
    raw = {
        stream: joined
        for stream, pieces in zip(Stream, streams, strict=True)
        if (joined := b"".join(pieces))
    }
    known = Known(plan, read, block, {stream: as_bytes(data) for stream, data in raw.items()})
    packed = []
    for stream, data in raw.items():
        has_contexts = stream >= Stream.FRESH and stream is not Stream.BITS
        packed.append(
            pack(
                data,
                dictionary=dictionary if stream is Stream.LITERAL else (),
                read=read,
                contexts=known.contexts(stream) if has_contexts else None,
                # Bits are as good as random: not worth more than a look.
                is_quick=is_quick or stream is Stream.BITS,
                prime=prime if stream is Stream.LITERAL else (),
                is_slow_allowed=is_slow_allowed,
            )
        )
    bits_size = len(raw.get(Stream.BITS, b"")) if Stream.STEPS in raw else None
    return framing.joined(len(raw[Stream.OPERATIONS]), packed, bits_size)


def demands(
    operation: Operation, piece: bytes, read: Reader, block: bytes
) -> list[tuple[Stream, bytes]]:
    """What `operation` must find in the streams to make `piece`."""
    kind = operation.kind
    match kind:
        case Kind.COPY | Kind.GLOBAL | Kind.PRODUCT:
            return []
        case Kind.LITERAL | Kind.FRESH:
            return [(_BYTE_STREAM[kind], piece)]
        case _ if kind in _RESIDUAL:
            residual = as_bytes(piece) - predicted(operation, read, block)[0]
            return [(Stream.RESIDUAL, residual.tobytes())]
        case Kind.STEPPED32:
            new = np.frombuffer(piece, dtype="<u4")
            steps, bits = float_steps.encode(
                expected_floats(operation, read, block), new, operation.cell
            )
            return [(Stream.STEPS, steps.tobytes()), (Stream.BITS, bits)]
        case _:
            parts = (
                planes(piece, WIDTH[kind])
                if kind in _PLAIN_PLANES
                else differences(
                    _base(operation, read, block),
                    piece,
                    WIDTH[kind],
                    is_float=kind in _FLOATS,
                )
            )
            return [(Stream(Stream.PLANE0 + k), part.tobytes()) for k, part in enumerate(parts)]


def decode(
    data: bytes,
    start: int,
    size: int,
    *,
    read: Reader,
    old_size: int,
    block: bytes = b"",
    is_global: bool = False,
) -> bytes:
    """The `size` bytes of the new file at `start`, or with `is_global` the global block.

    Raises:
        CorruptDeltaError: `data` is not a segment of that size.
    """
    plan, packed = opened(data, start, size, old_size, None if is_global else len(block))
    known = Known(plan, read, block)
    known.unpack(packed)
    taken = dict.fromkeys(Stream, 0)

    def take(stream: Stream, count: int) -> Bytes:
        at = taken[stream]
        taken[stream] = at + count
        return known.streams[stream][at : at + count]

    pieces: list[bytes] = []
    # What the global block's own operations find in it.
    so_far = bytearray()
    bits = known.streams.get(Stream.BITS, as_bytes(b""))
    for index, operation in enumerate(plan):
        parts = [take(stream, count) for stream, count in streams_of(operation).items()]
        if operation.kind in _RESIDUAL:
            pieces.append((known.expected(index).weights + parts[0]).tobytes())
        elif operation.kind is Kind.STEPPED32:
            numbers = expected_floats(operation, read, block)
            numbers, used = float_steps.decode(numbers, parts[0], bits, operation.cell)
            pieces.append(numbers.tobytes())
            bits = bits[used:]
        else:
            pieces.append(_made(operation, parts, read, so_far if is_global else block))
        if is_global:
            so_far += pieces[-1]
    if bits.size:
        raise CorruptDeltaError("a segment has more bits of numbers than its numbers need")
    return b"".join(pieces)


@dataclass(slots=True)
class Known:
    """A segment's streams as far as they are unpacked, and what they tell of the others."""

    plan: Sequence[Operation]
    read: Reader
    block: bytes
    streams: dict[Stream, Bytes] = field(default_factory=dict)
    _expected: dict[int, Expected] = field(default_factory=dict)

    def expected(self, index: int) -> Expected:
        """`contexts.expected` of an operation, made once."""
        if index not in self._expected:
            self._expected[index] = expected(self.plan[index], self.read, self.block)
        return self._expected[index]

    def unpack(self, packed: Mapping[Stream, tuple[int, bytes]]) -> None:
        """Unpack all of them. High planes first: they are the context of the lower ones."""
        for stream in sorted(packed, reverse=True):
            size, content = packed[stream]
            known = partial(self.contexts, stream)
            self.streams[stream] = as_bytes(unpack(content, size, self.read, known))

    def contexts(self, stream: Stream) -> Contexts:
        """What is known of `stream`, when it holds numbers, from the old file and higher planes."""
        match stream:
            case Stream.OPERATIONS | Stream.LITERAL | Stream.BITS:
                raise CorruptDeltaError("a stream has no contexts")
            case Stream.FRESH:
                return Contexts(None, is_signed=True)
            case Stream.RESIDUAL:
                taking = self._taking(stream)
                known = [self.expected(index) for index in taking]
                return residual_contexts([self.plan[index] for index in taking], known)
            case Stream.STEPS:
                taking = self._taking(stream)
                return steps_contexts([self.plan[index] for index in taking], self.block)
        return Contexts(self._plane_side(stream), is_signed=False)

    def _taking(self, stream: Stream) -> list[int]:
        return [i for i, operation in enumerate(self.plan) if stream in streams_of(operation)]

    def _plane_side(self, stream: Stream) -> Bytes:
        taken = dict.fromkeys(Stream, 0)
        parts = []
        for operation in self.plan:
            counts = streams_of(operation)
            if stream in counts:
                higher = [
                    self.streams[above][taken[above] : taken[above] + count]
                    for above, count in counts.items()
                    if above > stream
                ]
                parts.append(plane_side(operation, stream - Stream.PLANE0, higher, self.read))
            for each, count in counts.items():
                taken[each] += count
        return np.concatenate(parts)


def opened(
    data: bytes,
    start: int,
    size: int,
    old_size: int,
    block_size: int | None,
    work: Work | None = None,
) -> tuple[list[Operation], dict[Stream, tuple[int, bytes]]]:
    """A segment's operations, and its other streams still packed: (size unpacked, packed bytes).

    Every size is checked against what the operations need, before anything is unpacked to it. To
    `work` is added what it takes to unpack the operations, before that is done.
    """
    cursor = Cursor(data)
    raw_size, content = framing.operations_in(cursor, operations.MAX_OPERATIONS_BYTES)
    if work is not None:
        work.add_segment()
        work.add_stream(content, raw_size, (), _no_old_file)
    raw = unpack(content, raw_size, _no_old_file)
    plan = operations.decode(raw, start, size, old_size, block_size)
    wanted: dict[Stream, int] = {}
    for operation in plan:
        for stream, count in streams_of(operation).items():
            wanted[stream] = wanted.get(stream, 0) + count
    # How many bits stepped floats need, only their steps tell.
    if Stream.STEPS in wanted and (bits_size := cursor.number()):
        if bits_size > float_steps.MAX_BITS // 8 * wanted[Stream.STEPS]:
            raise CorruptDeltaError("the streams are not what the operations need")
        wanted[Stream.BITS] = bits_size
    streams = sorted(wanted)
    contents = framing.streams_in(cursor, [wanted[stream] for stream in streams])
    return plan, {
        stream: (wanted[stream], content) for stream, content in zip(streams, contents, strict=True)
    }


def streams_of(operation: Operation) -> dict[Stream, int]:
    """How many bytes of which streams an operation takes."""
    kind = operation.kind
    return dict.fromkeys(_STREAMS_OF[kind], operation.size // WIDTH.get(kind, 1))


def _streams_of(kind: Kind) -> tuple[Stream, ...]:
    if kind in {Kind.COPY, Kind.GLOBAL, Kind.PRODUCT}:
        return ()
    if kind is Kind.STEPPED32:
        return (Stream.STEPS,)
    if (width := WIDTH.get(kind)) is not None:
        return tuple(Stream(Stream.PLANE0 + k) for k in range(width))
    return (_BYTE_STREAM.get(kind, Stream.RESIDUAL),)


_STREAMS_OF = {kind: _streams_of(kind) for kind in Kind}


def _made(
    operation: Operation, parts: list[Bytes], read: Reader, block: bytes | bytearray
) -> bytes:
    source, end = operation.source, operation.source + operation.size
    match operation.kind:
        case Kind.COPY:
            return read(source, operation.size)
        case Kind.GLOBAL:
            return bytes(block[source:end])
        case Kind.PRODUCT:
            factor = bytes(block[operation.factor : operation.factor + 4])
            return products(bytes(block[source:end]), factor)
        case Kind.LITERAL | Kind.FRESH:
            return parts[0].tobytes()
        case Kind.PLANES16 | Kind.PLANES32:
            return from_planes(np.stack(parts))
        case Kind.INTEGER16 | Kind.INTEGER32 | Kind.FLOAT16 | Kind.FLOAT32 | Kind.SCALED_I32:
            old = _base(operation, read, block)
            return undo_differences(old, np.stack(parts), is_float=operation.kind in _FLOATS)
    raise AssertionError("made where what is known of it is")


def _base(operation: Operation, read: Reader, block: bytes | bytearray) -> bytes:
    """What wider elements are the difference to."""
    old, scaling = read(operation.source, operation.size), operation.scaling
    if scaling is None:
        return old
    elements = operation.size // WIDTH[operation.kind]
    ratios, first = channel_ratios(scaling, elements, read, block, MAX_INTEGER_SHIFT)
    return rescaled_integers(old, ratios, first, scaling.inner)


def _no_old_file(_offset: int, _size: int) -> bytes:
    raise CorruptDeltaError("a stream that must stand alone asks for the old file")
