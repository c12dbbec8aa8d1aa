"""The entropy coder for residuals: interleaved rANS in numpy, a table a context, integers only.

Symbols are bytes; the context of one is what the decoder knows before it reads it: how large the
last few of the same lane were (activity), and one byte that the caller makes of the old file (side).
Which contexts share a table is `ans_model`'s business. Format: docs/delta-format.md; the coder is
Duda's (arXiv 1311.2540), the interleaving Giesen's (arXiv 1402.3392).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shoal_delta import ans_decoder, ans_model
from shoal_delta.ans_decoder import LOW, WORD_BITS
from shoal_delta.ans_model import ACTIVITIES, SCALE_BITS, SYMBOLS, Model
from shoal_delta.arithmetic import Bytes
from shoal_delta.drift import CLASS, mirrored
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.information import context_bits
from shoal_delta.lanes import MAX_LANE_BITS, Laid, Lanes, tail_lanes
from shoal_delta.wire import Cursor, varint

MAX_MODEL_BYTES = 8192
_STATE_BYTES, _WORD_BYTES = 4, 2
_SIGNED, _MIRRORED = 0x80, 0x40
# A lane costs one to three bytes: one for this many of the packed ones, more lanes in a long stream ...
_LONG = 1 << 19
_BYTES_A_LANE, _LONG_BYTES_A_LANE, _QUICK_BYTES_A_LANE = 512, 200, 96
# ... but no more steps than this, each of which costs the board the same time; without activities that
# is half as long. What is to be quick has as many steps only where they are few for so many symbols.
_MAX_STEPS, _MAX_PLAIN_STEPS, _MAX_QUICK_STEPS = 4096, 8192, 2048
# Up to the first the steps are few, whatever the lanes. Below half a bit a symbol the lanes would be what is
# sent: up to the second a few bytes, but the steps as many as those of a stream ten times as large.
_SHORT, _FEW = 1 << 13, 1 << 15
_MAX_FEW_STEPS = 1280
# The last symbols go in a sixteenth of the lanes; their words fill the half of a state that tells nothing.
_MIN_TAILED_LANES, _TAIL_SHIFT = 16, 3

_ZIGZAG_INVERSE = np.array([value >> 1 ^ -(value & 1) & 0xFF for value in range(SYMBOLS)], np.uint8)


def encode(
    symbols: Bytes, side: Bytes | None, *, is_signed: bool, is_slow_allowed: bool = True
) -> tuple[bytes, bytes]:
    """(model, stream) of `symbols`, one or more; `side`, one a symbol, as in `drift`.

    `is_signed` tells that symbols near 0 and 255 are small; otherwise those near 0 are. Unless
    `is_slow_allowed`, up to a percent of the size is spent on fewer steps.
    """
    is_mirrored = False
    if side is not None:
        side, changed = side & CLASS, mirrored(symbols, side)
        is_mirrored = context_bits(changed, side) < context_bits(symbols, side)
        symbols = changed if is_mirrored else symbols
    values = _zigzag(symbols) if is_signed else symbols
    sides = int(side.max()) + 1 if side is not None else 1
    parts = _parts(values, side, _MAX_STEPS, is_slow_allowed=is_slow_allowed)
    counts = np.zeros(ACTIVITIES * sides * SYMBOLS, dtype=np.int64)
    for part in parts:
        context = np.concatenate(part.contexts(sides))
        context *= SYMBOLS
        context += np.concatenate(part.rows)
        counts += np.bincount(context, minlength=counts.size)
    model, raw = ans_model.chosen(counts.reshape(-1, SYMBOLS), sides)
    if not model.knows_activity:
        parts = _parts(values, side, _MAX_PLAIN_STEPS, is_slow_allowed=is_slow_allowed)
    flags = parts[0].lane_bits | (_SIGNED if is_signed else 0) | (_MIRRORED if is_mirrored else 0)
    tail = parts[1].count if len(parts) > 1 else 0
    return bytes([flags]) + varint(tail) + raw, _coded(parts, model)


def steps(model: Cursor, size: int) -> int:
    """How many steps it takes to decode `size` symbols, about; the model need not be possible."""
    flags, tail = model.byte(), min(model.number(), size)
    lanes = 1 << (flags & ~(_SIGNED | _MIRRORED))
    return -(-(size - tail) // lanes) + -(-tail // tail_lanes(lanes))


def decode(
    raw_model: bytes, stream: bytes, size: int, side: Callable[[], Bytes | None] | None
) -> Bytes:
    """The `size` symbols that were encoded; `side()` is asked when the model needs it.

    Raises:
        CorruptDeltaError: it is not what `encode` makes.
    """
    cursor = Cursor(raw_model)
    flags, tail = cursor.byte(), cursor.number()
    lane_bits = flags & ~(_SIGNED | _MIRRORED)
    lanes = 1 << lane_bits
    if (
        lane_bits > MAX_LANE_BITS
        or lanes > size - tail
        or 0 < tail < tail_lanes(lanes)
        or len(stream) < _STATE_BYTES * lanes
        or len(stream) % _WORD_BYTES
    ):
        raise CorruptDeltaError("an entropy coder's lanes are not possible")
    model = ans_model.parsed(cursor.take(cursor.remaining))
    known = side() if model.sides > 1 and side is not None else None
    classes = None if known is None else known & CLASS
    if model.sides > 1 and (
        classes is None or classes.size != size or classes.max() >= model.sides
    ):
        raise CorruptDeltaError("an entropy coder asks for contexts that are not there")
    values = ans_decoder.decoded(stream, (size - tail, tail), lanes, model, classes)
    symbols = _unzigzag(values) if flags & _SIGNED else values
    return mirrored(symbols, known) if known is not None and flags & _MIRRORED else symbols


def _coded(parts: list[Laid], model: Model) -> bytes:
    """The first part's states carry the first words of the second one."""
    rest = np.empty(0, dtype=np.int64)
    for part in reversed(parts):
        lanes = 1 << part.lane_bits
        carried = np.zeros(lanes, dtype=np.int64)
        carried[: rest.size] = rest[:lanes]
        state, words = _coded_part(part, model, LOW | carried)
        states = np.stack([state & LOW - 1, state >> WORD_BITS], axis=1).reshape(-1)
        rest = np.concatenate([states, words, rest[lanes:]])
    return rest.astype("<u2").tobytes()


