"""Streams of bytes and how they are packed: one mode byte, then what that mode needs.

A coder sees bytes only, and what `ans` may know of them beforehand. A better one is one more mode.
`pack` keeps the smallest; `unpack` never makes more than the size it was told to expect.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import zstandard

from shoal_delta import ans, mixing, row_streams
from shoal_delta.ans_model import log2
from shoal_delta.arithmetic import Bytes, as_bytes
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.wire import Cursor, varint

Reader = Callable[[int, int], bytes]
"""`read(offset, size)` of the old file: exactly `size` bytes, or a `CorruptDeltaError`."""

Span = tuple[int, int]
"""(offset, size) in the old file."""


@dataclass(frozen=True, slots=True)
class Contexts:
    """What is known of numbers before they are unpacked: `sides`, arrays of one byte a number.

    The first, if there is one, is below 32 and is the context of mode 8; no coder uses more.
    `is_signed`: they are small near 0 and 255, not only near 0.

    Only the row coder (mode 9) uses what follows, and only of streams that have `matrices`: for each
    the count of numbers and how many columns a row has (0: not known; a decoder need not know). They
    fill the stream one after the other. `expected` is what each number should be, in 1/16, from -128
    to 127: a prediction with its fraction belongs here, whatever it comes from.
    """

    sides: tuple[Bytes, ...]
    is_signed: bool
    matrices: tuple[tuple[int, int], ...] = ()
    expected: npt.NDArray[np.int8] | None = None


Known = Callable[[], Contexts]
"""The contexts of a stream, made when its coder asks for them."""

MAX_DICTIONARY_SPANS = 64
MAX_DICTIONARY_BYTES = 4 << 20
MAX_WINDOW_LOG = 23
# Literal-context, literal-position and position bits. 3/0/2 is xz's own choice and right for
# structure; residuals have no context worth learning, and the fewer bits the faster it adapts.
PROPERTIES: tuple[tuple[int, int, int], ...] = ((3, 0, 2), (0, 0, 0), (0, 2, 2), (1, 0, 0))
# The range decoder reads ahead; what is cut off the end of a stream reads as zeros.
LZMA_PADDING = bytes(32)
_MAX_FLUSH_BYTES = 8
_SAMPLE_BYTES = 1 << 16
_LEVEL = 19
_QUICK_LEVEL = 3
# Its tables take more than this: not worth trying on less.
_MIN_ANS_BYTES = 128
_SPARSE_SHIFT = 7
# Shorter, and the board's time is worth more than what is left to win.
_MIN_MIXED_BYTES = 192
# What is learned from fewer numbers does not show.
_MIN_ROWS_BYTES = 512
# Residuals that pack to less than this part are mostly zeros: block sorting is tried too.
_SORTED_SHIFT = 3
# Up to here it is also tried without what the old file tells: fewer tables.
_TRY_PLAIN_BYTES = 128 << 10
_MIN_DICTIONARY_BYTES = 4096


class Mode(IntEnum):
    """The mode byte. LZMA's low two bits are an index into `PROPERTIES`."""

    RAW = 0
    RUN = 1
    """One byte, repeated."""
    ZSTD = 2
    ZSTD_DICTIONARY = 3
    """zstd with spans of the old file as its dictionary."""
    LZMA = 4
    """4..7: a raw LZMA1 stream without header."""
    ANS = 8
    """Interleaved rANS with contexts: see `ans`."""
    ROWS = 9
    """Weight updates predicted from the rows before: see `row_coder`."""
    BZIP2 = 10
    """One bzip2 stream without its first four bytes: sorting suits residuals that repeat far apart."""
    MIXED = 11
    """Text after spans of the old file, bit by bit: see `mixing`."""


BZIP2_START = b"BZh9"
_WITH_CONTEXT = frozenset({Mode.ANS, Mode.ROWS})


