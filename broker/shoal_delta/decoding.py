"""Header + body + old file -> the new file's segments, one after the other.

Files are two `Reader`s; what becomes of the chunks is the caller's business (`apply`).
"""

from __future__ import annotations

from collections.abc import Iterator

from shoal_delta import segment, solid, views
from shoal_delta.coders import Reader
from shoal_delta.container import (
    Header,
    Layout,
    Segment,
    decode_header,
    front_size,
    header_size,
)
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.views import Views
from shoal_delta.wire import Cursor
from shoal_delta.work import Work

_CHUNK_BYTES = 1 << 20

Decoded = Iterator[tuple[Segment, Iterator[bytes]]]
"""Each segment with its content in chunks, in output order."""


def reader_of(data: bytes) -> Reader:
    """Bounds-checked reads of bytes in memory."""

    def read(offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > len(data):
            raise CorruptDeltaError("the delta reads outside a file")
        return data[offset : offset + size]

    return read


def read_header(delta: Reader, delta_size: int, max_output_bytes: int) -> Header:
    """The header of a delta of `delta_size` bytes, with every limit checked."""
    front = delta(0, front_size(delta_size))
    front = delta(0, min(header_size(front), delta_size))
    return decode_header(front, delta_size=delta_size, max_output_bytes=max_output_bytes)


def check_work(header: Header, delta: Reader, old: Reader) -> int:
    """How much work it is to apply the delta, in units of `work`. A solid one has no limit but its size.

    Raises:
        LimitError: it is too much. Nothing was unpacked but operations and entropy coders' models.
        CorruptDeltaError: a segment is damaged.
    """
    work = Work(header.new_size)
    if header.layout is Layout.SOLID:
        return work.units
    seen, block = global_segment(header, delta)
    base = seen.reader(old)

    def add(coded: bytes, start: int, size: int, block_size: int | None) -> None:
        plan, packed = segment.opened(coded, start, size, seen.end, block_size, work)
        work.add_operations(plan, header.old_size)
        needs = [segment.streams_of(operation) for operation in plan]
        for stream, (stream_size, content) in packed.items():
            taken = [need[stream] for need in needs if stream in need]
            work.add_stream(content, stream_size, taken, base)

    if header.global_size:
        add(block, 0, header.global_size, None)
    coded_at, start = header.body_at + header.global_coded_size, 0
    for entry in header.segments:
        if entry.copy_from is None:
            add(delta(coded_at, entry.coded_size), start, entry.size, header.global_size)
        coded_at += entry.coded_size
        start += entry.size
    return work.units


def decode_body(header: Header, delta: Reader, old: Reader, *, skip: int = 0) -> Decoded:
    """The segments after the first `skip`. Raises `CorruptDeltaError` as it goes."""
    if header.layout is Layout.SOLID:
        return _solid(header, delta, old)
    return _segmented(header, delta, old, skip)


def global_segment(header: Header, delta: Reader) -> tuple[Views, bytes]:
    """The views, and the segment that makes the global block (empty when there is none)."""
    if header.global_size == 0:
        return Views((), header.old_size), b""
    cursor = Cursor(delta(header.body_at, header.global_coded_size))
    seen = views.decode(cursor, header.old_size)
    return seen, cursor.take(cursor.remaining)


def decode_global_block(header: Header, delta: Reader, old: Reader) -> tuple[bytes, Views]:
    """The global block, unpacked (empty when there is none), and the views in front of it."""
    seen, coded = global_segment(header, delta)
    if header.global_size == 0:
        return b"", seen
    block = segment.decode(
        coded,
        0,
        header.global_size,
        read=seen.reader(old),
        old_size=seen.end,
        is_global=True,
    )
    return block, seen


def _segmented(header: Header, delta: Reader, old: Reader, skip: int) -> Decoded:
    block, seen = decode_global_block(header, delta, old)
    base = seen.reader(old)
    coded_at, start = header.body_at + header.global_coded_size, 0
    for index, entry in enumerate(header.segments):
        if index >= skip and entry.copy_from is not None:
            yield entry, _copied(entry.copy_from, entry.size, old)
        elif index >= skip:
            coded = delta(coded_at, entry.coded_size)
            yield entry, _decoded(coded, start, entry.size, base, seen.end, block)
        coded_at += entry.coded_size
        start += entry.size


def _decoded(
    coded: bytes, start: int, size: int, read: Reader, old_size: int, block: bytes
) -> Iterator[bytes]:
    # In a generator of its own, so that nothing holds the segment while the next one is made.
    yield segment.decode(coded, start, size, read=read, old_size=old_size, block=block)


def _copied(source: int, size: int, old: Reader) -> Iterator[bytes]:
    for offset in range(0, size, _CHUNK_BYTES):
        yield old(source + offset, min(_CHUNK_BYTES, size - offset))


def _solid(header: Header, delta: Reader, old: Reader) -> Decoded:
    body = (header.body_at, header.body_size)
    for entry in header.segments:
        yield entry, solid.decode(delta, body, old, header.old_size, header.new_size)
