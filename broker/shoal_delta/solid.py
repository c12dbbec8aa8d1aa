"""The solid layout: one run of operations for the whole file, its streams unpacked as they are needed.

For files in which everything hangs together. It is read from its beginning, so nothing of it is
resumed or decoded in parallel; memory is the two dictionaries and a chunk.
"""

from __future__ import annotations

import bz2
import io
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import zstandard

from shoal_delta import operations
from shoal_delta.arithmetic import as_bytes
from shoal_delta.byte_coders import (
    BZIP2_START,
    LZMA_PADDING,
    PROPERTIES,
    bzip2_pack,
    lzma_filters,
    zstd_compress,
    zstd_decompressor,
)
from shoal_delta.coders import Mode, Reader, pack, unpack
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.operations import Kind, Operation
from shoal_delta.wire import VARINT_MAX_BYTES, Cursor, varint

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

KINDS = frozenset({Kind.COPY, Kind.LITERAL, Kind.SUBTRACT})
_CHUNK_BYTES = 1 << 20
_READ_BYTES = 1 << 16
# Of `PROPERTIES`, what suits residuals.
_RESIDUAL_LZMA = 3

Take = Callable[[int], bytes]
"""The next bytes of a stream: as many as are asked for, fewer at its end."""


def encode(plan: Sequence[Operation], new: bytes, read: Reader) -> bytes:
    """The body that makes `new` by `plan`, which holds `KINDS` only."""
    literals, residuals = bytearray(), bytearray()
    position = 0
    for operation in plan:
        piece = new[position : position + operation.size]
        position += operation.size
        if operation.kind is Kind.LITERAL:
            literals += piece
        elif operation.kind is Kind.SUBTRACT:
            old = as_bytes(read(operation.source, operation.size))
            residuals += (as_bytes(piece) - old).tobytes()
    raw = operations.encode(list(plan), 0)
    out = _sized(varint(len(raw)) + pack(raw))
    streams = [
        _packed(bytes(stream), is_residual=stream is residuals)
        for stream in (literals, residuals)
        if stream
    ]
    return out + b"".join([_sized(stream) for stream in streams[:-1]] + streams[-1:])


@dataclass(frozen=True, slots=True)
class Opened:
    """A solid body: its operations, their size in the delta, and where its streams stand.

    `parts` are (offset in the delta, size) of the literals and the residuals, as far as there are any;
    `sizes` what they unpack to.
    """

    plan: Sequence[Operation]
    coded_size: int
    parts: Mapping[Kind, tuple[int, int]]
    sizes: Mapping[Kind, int]


def opened(delta: Reader, body: tuple[int, int], old_size: int, new_size: int) -> Opened:
    """What the body (offset, size) holds; nothing but its operations is unpacked.

    Raises:
        CorruptDeltaError: it is damaged.
    """
    at, end = body[0], sum(body)
    raw, at = _part(delta, at, end)
    cursor = Cursor(delta(*raw))
    size = cursor.number()
    if not 1 <= size <= operations.MAX_OPERATIONS_BYTES:
        raise CorruptDeltaError("a solid delta's operations are not possible")
    coded = unpack(cursor.take(cursor.remaining), size, _no_old_file)
    plan = operations.decode(coded, 0, new_size, old_size, 0)
    if not KINDS.issuperset(operation.kind for operation in plan):
        raise CorruptDeltaError("a solid delta holds an operation that needs a segment")
    sizes = {
        kind: total
        for kind in (Kind.LITERAL, Kind.SUBTRACT)
        if (total := sum(operation.size for operation in plan if operation.kind is kind))
    }
    parts: dict[Kind, tuple[int, int]] = {}
    for kind in sizes:
        is_last = len(parts) == len(sizes) - 1
        parts[kind], at = ((at, end - at), end) if is_last else _part(delta, at, end)
    if at != end:
        raise CorruptDeltaError("something follows a solid delta's streams")
    return Opened(plan, sum(raw) - body[0], parts, sizes)


def decode(
    delta: Reader, body: tuple[int, int], old: Reader, old_size: int, new_size: int
) -> Iterator[bytes]:
    """The new file in chunks. Raises `CorruptDeltaError` as it goes."""
    found = opened(delta, body, old_size, new_size)
    takes = {kind: _stream(delta, part, found.sizes[kind]) for kind, part in found.parts.items()}
    return _made(found.plan, takes, old)


