"""How a segment's packed streams follow one another: as few sizes as can be.

A packed stream begins with its mode, which for some modes says how long it is; the last one ends
with the segment. What is in a stream is `coders`' business.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal_delta.coders import Mode
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.wire import Cursor, varint


def joined(operations_size: int, packed: Sequence[bytes], bits_size: int | None = None) -> bytes:
    """The streams of a segment, the operations (of `operations_size` bytes unpacked) first.

    `bits_size` stands behind them: the size unpacked of the one stream that they do not tell.
    """
    out = bytearray()
    for index, stream in enumerate(packed):
        out.append(stream[0])
        if index == 0:
            out += varint(operations_size)
        is_last = 0 < index == len(packed) - 1
        if not is_last and stream[0] not in {Mode.RAW, Mode.RUN}:
            out += varint(len(stream) - 1)
        out += stream[1:]
        if index == 0 and bits_size is not None:
            out += varint(bits_size)
    return bytes(out)


def operations_in(cursor: Cursor, limit: int) -> tuple[int, bytes]:
    """The operations at the front, of at most `limit` bytes: (size unpacked, packed bytes)."""
    mode = cursor.byte()
    size = cursor.number()
    if not 1 <= size <= limit or mode == Mode.ZSTD_DICTIONARY:
        raise CorruptDeltaError("a segment's operations are not possible")
    return size, _content(cursor, mode, size, is_last=False)


def streams_in(cursor: Cursor, sizes: Sequence[int]) -> list[bytes]:
    """The other streams, of `sizes` bytes unpacked; they fill the segment."""
    packed = []
    for index, size in enumerate(sizes):
        mode = cursor.byte()
        packed.append(_content(cursor, mode, size, is_last=index == len(sizes) - 1))
    if cursor.remaining:
        raise CorruptDeltaError("a segment's streams do not fill it")
    return packed


def _content(cursor: Cursor, mode: int, size: int, *, is_last: bool) -> bytes:
    if mode in {Mode.RAW, Mode.RUN}:
        length = size if mode == Mode.RAW else 1
    else:
        length = cursor.remaining if is_last else cursor.number()
        if length == 0:
            raise CorruptDeltaError("a stream is empty")
    return bytes([mode]) + cursor.take(length)
