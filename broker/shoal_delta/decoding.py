"""Header + body + old file -> the new file's segments, one after the other.

Files are two `Reader`s; what becomes of the chunks is the caller's business (`apply`).
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import zstandard

from shoal_delta import segment
from shoal_delta.coders import LZMA_PADDING, Reader, lzma_filters, zstd_decompressor
from shoal_delta.container import PREAMBLE, Header, Layout, Segment, decode_header, header_size
from shoal_delta.errors import CorruptDeltaError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK_BYTES = 1 << 20
_READ_BYTES = 1 << 16

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
    preamble = delta(0, min(PREAMBLE.size, delta_size))
    front = delta(0, min(header_size(preamble), delta_size))
    return decode_header(front, delta_size=delta_size, max_output_bytes=max_output_bytes)


def decode_body(header: Header, delta: Reader, old: Reader, *, skip: int = 0) -> Decoded:
    """The segments after the first `skip`. Raises `CorruptDeltaError` as it goes."""
    if header.layout is Layout.SEGMENTED:
        return _segmented(header, delta, old, skip)
    return _solid(header, delta, skip)


def decode_global_block(header: Header, delta: Reader, old: Reader) -> bytes:
    """The global block, unpacked; empty when there is none."""
    if header.global_size == 0:
        return b""
    return segment.decode(
        delta(header.body_at, header.global_coded_size),
        0,
        header.global_size,
        read=old,
        old_size=header.old_size,
    )


def _segmented(header: Header, delta: Reader, old: Reader, skip: int) -> Decoded:
    block = decode_global_block(header, delta, old)
    coded_at, start = header.body_at + header.global_coded_size, 0
    for index, entry in enumerate(header.segments):
        if index >= skip and entry.copy_from is not None:
            yield entry, _copied(entry.copy_from, entry.size, old)
        elif index >= skip:
            content = segment.decode(
                delta(coded_at, entry.coded_size),
                start,
                entry.size,
                read=old,
                old_size=header.old_size,
                block=block,
            )
            yield entry, iter((content,))
        coded_at += entry.coded_size
        start += entry.size


def _copied(source: int, size: int, old: Reader) -> Iterator[bytes]:
    for offset in range(0, size, _CHUNK_BYTES):
        yield old(source + offset, min(_CHUNK_BYTES, size - offset))


def _solid(header: Header, delta: Reader, skip: int) -> Decoded:
    body = _Body(header, delta)
    take = _lzma_stream(header, body) if header.layout is Layout.SOLID_LZMA else _zstd_stream(body)
    for index, entry in enumerate(header.segments):
        try:
            content = take(entry.size)
        except (lzma.LZMAError, EOFError, zstandard.ZstdError) as exc:
            raise CorruptDeltaError("the delta's stream is damaged") from exc
        if len(content) != entry.size:
            raise CorruptDeltaError("the delta's stream ends too early")
        if index >= skip:
            yield entry, iter((content,))


def _lzma_stream(header: Header, body: _Body) -> Callable[[int], bytes]:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(header.new_size))

    def take(size: int) -> bytes:
        out = bytearray()
        while len(out) < size:
            # Padding at the very end, as in every LZMA stream here; twice means it gives no more.
            data = (body.next(_READ_BYTES) or body.padding()) if decoder.needs_input else b""
            if decoder.needs_input and not data:
                break
            out += decoder.decompress(data, max_length=size - len(out))
        return bytes(out)

    return take


def _zstd_stream(body: _Body) -> Callable[[int], bytes]:
    source = io.BufferedReader(body, _READ_BYTES)
    return zstd_decompressor().stream_reader(source, read_size=_READ_BYTES).read


class _Body(io.RawIOBase):
    """The body of a solid delta, as the file that decompressors read from."""

    def __init__(self, header: Header, delta: Reader) -> None:
        self._delta = delta
        self._position = header.body_at
        self._end = header.body_at + header.body_size
        self._is_padded = False

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

    def padding(self) -> bytes:
        """What stands after an LZMA stream, once."""
        if self._is_padded:
            return b""
        self._is_padded = True
        return LZMA_PADDING
