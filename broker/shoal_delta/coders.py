"""Streams of bytes and how they are packed: one mode byte, then what that mode needs.

A coder sees bytes only, and what `ans` may know of them beforehand. A better one is one more mode.
`pack` keeps the smallest; `unpack` never makes more than the size it was told to expect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from shoal_delta import ans, groups, mixing, row_streams
from shoal_delta.ans_model import log2
from shoal_delta.arithmetic import Bytes, as_bytes
from shoal_delta.byte_coders import (
    LEVEL,
    PROPERTIES,
    SAMPLE_BYTES,
    bzip2_pack,
    bzip2_unpack,
    lzma_pack,
    lzma_unpack,
    zstd_compress,
    zstd_decompress,
)
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.wire import Cursor, varint

Reader = Callable[[int, int], bytes]
"""`read(offset, size)` of the old file: exactly `size` bytes, or a `CorruptDeltaError`."""

Span = tuple[int, int]
"""(offset, size) in the old file."""


@dataclass(frozen=True, slots=True)
class Contexts:
    """What is known of numbers before they are unpacked: their `side`, one byte a number.

    Its low five bits are the context of mode 8; its bit 7 says that a number near 255 is more likely
    than one near 0 (see `drift`). `is_signed`: they are small near 0 and 255, not only near 0.

    Only the row coder (mode 9) uses what follows, and only of streams that have `matrices`: for each
    the count of numbers and how many columns a row has (0: not known; a decoder need not know). They
    fill the stream one after the other. `expected` is what each number should be, in 1/16, from -128
    to 127: a prediction with its fraction belongs here, whatever it comes from.
    """

    side: Bytes | None
    is_signed: bool
    matrices: tuple[tuple[int, int], ...] = ()
    expected: npt.NDArray[np.int8] | None = None


Known = Callable[[], Contexts]
"""The contexts of a stream, made when its coder asks for them."""

MAX_DICTIONARY_SPANS = 64
MAX_DICTIONARY_BYTES = 4 << 20
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
    GROUPS = 12
    """Numbers of which nearly all are zeros: see `groups`."""


_WITH_CONTEXT = frozenset({Mode.ANS, Mode.ROWS, Mode.GROUPS})


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
    `is_slow_allowed`: the row coder is tried too, which unpacks 0.1 to 0.2 MB a second, and the entropy
    coder takes more steps.
    """
    if raw.count(raw[0]) == len(raw):
        return bytes([Mode.RUN, raw[0]])
    level = _QUICK_LEVEL if is_quick else LEVEL
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
        best = min(best, bytes([Mode.BZIP2]) + bzip2_pack(raw), key=len)
    if contexts is not None and not is_quick and groups.is_worth_trying(as_bytes(raw)):
        best = min([best, *(_groups(raw, contexts, bits) for bits in groups.TRIED_BITS)], key=len)
    if contexts is None or len(raw) < _MIN_ANS_BYTES or len(best) <= len(raw) >> _SPARSE_SHIFT:
        return best
    is_patient = is_slow_allowed or is_quick
    coded = [best, _ans(raw, contexts, is_quick=is_quick, is_slow_allowed=is_patient)]
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
    if len(raw) <= SAMPLE_BYTES:
        return False
    counts = np.bincount(as_bytes(raw), minlength=256)
    total = np.array([len(raw)])
    bits = int(total[0] * log2(total)[0]) - int((counts * log2(counts)).sum()) >> 10
    return len(zstd_compress(raw, b"", _QUICK_LEVEL)) >= (bits >> 3) - (bits >> 7)


def _lzma_ways(raw: bytes) -> list[bytes]:
    choices = range(len(PROPERTIES))
    if len(raw) > SAMPLE_BYTES:
        sample = raw[:SAMPLE_BYTES]
        choices = range(
            k := min(choices, key=lambda i: len(lzma_pack(sample, PROPERTIES[i]))), k + 1
        )
    return [bytes([Mode.LZMA + i]) + lzma_pack(raw, PROPERTIES[i]) for i in choices]


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
            return lzma_unpack(cursor.take(cursor.remaining), size, PROPERTIES[mode - Mode.LZMA])
        case Mode.BZIP2:
            return bzip2_unpack(cursor.take(cursor.remaining), size)
        case Mode.MIXED:
            text = _dictionary(cursor, read, mixing.MAX_BYTES - size)
            return mixing.decode(cursor.take(cursor.remaining), size, text)
    raise CorruptDeltaError(f"a stream is packed in mode {mode}, which is not known")