def mode_name(mode: int) -> str:
    """What people call the mode: "raw", "run", "zstd", "zstd-dictionary", "lzma"."""
    if Mode.LZMA < mode < Mode.ANS:
        mode = Mode.LZMA
    return Mode(mode).name.lower().replace("_", "-") if mode in set(Mode) else str(mode)


def pack(
    raw: bytes,
    *,
    dictionary: Sequence[Span] = (),
    read: Reader | None = None,
    contexts: Contexts | None = None,
    is_quick: bool = False,
    prime: Sequence[Span] = (),
    is_slow_allowed: bool = True,
) -> bytes:
    """The smallest way to say `raw` (not empty): mode byte and packed bytes. Ties: the lower mode.

    `prime` says where in the old file text like this one stands, when `raw` is text.
    `contexts` are for numbers (residuals, planes of elements), which the entropy coder is tried on.
    `is_quick` tries zstd and that one only, at a low level: to compare plans, not to send.
    `is_slow_allowed`: the row coder is tried too, which unpacks 0.1 to 0.2 MB a second.
    """
    if raw.count(raw[0]) == len(raw):
        return bytes([Mode.RUN, raw[0]])
    level = _QUICK_LEVEL if is_quick else _LEVEL
    candidates = [bytes([Mode.RAW]) + raw]
    if contexts is None or is_quick or not _is_noise(raw):
        candidates.append(bytes([Mode.ZSTD]) + zstd_compress(raw, b"", level))
        if dictionary and read is not None:
            candidates.append(_pack_with_dictionary(raw, dictionary, read, level))
        if not is_quick:
            candidates += _lzma_ways(raw)
    # Where almost nothing changed, long matches are shorter and quicker than any symbol by symbol.
    best = min(candidates, key=len)
    if prime and read is not None and not is_quick and len(best) >= _MIN_MIXED_BYTES:
        best = min([best, *_mixed(raw, prime, read)], key=len)
    if contexts is not None and not is_quick and len(best) <= len(raw) >> _SORTED_SHIFT:
        best = min(best, bzip2(raw), key=len)
    if contexts is None or len(raw) < _MIN_ANS_BYTES or len(best) <= len(raw) >> _SPARSE_SHIFT:
        return best
    coded = [best, _ans(raw, contexts, is_quick=is_quick)]
    is_enough = len(raw) >= _MIN_ROWS_BYTES and is_slow_allowed and not is_quick
    if contexts.matrices and is_enough:
        coded += _rows(raw, contexts, min(map(len, coded)))
    return min(coded, key=len)


def _mixed(raw: bytes, spans: Sequence[Span], read: Reader) -> list[bytes]:
    if len(raw) + sum(size for _, size in spans) > mixing.MAX_BYTES:
        return []
    text = b"".join(read(*span) for span in spans)
    return [bytes([Mode.MIXED]) + _spans_said(spans) + mixing.encode(raw, text)]


def _is_noise(raw: bytes) -> bool:
    """Whether nothing in it repeats: a quick search of matches gains nothing over counting bytes."""
    if len(raw) <= _SAMPLE_BYTES:
        return False
    counts = np.bincount(as_bytes(raw), minlength=256)
    total = np.array([len(raw)])
    bits = int(total[0] * log2(total)[0]) - int((counts * log2(counts)).sum()) >> 10
    return len(zstd_compress(raw, b"", _QUICK_LEVEL)) >= (bits >> 3) - (bits >> 7)


def _lzma_ways(raw: bytes) -> list[bytes]:
    choices = range(len(PROPERTIES))
    if len(raw) > _SAMPLE_BYTES:
        sample = raw[:_SAMPLE_BYTES]
        choices = range(k := min(choices, key=lambda i: len(_lzma(sample, PROPERTIES[i]))), k + 1)
    return [bytes([Mode.LZMA + i]) + _lzma(raw, PROPERTIES[i]) for i in choices]