def _made(plan: Sequence[Operation], takes: dict[Kind, Take], old: Reader) -> Iterator[bytes]:
    for operation in plan:
        for done in range(0, operation.size, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, operation.size - done)
            if operation.kind is Kind.COPY:
                yield old(operation.source + done, size)
                continue
            piece = _taken(takes[operation.kind], size)
            if operation.kind is Kind.SUBTRACT:
                before = as_bytes(old(operation.source + done, size))
                piece = (before + as_bytes(piece)).tobytes()
            yield piece


def _taken(take: Take, size: int) -> bytes:
    try:
        piece = take(size)
    except (lzma.LZMAError, EOFError, OSError, zstandard.ZstdError) as exc:
        raise CorruptDeltaError("a solid delta's stream is damaged") from exc
    if len(piece) != size:
        raise CorruptDeltaError("a solid delta's stream ends too early")
    return piece


def _packed(raw: bytes, *, is_residual: bool) -> bytes:
    """The smallest way to say a stream: mode byte and packed bytes. Ties: the lower mode."""
    index = _RESIDUAL_LZMA if is_residual else 0
    filters = lzma_filters(len(raw), PROPERTIES[index])
    packed = lzma.compress(raw, format=lzma.FORMAT_RAW, filters=filters)
    ways = [
        bytes([Mode.RAW]) + raw,
        bytes([Mode.ZSTD]) + zstd_compress(raw),
        bytes([Mode.LZMA + index]) + packed,
    ]
    if is_residual:
        ways.append(bytes([Mode.BZIP2]) + bzip2_pack(raw))
    return min(ways, key=len)


def _sized(part: bytes) -> bytes:
    return varint(len(part)) + part


def _part(delta: Reader, at: int, end: int) -> tuple[tuple[int, int], int]:
    """A part that says its size: its (offset, size), and where the next one begins."""
    cursor = Cursor(delta(at, min(VARINT_MAX_BYTES, end - at)))
    size = cursor.number()
    at += cursor.position
    if size > end - at:
        raise CorruptDeltaError("the delta is truncated")
    return (at, size), at + size


def _stream(delta: Reader, part: tuple[int, int], size: int) -> Take:
    source = _Part(delta, part)
    first = source.next(1)
    mode = first[0] if first else -1
    if mode == Mode.RAW:
        return source.next
    if mode == Mode.ZSTD:
        buffered = io.BufferedReader(source, _READ_BYTES)
        return zstd_decompressor().stream_reader(buffered, read_size=_READ_BYTES).read
    if mode == Mode.BZIP2:
        return _taker(bz2.BZ2Decompressor(), source, BZIP2_START, b"")
    if Mode.LZMA <= mode < Mode.LZMA + len(PROPERTIES):
        filters = lzma_filters(size, PROPERTIES[mode - Mode.LZMA])
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        return _taker(decoder, source, b"", LZMA_PADDING)
    raise CorruptDeltaError("a solid delta's stream is packed in a mode that is not known")


def _taker(
    decoder: lzma.LZMADecompressor | bz2.BZ2Decompressor, source: _Part, start: bytes, end: bytes
) -> Take:
    """What `decoder` makes of `start`, then `source`, then `end`."""
    parts = chain([start] if start else [], iter(lambda: source.next(_READ_BYTES), b""), [end])

    def take(size: int) -> bytes:
        out = bytearray()
        while len(out) < size:
            data = next(parts, b"") if decoder.needs_input else b""
            if decoder.needs_input and not data:
                break
            out += decoder.decompress(data, max_length=size - len(out))
        return bytes(out)

    return take


class _Part(io.RawIOBase):
    """A part of the delta, as the file that decompressors read from."""

    def __init__(self, delta: Reader, part: tuple[int, int]) -> None:
        self._delta = delta
        self._position = part[0]
        self._end = part[0] + part[1]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self.next(len(view))
        view[: len(data)] = data
        return len(data)

    def next(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        size = min(size, self._end - self._position)
        self._position += size
        return self._delta(self._position - size, size)


def _no_old_file(_offset: int, _size: int) -> bytes:
    raise CorruptDeltaError("a stream that must stand alone asks for the old file")