def _unpack_numbers(
    mode: Mode, cursor: Cursor, size: int, read: Reader, known: Known | None
) -> bytes:
    match mode:
        case Mode.ANS:
            return _unans(cursor, size, read, known)
        case Mode.ROWS:
            return _unrows(cursor, read, known)
    return _ungroups(cursor, size, read, known)


def _groups(raw: bytes, contexts: Contexts, bits: int) -> bytes:
    numbers, side = as_bytes(raw), contexts.side
    flags = groups.flags(numbers, bits)
    mask = groups.members(flags, bits, numbers.size)
    of_flags = Contexts(None if side is None else groups.flags_side(side, bits), is_signed=False)
    within = Contexts(None if side is None else side[mask], is_signed=contexts.is_signed)
    packed = _counted(flags.tobytes(), of_flags)
    there = numbers[mask].tobytes()
    front = bytes([Mode.GROUPS, bits]) + varint(len(there)) + varint(len(packed)) + packed
    return front + _counted(there, within)


def _counted(raw: bytes, contexts: Contexts) -> bytes:
    """`raw` (not empty) through the entropy coder, or as it is."""
    if raw.count(raw[0]) == len(raw):
        return bytes([Mode.RUN, raw[0]])
    # Few numbers stand for many: their steps do not show in the time of a segment.
    coded = _ans(raw, contexts, is_quick=False)
    return min(bytes([Mode.RAW]) + raw, coded, key=len)


def _ungroups(cursor: Cursor, size: int, read: Reader, known: Known | None) -> bytes:
    bits = cursor.byte()
    if known is None or not 1 <= bits <= groups.MAX_BITS:
        raise CorruptDeltaError("groups of numbers are not possible here, or not of that size")
    side = known().side

    def of_flags() -> Contexts:
        return Contexts(None if side is None else groups.flags_side(side, bits), is_signed=False)

    count = cursor.number()
    packed = cursor.take(cursor.number())
    flags = as_bytes(_uncounted(packed, groups.count(size, bits), read, of_flags))
    mask = groups.members(flags, bits, size)
    numbers = np.zeros(size, dtype=np.uint8)
    if flags.max() > 1 or not count or count != int(np.count_nonzero(mask)):
        raise CorruptDeltaError("groups of numbers are marked in a way that is not possible")

    def within() -> Contexts:
        return Contexts(None if side is None else side[mask], is_signed=False)

    packed = cursor.take(cursor.remaining)
    numbers[mask] = as_bytes(_uncounted(packed, count, read, within))
    return numbers.tobytes()


def _uncounted(packed: bytes, size: int, read: Reader, known: Known) -> bytes:
    if packed[:1] and packed[0] > Mode.ANS:
        raise CorruptDeltaError("groups of numbers are packed in a mode that is not possible")
    return unpack(packed, size, read, known)


def _ans(raw: bytes, contexts: Contexts, *, is_quick: bool, is_slow_allowed: bool = True) -> bytes:
    found = []
    is_alone = contexts.side is None or is_quick or len(raw) > _TRY_PLAIN_BYTES
    for side in (contexts.side,) if is_alone else (contexts.side, None):
        model, stream = ans.encode(
            as_bytes(raw), side, is_signed=contexts.is_signed, is_slow_allowed=is_slow_allowed
        )
        found.append(_with_model(Mode.ANS, model, stream, is_quick=is_quick))
    return min(found, key=len)


def _unans(cursor: Cursor, size: int, read: Reader, known: Known | None) -> bytes:
    model = _model(cursor, read, ans.MAX_MODEL_BYTES)
    side = None if known is None else lambda: known().side
    return ans.decode(model, cursor.take(cursor.remaining), size, side).tobytes()


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
