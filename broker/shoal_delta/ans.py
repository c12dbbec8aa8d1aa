"""The entropy coder for residuals: interleaved rANS in numpy, a table a context, integers only.

Symbols are bytes; the context of one is what the decoder knows before it reads it: how large the
last few of the same lane were (activity), and one byte that the caller makes of the old file (side).
Which contexts share a table is `ans_model`'s business. Format: docs/delta-format.md; the coder is
Duda's (arXiv 1311.2540), the interleaving Giesen's (arXiv 1402.3392).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from shoal_delta import ans_model
from shoal_delta.ans_model import ACTIVITIES, SCALE_BITS, SYMBOLS, Model
from shoal_delta.arithmetic import Bytes
from shoal_delta.errors import CorruptDeltaError

MAX_LANE_BITS = 10
MAX_MODEL_BYTES = 8192
_SLOTS = (1 << SCALE_BITS) - 1
_WORD_BITS = 16
_LOW = 1 << _WORD_BITS
_STATE_BYTES, _WORD_BYTES = 4, 2
_SIGNED = 0x80
# A lane costs about three bytes: one for this many of the packed ones ...
_BYTES_A_LANE = 512
# In a long stream a step's overhead counts more than a percent of its size.
_LONG, _LONG_BYTES_A_LANE = 1 << 19, 200
# ... but no more steps than this, each of which costs the board the same time.
_MAX_STEPS = 4096

_FIRST_ACTIVITY = 16
_ACTIVITY_SHIFT = 3
_MAX_MAGNITUDE = 15
_THRESHOLDS = (3, 8, 14, 22, 34, 54, 90)
_MAGNITUDE = np.minimum((np.arange(SYMBOLS) + 1) // 2, _MAX_MAGNITUDE).astype(np.int64) << 4
_ACTIVITY = np.searchsorted(_THRESHOLDS, np.arange(SYMBOLS), side="right").astype(np.int64)

_ZIGZAG_INVERSE = np.array([value >> 1 ^ -(value & 1) & 0xFF for value in range(SYMBOLS)], np.uint8)

Lanes = npt.NDArray[np.int64]


def encode(symbols: Bytes, side: Bytes | None, *, is_signed: bool) -> tuple[bytes, bytes]:
    """(model, stream) of `symbols`, one or more; `side` is below 32, one a symbol.

    `is_signed` tells that symbols near 0 and 255 are small; otherwise those near 0 are.
    """
    values = _zigzag(symbols) if is_signed else symbols
    sides = int(side.max()) + 1 if side is not None else 1
    lane_bits = _lane_bits(values)
    steps, last = _laned(values, 1 << lane_bits)
    side_steps, side_last = (None, None) if side is None else _laned(side, 1 << lane_bits)
    contexts = _contexts(steps, last, side_steps, side_last, sides)
    rows = [*steps, last]
    counts = np.zeros(ACTIVITIES * sides * SYMBOLS, dtype=np.int64)
    for context, row in zip(contexts, rows, strict=True):
        counts += np.bincount(context * SYMBOLS + row, minlength=counts.size)
    model, raw = ans_model.chosen(counts.reshape(-1, SYMBOLS), sides)
    flags = lane_bits | (_SIGNED if is_signed else 0)
    return bytes([flags]) + raw, _coded(rows, contexts, model, 1 << lane_bits)


def decode(raw_model: bytes, stream: bytes, size: int, side: Callable[[], Bytes] | None) -> Bytes:
    """The `size` symbols that were encoded; `side()` is asked when the model needs it.

    Raises:
        CorruptDeltaError: it is not what `encode` makes.
    """
    lane_bits = raw_model[0] & ~_SIGNED
    lanes = 1 << lane_bits
    if lane_bits > MAX_LANE_BITS or lanes > size or len(stream) < _STATE_BYTES * lanes:
        raise CorruptDeltaError("an entropy coder's lanes are not possible")
    model = ans_model.parsed(raw_model[1:])
    known = side() if model.sides > 1 and side is not None else None
    if model.sides > 1 and (known is None or known.size != size or known.max() >= model.sides):
        raise CorruptDeltaError("an entropy coder asks for contexts that are not there")
    values = _decoded(stream, size, lanes, model, known)
    return _unzigzag(values) if raw_model[0] & _SIGNED else values


def _coded(rows: list[Bytes], contexts: list[Lanes], model: Model, lanes: int) -> bytes:
    starts = np.cumsum(model.frequencies, axis=1) - model.frequencies
    state = np.full(lanes, _LOW, dtype=np.int64)
    words: list[npt.NDArray[np.int64]] = []
    for row, context in zip(reversed(rows), reversed(contexts), strict=True):
        table = model.tables[context]
        frequency, start = model.frequencies[table, row], starts[table, row]
        active = state[: row.size]
        full = np.flatnonzero(active >= frequency << (2 * _WORD_BITS - SCALE_BITS))
        words.append(active[full] & (_LOW - 1))
        active[full] >>= _WORD_BITS
        active[:] = (active // frequency << SCALE_BITS) + active % frequency + start
    stream = np.concatenate(words[::-1])
    return state.astype("<u4").tobytes() + stream.astype("<u2").tobytes()


def _decoded(stream: bytes, size: int, lanes: int, model: Model, side: Bytes | None) -> Bytes:
    state, words = _started(stream, lanes)
    steps = (size - 1) // lanes
    rest = size - steps * lanes
    full = np.empty((steps, lanes), dtype=np.uint8)
    last = np.empty(rest, dtype=np.uint8)
    side_steps, side_last = (None, None) if side is None else _laned(side, lanes)
    slots = _slots(model)
    table_at = model.tables.astype(np.int64) << SCALE_BITS
    is_one = len(model.frequencies) == 1
    activity = np.full(lanes, _FIRST_ACTIVITY, dtype=np.int64)
    first_context = _ACTIVITY.astype(np.int64) * model.sides
    position = 0
    for step in range(steps + 1):
        row = full[step] if step < steps else last
        if step == steps:
            state, activity = state[:rest], activity[:rest]
        slot = state & _SLOTS
        if not is_one:
            context = first_context[activity]
            if side_steps is not None and side_last is not None:
                context += side_steps[step] if step < steps else side_last
            slot += table_at[context]
        found = slots[slot]
        symbol = found & 0xFF
        row[:] = symbol
        state >>= SCALE_BITS
        state *= found >> 24
        state += (found >> 8) & 0xFFFF
        # Not flatnonzero: its three wrappers take longer than the search.
        (short,) = (state < _LOW).nonzero()
        if short.size:
            if position + short.size > words.size:
                raise CorruptDeltaError("an entropy coder's stream ends too early")
            state[short] = state[short] << _WORD_BITS | words[position : position + short.size]
            position += short.size
        if not is_one:
            activity += (_MAGNITUDE[symbol] - activity) >> _ACTIVITY_SHIFT
    if position != words.size or (state != _LOW).any():
        raise CorruptDeltaError("an entropy coder's stream does not end where it should")
    return _unlaned(full, last)


def _started(stream: bytes, lanes: int) -> tuple[Lanes, Lanes]:
    """The lanes' first states, and the words that follow."""
    if (len(stream) - _STATE_BYTES * lanes) % _WORD_BYTES:
        raise CorruptDeltaError("an entropy coder's stream is torn")
    state = np.frombuffer(stream, "<u4", lanes).astype(np.int64)
    if state.min() < _LOW:
        raise CorruptDeltaError("an entropy coder's lanes are not possible")
    words = np.frombuffer(stream, "<u2", offset=_STATE_BYTES * lanes).astype(np.int64)
    return state, words