def _coded_part(part: Laid, model: Model, state: Lanes) -> tuple[Lanes, Lanes]:
    """The lanes' states and the words, from the states that the decoder ends with."""
    starts = np.cumsum(model.frequencies, axis=1) - model.frequencies
    contexts = part.contexts(model.sides, is_active=model.knows_activity)
    words: list[Lanes] = []
    for row, context in zip(reversed(part.rows), reversed(contexts), strict=True):
        table = model.tables[context]
        frequency, start = model.frequencies[table, row], starts[table, row]
        active = state[: row.size]
        full = np.flatnonzero(active >= frequency << (2 * WORD_BITS - SCALE_BITS))
        words.append(active[full] & (LOW - 1))
        active[full] >>= WORD_BITS
        active[:] = (active // frequency << SCALE_BITS) + active % frequency + start
    return state, np.concatenate(words[::-1])


def _parts(
    values: Bytes, side: Bytes | None, max_steps: int, *, is_slow_allowed: bool
) -> list[Laid]:
    """The symbols in lanes; when there are many, the last ones in a few lanes of their own."""
    counts = np.bincount(values, minlength=SYMBOLS)[None]
    bits = int(counts.sum() * ans_model.log2(counts.sum(axis=1))[0])
    bits = (bits - int((counts * ans_model.log2(counts)).sum())) >> ans_model.LOG_FRACTION_BITS
    bytes_a_lane = _LONG_BYTES_A_LANE if values.size >= _LONG else _BYTES_A_LANE
    if not is_slow_allowed and values.size > _SHORT:
        if bits > values.size >> 1:
            bytes_a_lane = _QUICK_BYTES_A_LANE
            max_steps = max_steps if values.size >= _LONG else _MAX_QUICK_STEPS
        elif values.size <= _FEW:
            max_steps = _MAX_FEW_STEPS
    wanted = max((bits >> 3) // bytes_a_lane, -(-values.size // max_steps), 1)
    lane_bits = min(wanted.bit_length() - 1, MAX_LANE_BITS, values.size.bit_length() - 1)
    lanes = 1 << lane_bits
    # As many as fill what the states carry; the entropy is a bit above what they really take.
    tail = values.size * WORD_BITS * lanes * 9 // (8 * max(bits, 1))
    if lanes < _MIN_TAILED_LANES or tail > values.size >> _TAIL_SHIFT:
        return [Laid.out(values, side, lane_bits)]
    front, side_front = values[:-tail], None if side is None else side[:-tail]
    behind = None if side is None else side[-tail:]
    tail_bits = tail_lanes(lanes).bit_length() - 1
    return [Laid.out(front, side_front, lane_bits), Laid.out(values[-tail:], behind, tail_bits)]


def _zigzag(symbols: Bytes) -> Bytes:
    signed = symbols.view(np.int8)
    return ((signed << 1) ^ (signed >> 7)).view(np.uint8)


def _unzigzag(values: Bytes) -> Bytes:
    return _ZIGZAG_INVERSE[values]
