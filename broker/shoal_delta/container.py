"""The outside of a delta: header and segment table, bytes <-> values.

It checks what can be checked without the old file and without unpacking anything; what stands in a
segment is `segment`'s business. Format: docs/delta-format.md.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import IntEnum

from shoal_delta.errors import CorruptDeltaError, LimitError, UnknownVersionError
from shoal_delta.wire import VARINT_MAX_BYTES, Cursor, varint, zigzag

MAGIC = b"SHD"
VERSION = 2
# Against accidents, not attackers: what a release must be is signed in its manifest, in full.
OLD_DIGEST_BYTES = 8
NEW_DIGEST_BYTES = 16

DEFAULT_MAX_OUTPUT_BYTES = 2 << 30
MAX_TABLE_BYTES = 1 << 20
MAX_SEGMENTS = 1 << 16
MAX_SEGMENT_BYTES = 4 << 20
MAX_GLOBAL_BYTES = 4 << 20
# A delta makes at most this much from its own bytes and from the old file's: far above what an
# encoder reaches (a mebibyte of zeros costs it 30 bytes), far below what a bomb wants.
MAX_EXPANSION = 1 << 16
MAX_GROWTH = 16

_CRC_BYTES = 4
# All that can stand before the table: magic, version, flags, five numbers, two digests.
_FRONT_BYTES = len(MAGIC) + 2 + 5 * VARINT_MAX_BYTES + OLD_DIGEST_BYTES + NEW_DIGEST_BYTES


class Layout(IntEnum):
    """How the body is arranged: the low two bits of the flags."""

    SEGMENTED = 0
    """Segments, each decodable alone from the old file. No body: the new file is the old one."""
    SOLID = 1
    """One run of operations for the whole file, its streams unpacked from front to end."""


_LAYOUT, _TABLE, _GLOBAL = 0x03, 0x04, 0x08


@dataclass(frozen=True, slots=True)
class Segment:
    """`size` bytes of the new file and how to get them.

    Either `copy_from` is an offset in the old file, or `coded_size` bytes of the body stand for it.
    `crc32` is None where this is all of the file: its digest says the same.
    """

    size: int
    crc32: int | None
    coded_size: int = 0
    copy_from: int | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """All that is known before the body is touched. Sizes in bytes; digests: the first of sha256's."""

    layout: Layout
    old_size: int
    new_size: int
    old_digest: bytes
    new_digest: bytes
    global_size: int
    global_coded_size: int
    segments: tuple[Segment, ...]
    body_at: int
    """Where the body begins. Not on the wire."""
    body_size: int
    """What follows the header. Not on the wire: the delta's size says it."""


def encode_header(
    layout: Layout,
    *,
    sizes: tuple[int, int],
    sha256: tuple[bytes, bytes],
    segments: list[Segment],
    global_size: int = 0,
    global_coded_size: int = 0,
) -> bytes:
    """The header as it stands at the front of a delta; `sizes` and `sha256` are (old, new).

    One segment that is not a copy, a copy of the old file's front, or a solid body stand for
    themselves; everything else needs the table.
    """
    has_table = layout is Layout.SEGMENTED and not _is_plain(segments)
    flags = layout | (_TABLE if has_table else 0) | (_GLOBAL if global_size else 0)
    out = bytearray(MAGIC) + bytes([VERSION, flags])
    out += varint(sizes[0]) + varint(zigzag(sizes[1] - sizes[0]))
    out += sha256[0][:OLD_DIGEST_BYTES] + sha256[1][:NEW_DIGEST_BYTES]
    if global_size:
        out += varint(global_size) + varint(global_coded_size)
    if not has_table:
        return bytes(out)
    table, start = bytearray(), 0
    for segment in segments:
        table += varint(segment.size) + varint(segment.coded_size)
        if segment.copy_from is not None:
            table += varint(zigzag(segment.copy_from - start))
        table += (segment.crc32 or 0).to_bytes(_CRC_BYTES, "little")
        start += segment.size
    out += varint(len(table)) + table
    return bytes(out) + zlib.crc32(out).to_bytes(_CRC_BYTES, "little")


def _is_plain(segments: list[Segment]) -> bool:
    return not segments or (len(segments) == 1 and segments[0].copy_from in {None, 0})


def front_size(delta_size: int) -> int:
    """How much of a delta of `delta_size` bytes says how long its header is."""
    return min(_FRONT_BYTES, delta_size)


def header_size(front: bytes) -> int:
    """How many bytes the header takes, from the first `front_size` bytes of a delta."""
    if not front.startswith(MAGIC) or len(front) < len(MAGIC) + 2:
        raise CorruptDeltaError("this is not a delta: it does not begin with SHD")
    if front[len(MAGIC)] != VERSION:
        raise UnknownVersionError(front[len(MAGIC)])
    flags = front[len(MAGIC) + 1]
    cursor = Cursor(front[len(MAGIC) + 2 :])
    cursor.number(), cursor.number(), cursor.take(OLD_DIGEST_BYTES + NEW_DIGEST_BYTES)
    if flags & _GLOBAL:
        cursor.number(), cursor.number()
    size = 0
    if flags & _TABLE:
        size = cursor.number() + _CRC_BYTES
        if size > MAX_TABLE_BYTES:
            raise LimitError(
                f"the delta's table claims {size} bytes; {MAX_TABLE_BYTES} is the limit"
            )
    return len(MAGIC) + 2 + cursor.position + size