def unpack(packed: bytes, size: int, read: Reader, known: Known | None = None) -> bytes:
    """The `size` bytes that `packed` stands for; `known()` gives the stream's contexts.

    Raises:
        CorruptDeltaError: it stands for something else.
    """
    cursor = Cursor(packed)
    mode = cursor.byte()
    if mode in _WITH_CONTEXT:
        raw = _unpack_numbers(Mode(mode), cursor, size, read, known)
    else:
        raw = _unpack_bytes(mode, cursor, size, read)
    if len(raw) != size:
        raise CorruptDeltaError("a stream does not unpack to its size")
    return raw


def _unpack_bytes(mode: int, cursor: Cursor, size: int, read: Reader) -> bytes:
    match mode:
        case Mode.RAW:
            return cursor.take(cursor.remaining)
        case Mode.RUN:
            return cursor.take(1) * size if cursor.remaining == 1 else b""
        case Mode.ZSTD:
            return zstd_decompress(cursor.take(cursor.remaining), size)
        case Mode.ZSTD_DICTIONARY:
            dictionary = _dictionary(cursor, read)
            return zstd_decompress(cursor.take(cursor.remaining), size, dictionary)
        case _ if Mode.LZMA <= mode < Mode.LZMA + len(PROPERTIES):
            return _unlzma(cursor.take(cursor.remaining), size, PROPERTIES[mode - Mode.LZMA])
        case Mode.BZIP2:
            return _unbzip2(cursor.take(cursor.remaining), size)
        case Mode.MIXED:
            text = _dictionary(cursor, read, mixing.MAX_BYTES - size)
            return mixing.decode(cursor.take(cursor.remaining), size, text)
    raise CorruptDeltaError(f"a stream is packed in mode {mode}, which is not known")


def _unpack_numbers(
    mode: Mode, cursor: Cursor, size: int, read: Reader, known: Known | None
) -> bytes:
    if mode is Mode.ANS:
        return _unans(cursor, size, read, known)
    return _unrows(cursor, read, known)


def _ans(raw: bytes, contexts: Contexts, *, is_quick: bool) -> bytes:
    found = []
    first = contexts.sides[0] if contexts.sides else None
    is_alone = first is None or is_quick or len(raw) > _TRY_PLAIN_BYTES
    for side in (first,) if is_alone else (first, None):
        model, stream = ans.encode(as_bytes(raw), side, is_signed=contexts.is_signed)
        found.append(_with_model(Mode.ANS, model, stream, is_quick=is_quick))
    return min(found, key=len)


def _unans(cursor: Cursor, size: int, read: Reader, known: Known | None) -> bytes:
    model = _model(cursor, read, ans.MAX_MODEL_BYTES)
    first = None if known is None else lambda: known().sides[0]
    return ans.decode(model, cursor.take(cursor.remaining), size, first).tobytes()


def _rows(raw: bytes, contexts: Contexts, beat: int) -> list[bytes]:
    coded = row_streams.encode(as_bytes(raw), contexts.matrices, contexts.expected, beat)
    return [] if coded is None else [_with_model(Mode.ROWS, *coded)]


def _unrows(cursor: Cursor, read: Reader, known: Known | None) -> bytes:
    model = _model(cursor, read, row_streams.MAX_MODEL_BYTES)
    contexts = known() if known is not None else None
    if contexts is None or not contexts.matrices:
        raise CorruptDeltaError("a row coder's stream has no matrices")
    sizes = [size for size, _ in contexts.matrices]
    stream = cursor.take(cursor.remaining)
    return row_streams.decode(model, stream, sizes, contexts.expected).tobytes()


def _with_model(mode: Mode, model: bytes, stream: bytes, *, is_quick: bool = False) -> bytes:
    packed = pack(model, is_quick=is_quick)
    return bytes([mode]) + varint(len(model)) + varint(len(packed)) + packed + stream


