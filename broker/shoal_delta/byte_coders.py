"""Bytes through zstd, liblzma and bzip2, in the forms that the format has: no mode byte, no headers that tell nothing."""

from __future__ import annotations

import bz2
import lzma

import zstandard

from shoal_delta.errors import CorruptDeltaError

MAX_WINDOW_LOG = 23
# Literal-context, literal-position and position bits. 3/0/2 is xz's own choice and right for
# structure; residuals have no context worth learning, and the fewer bits the faster it adapts.
PROPERTIES: tuple[tuple[int, int, int], ...] = ((3, 0, 2), (0, 0, 0), (0, 2, 2), (1, 0, 0))
# The range decoder reads ahead; what is cut off the end of a stream reads as zeros.
LZMA_PADDING = bytes(32)
BZIP2_START = b"BZh9"
SAMPLE_BYTES = 1 << 16
LEVEL = 19
_MAX_FLUSH_BYTES = 8
_MIN_DICTIONARY_BYTES = 4096


def zstd_compress(raw: bytes, dictionary: bytes = b"", level: int = LEVEL) -> bytes:
    """One zstd frame without magic number, content size, checksum or dictionary id."""
    parameters = _zstd_parameters(level, len(raw), len(dictionary))
    return zstandard.ZstdCompressor(
        compression_params=parameters, dict_data=_dictionary_data(dictionary)
    ).compress(raw)


class ZstdSizes:
    """How long frames with one dictionary are, which is loaded once: about, to compare them.

    `max_bytes` is the longest content there will be.
    """

    def __init__(self, dictionary: bytes, level: int, max_bytes: int) -> None:
        data = _dictionary_data(dictionary)
        parameters = _zstd_parameters(level, max_bytes, len(dictionary))
        if data is not None:
            data.precompute_compress(compression_params=parameters)
        self._compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=data)

    def size(self, raw: bytes) -> int:
        """The frame's length in bytes."""
        return len(self._compressor.compress(raw))


def zstd_decompressor(dictionary: bytes = b"") -> zstandard.ZstdDecompressor:
    """A decompressor for `zstd_compress`'s frames that refuses a window above 8 MiB."""
    return zstandard.ZstdDecompressor(
        dict_data=_dictionary_data(dictionary),
        max_window_size=1 << MAX_WINDOW_LOG,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
    )


def zstd_decompress(packed: bytes, size: int, dictionary: bytes = b"") -> bytes:
    """The frame's content, at most `size` + 1 bytes of it."""
    try:
        with zstd_decompressor(dictionary).stream_reader(packed) as reader:
            return reader.read(size + 1)
    except zstandard.ZstdError as exc:
        raise CorruptDeltaError("a zstd stream is damaged") from exc


def lzma_filters(
    size: int, properties: tuple[int, int, int] = PROPERTIES[0], max_dictionary: int = 64 << 20
) -> list[dict[str, int]]:
    """The filter chain of a raw LZMA1 stream of `size` bytes: the dictionary follows from the size."""
    lc, lp, pb = properties
    dictionary = min(max(_MIN_DICTIONARY_BYTES, 1 << (size - 1).bit_length()), max_dictionary)
    return [
        {
            "id": lzma.FILTER_LZMA1,
            "preset": 9 | lzma.PRESET_EXTREME,
            "dict_size": dictionary,
            "lc": lc,
            "lp": lp,
            "pb": pb,
        }
    ]


def lzma_pack(raw: bytes, properties: tuple[int, int, int]) -> bytes:
    """A raw LZMA1 stream, as short as its decoder allows."""
    packed = lzma.compress(raw, format=lzma.FORMAT_RAW, filters=lzma_filters(len(raw), properties))
    if len(raw) > SAMPLE_BYTES:
        return packed
    # The encoder flushes more bytes than the decoder needs, which reads zeros past the end.
    for cut in range(min(_MAX_FLUSH_BYTES, len(packed) - 1), 0, -1):
        if _gives(packed[:-cut], raw, properties):
            return packed[:-cut]
    return packed


def _gives(packed: bytes, raw: bytes, properties: tuple[int, int, int]) -> bool:
    try:
        return lzma_unpack(packed, len(raw), properties) == raw
    except CorruptDeltaError:
        return False


def lzma_unpack(packed: bytes, size: int, properties: tuple[int, int, int]) -> bytes:
    """At most `size` bytes."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(size, properties))
    try:
        return decoder.decompress(packed + LZMA_PADDING, max_length=size)
    except (lzma.LZMAError, EOFError) as exc:
        raise CorruptDeltaError("an LZMA stream is damaged") from exc


def bzip2_pack(raw: bytes) -> bytes:
    """One bzip2 stream without its first four bytes."""
    return bz2.compress(raw, 9)[len(BZIP2_START) :]


def bzip2_unpack(packed: bytes, size: int) -> bytes:
    """The inverse of `bzip2_pack`: at most `size` + 1 bytes."""
    try:
        return bz2.BZ2Decompressor().decompress(BZIP2_START + packed, max_length=size + 1)
    except OSError as exc:
        raise CorruptDeltaError("a bzip2 stream is damaged") from exc


def _dictionary_data(dictionary: bytes) -> zstandard.ZstdCompressionDict | None:
    if not dictionary:
        return None
    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _zstd_parameters(
    level: int, size: int, dictionary_size: int
) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=size,
        dict_size=dictionary_size,
        window_log=_window_log(size + dictionary_size),
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )


def _window_log(size: int) -> int:
    return min(max(10, size.bit_length()), MAX_WINDOW_LOG)
