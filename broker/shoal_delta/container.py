"""The outside of a delta: header and segment table, bytes <-> values.

It checks what can be checked without the old file and without unpacking anything; what stands in a
segment is `segment`'s business. Format: docs/delta-format.md.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from shoal_delta.errors import CorruptDeltaError, LimitError, UnknownVersionError
from shoal_delta.wire import Cursor, varint, zigzag

MAGIC = b"SHD"
VERSION = 1
PREAMBLE = struct.Struct("<3sBI")
DIGEST_BYTES = 32

DEFAULT_MAX_OUTPUT_BYTES = 2 << 30
MAX_HEADER_BYTES = 1 << 20
MAX_SEGMENTS = 1 << 16
MAX_SEGMENT_BYTES = 4 << 20
MAX_GLOBAL_BYTES = 4 << 20
# A delta makes at most this much from its own bytes and from the old file's: far above what an
# encoder reaches (a mebibyte of zeros costs it 30 bytes), far below what a bomb wants.
MAX_EXPANSION = 1 << 16
MAX_GROWTH = 16


class Layout(IntEnum):
    """How the body is arranged."""

    SEGMENTED = 0
    """Segments, each decodable alone from the old file."""
    SOLID_LZMA = 1
    """One LZMA stream of the whole new file; the old file does not help."""
    SOLID_ZSTD = 2
    """One zstd frame of the whole new file."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One entry of the table: `size` bytes of the new file and how to get them.

    Either `copy_from` is an offset in the old file, or `coded_size` bytes of the body stand for it;
    in a solid layout neither.
    """

    size: int
    crc32: int
    coded_size: int = 0
    copy_from: int | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """All that is known before the body is touched. Sizes in bytes."""

    layout: Layout
    old_size: int
    new_size: int
    old_sha256: bytes
    new_sha256: bytes
    global_size: int
    global_coded_size: int
    segments: tuple[Segment, ...]
    body_at: int
    """Where the body begins. Not on the wire twice: the header's size says it."""
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
    """The header as it stands at the front of a delta; `sizes` and `sha256` are (old, new)."""
    out = bytearray([layout])
    out += varint(sizes[0]) + varint(sizes[1]) + sha256[0] + sha256[1]
    out += varint(global_size)
    if global_size:
        out += varint(global_coded_size)
    out += varint(len(segments))
    start = 0
    for segment in segments:
        out += varint(segment.size)
        if layout is Layout.SEGMENTED:
            out += varint(segment.coded_size)
            if segment.copy_from is not None:
                out += varint(zigzag(segment.copy_from - start))
        out += segment.crc32.to_bytes(4, "little")
        start += segment.size
    front = PREAMBLE.pack(MAGIC, VERSION, PREAMBLE.size + len(out) + 4) + bytes(out)
    return front + zlib.crc32(front).to_bytes(4, "little")


def header_size(preamble: bytes) -> int:
    """How many bytes the header takes, from the first `PREAMBLE.size` bytes of a delta."""
    if len(preamble) < PREAMBLE.size or not preamble.startswith(MAGIC):
        raise CorruptDeltaError("this is not a delta: it does not begin with SHD")
    _, version, size = PREAMBLE.unpack(preamble[: PREAMBLE.size])
    if version != VERSION:
        raise UnknownVersionError(version)
    if size > MAX_HEADER_BYTES:
        raise LimitError(f"the delta's header claims {size} bytes; {MAX_HEADER_BYTES} is the limit")
    if size < PREAMBLE.size + 4:
        raise CorruptDeltaError("the delta's header is too short")
    return int(size)


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
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise CorruptDeltaError("the delta's header is damaged: checksum differs")
    cursor = Cursor(data[PREAMBLE.size : -4])
    try:
        layout = Layout(cursor.byte())
    except ValueError as exc:
        raise CorruptDeltaError("the delta's layout is not known") from exc
    old_size, new_size = cursor.number(), cursor.number()
    old_sha256, new_sha256 = cursor.take(DIGEST_BYTES), cursor.take(DIGEST_BYTES)
    _check_expansion(old_size, new_size, delta_size, max_output_bytes)
    global_size = cursor.number()
    if global_size > MAX_GLOBAL_BYTES:
        raise LimitError(f"the delta's global block claims {global_size} bytes")
    global_coded_size = cursor.number() if global_size else 0
    segments = _segments(cursor, layout, old_size)
    if cursor.remaining:
        raise CorruptDeltaError("something follows the delta's segment table")
    if sum(segment.size for segment in segments) != new_size:
        raise CorruptDeltaError("the segments do not add up to the new file")
    body_size = delta_size - size
    coded = global_coded_size + sum(segment.coded_size for segment in segments)
    solid = layout is not Layout.SEGMENTED
    if (body_size < 1 or global_size != 0) if solid else body_size != coded:
        raise CorruptDeltaError("the delta is truncated, or something follows it")
    return Header(
        layout,
        old_size,
        new_size,
        old_sha256,
        new_sha256,
        global_size,
        global_coded_size,
        segments,
        size,
        body_size,
    )


def _segments(cursor: Cursor, layout: Layout, old_size: int) -> tuple[Segment, ...]:
    count = cursor.number()
    # An entry takes six bytes or more: the table is never allocated larger than what arrived.
    if count > min(MAX_SEGMENTS, cursor.remaining):
        raise LimitError(f"the delta claims {count} segments; {MAX_SEGMENTS} is the limit")
    segments, start = [], 0
    for _ in range(count):
        size, coded_size, copy_from = cursor.number(), 0, None
        if layout is Layout.SEGMENTED:
            coded_size = cursor.number()
            if coded_size == 0:
                copy_from = start + cursor.signed()
                if not 0 <= copy_from <= old_size - size:
                    raise CorruptDeltaError("a segment copies from outside the old file")
        if size == 0:
            raise CorruptDeltaError("a segment is empty")
        if copy_from is None and size > MAX_SEGMENT_BYTES:
            raise LimitError(f"a segment claims {size} bytes; {MAX_SEGMENT_BYTES} is the limit")
        crc32 = int.from_bytes(cursor.take(4), "little")
        segments.append(Segment(size, crc32, coded_size, copy_from))
        start += size
    return tuple(segments)


def _check_expansion(old_size: int, new_size: int, delta_size: int, max_output_bytes: int) -> None:
    if new_size > max_output_bytes:
        raise LimitError(
            f"the delta makes a file of {new_size} bytes; {max_output_bytes} is the limit here"
        )
    if new_size > MAX_EXPANSION * delta_size + MAX_GROWTH * old_size:
        raise LimitError(f"{delta_size} bytes of delta cannot honestly make {new_size} bytes")