def _model(cursor: Cursor, read: Reader, max_bytes: int) -> bytes:
    """An entropy coder's model, unpacked."""
    size, packed_size = cursor.number(), cursor.number()
    if not 1 <= size <= max_bytes:
        raise CorruptDeltaError("an entropy coder's model is too large")
    packed = cursor.take(packed_size)
    if packed[:1] and packed[0] >= Mode.ANS:
        raise CorruptDeltaError("an entropy coder's model is packed by one")
    return unpack(packed, size, read)


def zstd_compress(raw: bytes, dictionary: bytes = b"", level: int = _LEVEL) -> bytes:
    """One zstd frame without magic number, content size, checksum or dictionary id."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=len(raw),
        dict_size=len(dictionary),
        window_log=_window_log(len(raw) + len(dictionary)),
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    return zstandard.ZstdCompressor(
        compression_params=parameters, dict_data=_dictionary_data(dictionary)
    ).compress(raw)


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


def _lzma(raw: bytes, properties: tuple[int, int, int]) -> bytes:
    packed = lzma.compress(raw, format=lzma.FORMAT_RAW, filters=lzma_filters(len(raw), properties))
    if len(raw) > _SAMPLE_BYTES:
        return packed
    # The encoder flushes more bytes than the decoder needs, which reads zeros past the end.
    for cut in range(min(_MAX_FLUSH_BYTES, len(packed) - 1), 0, -1):
        if _gives(packed[:-cut], raw, properties):
            return packed[:-cut]
    return packed


def _gives(packed: bytes, raw: bytes, properties: tuple[int, int, int]) -> bool:
    try:
        return _unlzma(packed, len(raw), properties) == raw
    except CorruptDeltaError:
        return False


def _unlzma(packed: bytes, size: int, properties: tuple[int, int, int]) -> bytes:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(size, properties))
    try:
        return decoder.decompress(packed + LZMA_PADDING, max_length=size)
    except (lzma.LZMAError, EOFError) as exc:
        raise CorruptDeltaError("an LZMA stream is damaged") from exc


def bzip2(raw: bytes) -> bytes:
    """`raw` in mode `BZIP2`, the mode byte included."""
    return bytes([Mode.BZIP2]) + bz2.compress(raw, 9)[len(BZIP2_START) :]


def _unbzip2(packed: bytes, size: int) -> bytes:
    try:
        return bz2.BZ2Decompressor().decompress(BZIP2_START + packed, max_length=size + 1)
    except OSError as exc:
        raise CorruptDeltaError("a bzip2 stream is damaged") from exc


def _pack_with_dictionary(raw: bytes, spans: Sequence[Span], read: Reader, level: int) -> bytes:
    front = bytes([Mode.ZSTD_DICTIONARY]) + _spans_said(spans)
    return front + zstd_compress(raw, b"".join(read(*span) for span in spans), level)


def _spans_said(spans: Sequence[Span]) -> bytes:
    out, end = bytearray(varint(len(spans))), 0
    for offset, size in spans:
        out += varint(offset - end) + varint(size)
        end = offset + size
    return bytes(out)


def _dictionary(cursor: Cursor, read: Reader, limit: int = MAX_DICTIONARY_BYTES) -> bytes:
    count = cursor.number()
    if not 1 <= count <= MAX_DICTIONARY_SPANS:
        raise CorruptDeltaError("a dictionary has too many pieces")
    spans, end, total = [], 0, 0
    for _ in range(count):
        offset = end + cursor.number()
        size = cursor.number()
        spans.append((offset, size))
        end = offset + size
        total += size
    if total > limit:
        raise CorruptDeltaError("a dictionary is too large")
    return b"".join(read(*span) for span in spans)


def _dictionary_data(dictionary: bytes) -> zstandard.ZstdCompressionDict | None:
    if not dictionary:
        return None
    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _window_log(size: int) -> int:
    return min(max(10, size.bit_length()), MAX_WINDOW_LOG)