def decode_header(
    data: bytes, *, delta_size: int, max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES
) -> Header:
    """The header in `data`, of exactly `header_size` bytes, in a delta of `delta_size` bytes.

    Raises:
        CorruptDeltaError: damaged, or the sizes in it do not add up.
        LimitError: it claims more than the limits allow.
    """
    size = header_size(data)
    if len(data) != size:
        raise CorruptDeltaError("the delta ends in its header")
    cursor = Cursor(data[len(MAGIC) + 1 :])
    flags = cursor.byte()
    layout = _layout(flags)
    old_size = cursor.number()
    new_size = old_size + cursor.signed()
    old_digest, new_digest = cursor.take(OLD_DIGEST_BYTES), cursor.take(NEW_DIGEST_BYTES)
    _check_expansion(old_size, new_size, delta_size, max_output_bytes)
    global_size, global_coded_size = _global(cursor) if flags & _GLOBAL else (0, 0)
    body_size = delta_size - size
    if flags & _TABLE:
        if zlib.crc32(data[:-_CRC_BYTES]) != int.from_bytes(data[-_CRC_BYTES:], "little"):
            raise CorruptDeltaError("the delta's header is damaged: checksum differs")
        cursor.number()
        segments = _table(Cursor(cursor.take(cursor.remaining - _CRC_BYTES)), old_size)
    else:
        segments = _plain(layout, old_size, new_size, body_size - global_coded_size)
    if sum(segment.size for segment in segments) != new_size:
        raise CorruptDeltaError("the segments do not add up to the new file")
    if body_size != global_coded_size + sum(segment.coded_size for segment in segments):
        raise CorruptDeltaError("the delta is truncated, or something follows it")
    return Header(
        layout,
        old_size,
        new_size,
        old_digest,
        new_digest,
        global_size,
        global_coded_size,
        segments,
        size,
        body_size,
    )


def _layout(flags: int) -> Layout:
    if flags & _LAYOUT > Layout.SOLID or flags > _LAYOUT | _TABLE | _GLOBAL:
        raise CorruptDeltaError("the delta's layout is not known")
    layout = Layout(flags & _LAYOUT)
    if layout is Layout.SOLID and flags != layout:
        raise CorruptDeltaError("a solid delta has neither a table nor a global block")
    return layout


def _global(cursor: Cursor) -> tuple[int, int]:
    """The global block's sizes: (unpacked, packed)."""
    size, coded_size = cursor.number(), cursor.number()
    if size > MAX_GLOBAL_BYTES:
        raise LimitError(f"the delta's global block claims {size} bytes")
    if size == 0:
        raise CorruptDeltaError("the delta's global block is empty")
    return size, coded_size


def _plain(layout: Layout, old_size: int, new_size: int, coded_size: int) -> tuple[Segment, ...]:
    """The one segment of a delta without a table."""
    if coded_size < 0:
        raise CorruptDeltaError("the delta is truncated")
    if new_size == 0:
        return ()
    if coded_size == 0:
        if layout is Layout.SOLID or new_size > old_size:
            raise CorruptDeltaError("the delta is truncated")
        return (Segment(new_size, None, copy_from=0),)
    if layout is Layout.SEGMENTED:
        _check_segment(new_size)
    return (Segment(new_size, None, coded_size),)


def _table(cursor: Cursor, old_size: int) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    start = 0
    while cursor.remaining:
        if len(segments) == MAX_SEGMENTS:
            raise LimitError(f"the delta claims more than {MAX_SEGMENTS} segments")
        size, coded_size, copy_from = cursor.number(), cursor.number(), None
        if size == 0:
            raise CorruptDeltaError("a segment is empty")
        if coded_size == 0:
            copy_from = start + cursor.signed()
            if not 0 <= copy_from <= old_size - size:
                raise CorruptDeltaError("a segment copies from outside the old file")
        else:
            _check_segment(size)
        crc32 = int.from_bytes(cursor.take(_CRC_BYTES), "little")
        segments.append(Segment(size, crc32, coded_size, copy_from))
        start += size
    return tuple(segments)


def _check_segment(size: int) -> None:
    if size > MAX_SEGMENT_BYTES:
        raise LimitError(f"a segment claims {size} bytes; {MAX_SEGMENT_BYTES} is the limit")


def _check_expansion(old_size: int, new_size: int, delta_size: int, max_output_bytes: int) -> None:
    if new_size < 0:
        raise CorruptDeltaError("the delta makes a file of less than nothing")
    if new_size > max_output_bytes:
        raise LimitError(
            f"the delta makes a file of {new_size} bytes; {max_output_bytes} is the limit here"
        )
    if new_size > MAX_EXPANSION * delta_size + MAX_GROWTH * old_size:
        raise LimitError(f"{delta_size} bytes of delta cannot honestly make {new_size} bytes")