def _slots(model: Model) -> Lanes:
    """For each table and slot: frequency, offset in the symbol's range, symbol, in one integer."""
    out = np.empty((len(model.frequencies), 1 << SCALE_BITS), dtype=np.int64)
    for row, frequencies in zip(out, model.frequencies, strict=True):
        symbols = np.repeat(np.arange(SYMBOLS), frequencies)
        starts = np.repeat(np.cumsum(frequencies) - frequencies, frequencies)
        row[:] = frequencies[symbols] << 24 | (np.arange(_SLOTS + 1) - starts) << 8 | symbols
    return out.reshape(-1)


def _contexts(
    steps: Bytes, last: Bytes, side_steps: Bytes | None, side_last: Bytes | None, sides: int
) -> list[Lanes]:
    activity = np.full(steps.shape[1], _FIRST_ACTIVITY, dtype=np.int64)
    contexts = []
    for step, row in enumerate(steps):
        context = _ACTIVITY[activity] * sides
        contexts.append(context if side_steps is None else context + side_steps[step])
        activity += (_MAGNITUDE[row] - activity) >> _ACTIVITY_SHIFT
    context = _ACTIVITY[activity[: last.size]] * sides
    return [*contexts, context if side_last is None else context + side_last]


def _laned(values: Bytes, lanes: int) -> tuple[Bytes, Bytes]:
    """Each lane takes neighbours: what all lanes do step by step [steps, lanes], and the last step."""
    steps = (values.size - 1) // lanes
    rest = values.size - steps * lanes
    long = values[: rest * (steps + 1)].reshape(rest, steps + 1)
    short = values[rest * (steps + 1) :].reshape(lanes - rest, steps)
    full = np.ascontiguousarray(np.concatenate([long[:, :steps], short]).T)
    return full, long[:, steps]


def _unlaned(full: Bytes, last: Bytes) -> Bytes:
    long = np.concatenate([full[:, : last.size].T, last[:, None]], axis=1)
    return np.concatenate([long.reshape(-1), full[:, last.size :].T.reshape(-1)])


def _lane_bits(values: Bytes) -> int:
    counts = np.bincount(values, minlength=SYMBOLS)[None]
    bits = int(counts.sum() * ans_model.log2(counts.sum(axis=1))[0])
    bits -= int((counts * ans_model.log2(counts)).sum())
    bytes_a_lane = _LONG_BYTES_A_LANE if values.size >= _LONG else _BYTES_A_LANE
    wanted = max((bits >> 13) // bytes_a_lane, -(-values.size // _MAX_STEPS), 1)
    return min(wanted.bit_length() - 1, MAX_LANE_BITS, values.size.bit_length() - 1)


def _zigzag(symbols: Bytes) -> Bytes:
    signed = symbols.view(np.int8)
    return ((signed << 1) ^ (signed >> 7)).view(np.uint8)


def _unzigzag(values: Bytes) -> Bytes:
    return _ZIGZAG_INVERSE[values]
