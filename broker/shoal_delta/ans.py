"""The entropy coder for residuals: interleaved rANS in numpy, a table a context, integers only.

Symbols are bytes; the context of one is what the decoder knows before it reads it: how large the
last few of the same lane were (activity), and one byte that the caller makes of the old file (side).
Which contexts share a table is `ans_model`'s business. Format: docs/delta-format.md; the coder is
Duda's (arXiv 1311.2540), the interleaving Giesen's (arXiv 1402.3392).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal_delta import ans_model
from shoal_delta.ans_model import ACTIVITIES, SCALE_BITS, SYMBOLS, Model
from shoal_delta.arithmetic import Bytes
from shoal_delta.drift import CLASS, mirrored
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.information import context_bits
from shoal_delta.wire import Cursor, varint

MAX_LANE_BITS = 10
MAX_MODEL_BYTES = 8192
_SLOTS = (1 << SCALE_BITS) - 1
_WORD_BITS = 16
_LOW = 1 << _WORD_BITS
_STATE_BYTES, _WORD_BYTES = 4, 2
_SIGNED, _MIRRORED = 0x80, 0x40
# A lane costs about three bytes: one for this many of the packed ones ...
_BYTES_A_LANE = 512
# In a long stream a step's overhead counts more than a percent of its size.
_LONG, _LONG_BYTES_A_LANE = 1 << 19, 200
# ... but no more steps than this, each of which costs the board the same time; without activities that
# is half as long.
_MAX_STEPS, _MAX_PLAIN_STEPS = 4096, 8192
# The last symbols go in a sixteenth of the lanes; their words fill the half of a state that tells nothing.
_MIN_TAILED_LANES, _TAIL_SHIFT = 16, 3
# What is worked on at once between the steps.
_CHUNK = 1 << 15

_FIRST_ACTIVITY = 16
_ACTIVITY_SHIFT = 3
_MAX_MAGNITUDE = 15
_THRESHOLDS = (3, 8, 14, 22, 34, 54, 90)
_MAGNITUDE = np.minimum((np.arange(SYMBOLS) + 1) // 2, _MAX_MAGNITUDE).astype(np.int64) << 4
_ACTIVITY = np.searchsorted(_THRESHOLDS, np.arange(SYMBOLS), side="right").astype(np.int64)

# Where things stand in what `_slots` makes; the offset in the low 16 bits.
_SYMBOL_SHIFT, _MAGNITUDE_SHIFT, _FREQUENCY_SHIFT = 16, 24, 32
_OFFSET = 0xFFFF

_ZIGZAG_INVERSE = np.array([value >> 1 ^ -(value & 1) & 0xFF for value in range(SYMBOLS)], np.uint8)

Lanes = npt.NDArray[np.int64]


def encode(symbols: Bytes, side: Bytes | None, *, is_signed: bool) -> tuple[bytes, bytes]:
    """(model, stream) of `symbols`, one or more; `side`, one a symbol, as in `drift`.

    `is_signed` tells that symbols near 0 and 255 are small; otherwise those near 0 are.
    """
    is_mirrored = False
    if side is not None:
        side, changed = side & CLASS, mirrored(symbols, side)
        is_mirrored = context_bits(changed, side) < context_bits(symbols, side)
        symbols = changed if is_mirrored else symbols
    values = _zigzag(symbols) if is_signed else symbols
    sides = int(side.max()) + 1 if side is not None else 1
    parts = _parts(values, side, _MAX_STEPS)
    counts = np.zeros(ACTIVITIES * sides * SYMBOLS, dtype=np.int64)
    for part in parts:
        context = np.concatenate(part.contexts(sides))
        context *= SYMBOLS
        context += np.concatenate(part.rows)
        counts += np.bincount(context, minlength=counts.size)
    model, raw = ans_model.chosen(counts.reshape(-1, SYMBOLS), sides)
    if not model.knows_activity:
        parts = _parts(values, side, _MAX_PLAIN_STEPS)
    flags = parts[0].lane_bits | (_SIGNED if is_signed else 0) | (_MIRRORED if is_mirrored else 0)
    tail = parts[1].count if len(parts) > 1 else 0
    return bytes([flags]) + varint(tail) + raw, _coded(parts, model)


def steps(model: Cursor, size: int) -> int:
    """How many steps it takes to decode `size` symbols, about; the model need not be possible."""
    flags, tail = model.byte(), min(model.number(), size)
    lanes = 1 << (flags & ~(_SIGNED | _MIRRORED))
    return -(-(size - tail) // lanes) + -(-tail // _tail_lanes(lanes))


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
        or 0 < tail < _tail_lanes(lanes)
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
    values = _decoded(stream, (size - tail, tail), lanes, model, classes)
    symbols = _unzigzag(values) if flags & _SIGNED else values
    return mirrored(symbols, known) if known is not None and flags & _MIRRORED else symbols


def _coded(parts: list[_Laid], model: Model) -> bytes:
    """The first part's states carry the first words of the second one."""
    rest = np.empty(0, dtype=np.int64)
    for part in reversed(parts):
        lanes = 1 << part.lane_bits
        carried = np.zeros(lanes, dtype=np.int64)
        carried[: rest.size] = rest[:lanes]
        state, words = _coded_part(part, model, _LOW | carried)
        states = np.stack([state & _LOW - 1, state >> _WORD_BITS], axis=1).reshape(-1)
        rest = np.concatenate([states, words, rest[lanes:]])
    return rest.astype("<u2").tobytes()


def _coded_part(part: _Laid, model: Model, state: Lanes) -> tuple[Lanes, Lanes]:
    """The lanes' states and the words, from the states that the decoder ends with."""
    starts = np.cumsum(model.frequencies, axis=1) - model.frequencies
    contexts = part.contexts(model.sides, is_active=model.knows_activity)
    words: list[Lanes] = []
    for row, context in zip(reversed(part.rows), reversed(contexts), strict=True):
        table = model.tables[context]
        frequency, start = model.frequencies[table, row], starts[table, row]
        active = state[: row.size]
        full = np.flatnonzero(active >= frequency << (2 * _WORD_BITS - SCALE_BITS))
        words.append(active[full] & (_LOW - 1))
        active[full] >>= _WORD_BITS
        active[:] = (active // frequency << SCALE_BITS) + active % frequency + start
    return state, np.concatenate(words[::-1])


def _decoded(
    stream: bytes, sizes: tuple[int, int], lanes: int, model: Model, side: Bytes | None
) -> Bytes:
    """So many symbols in the lanes, and so many behind them in a few."""
    slots, out = _slots(model), []
    words = np.frombuffer(stream, "<u2").astype(np.int64)
    carried, left, padding = words, words, lanes if sizes[1] else 0
    for size, start in zip(sizes, (0, sizes[0]), strict=True):
        if size == 0:
            break
        here = None if side is None else side[start : start + size]
        decoder = _Decoder(words, lanes, model, slots)
        out.append(_decoded_part(decoder, size, lanes, here))
        carried, left = decoder.rest()
        words, lanes = np.concatenate([carried, left]), _tail_lanes(lanes)
    # Where there were more states than words to carry, zeros are left.
    if carried.any() or left.any() or left.size > padding:
        raise CorruptDeltaError("an entropy coder's stream does not end where it should")
    return np.concatenate(out)


def _decoded_part(decoder: _Decoder, size: int, lanes: int, side: Bytes | None) -> Bytes:
    steps = (size - 1) // lanes
    full = np.empty((steps, lanes), dtype=np.uint8)
    last = np.empty(size - steps * lanes, dtype=np.uint8)
    side_steps, side_last = (None, None) if side is None else _laned(side, lanes)
    chunk = max(1, _CHUNK // lanes)
    for start in range(0, steps, chunk):
        here = slice(start, start + chunk)
        decoder.steps(full[here], None if side_steps is None else side_steps[here])
    decoder.steps(last[None], None if side_last is None else side_last[None])
    return _unlaned(full, last)


class _Decoder:
    """The lanes' states and activities, and the words that are left."""

    def __init__(self, words: Lanes, lanes: int, model: Model, slots: Lanes) -> None:
        states, self._words = words[: 2 * lanes], words[2 * lanes :]
        if states.size < 2 * lanes or states[1::2].min() == 0:
            raise CorruptDeltaError("an entropy coder's lanes are not possible")
        self._state = states[1::2] << _WORD_BITS | states[::2]
        self._ended = self._state
        self._position = 0
        self._slots = slots
        self._activity = np.full(lanes, _FIRST_ACTIVITY, dtype=np.int64)
        self._knows_activity = model.knows_activity
        # Where the table of each side and activity begins: without activities only of each side.
        at = (model.tables.astype(np.int64) << SCALE_BITS).reshape(ACTIVITIES, model.sides)
        self._tables = at.T[:, _ACTIVITY].reshape(-1) if model.knows_activity else at[0]

    def steps(self, out: Bytes, side: Bytes | None) -> None:
        """The next symbols [steps, lanes], of the first lanes when there are fewer."""
        lanes = out.shape[1]
        if lanes < self._state.size:
            self._state, self._activity = self._state[:lanes], self._activity[:lanes]
        if self._knows_activity:
            self._active_steps(out, side)
            return
        first = None if side is None else self._tables[side]
        found = np.empty(out.shape, dtype=np.int64)
        for step in range(len(out)):
            slot = self._state & _SLOTS
            if first is not None:
                slot += first[step]
            found[step] = ranges = self._slots[slot]
            self._next(ranges)
        out[:] = found >> _SYMBOL_SHIFT & 0xFF

    def _active_steps(self, out: Bytes, side: Bytes | None) -> None:
        activity = self._activity
        first = None if side is None else side.astype(np.int64) * SYMBOLS
        found = np.empty(out.shape, dtype=np.int64)
        for step in range(len(out)):
            slot = self._state & _SLOTS
            slot += self._tables[activity if first is None else first[step] + activity]
            found[step] = ranges = self._slots[slot]
            self._next(ranges)
            ranges >>= _MAGNITUDE_SHIFT
            ranges &= 0xFF
            ranges -= activity
            ranges >>= _ACTIVITY_SHIFT
            activity += ranges
        out[:] = found >> _SYMBOL_SHIFT & 0xFF

    def _next(self, ranges: Lanes) -> None:
        state = self._state
        state >>= SCALE_BITS
        state *= ranges >> _FREQUENCY_SHIFT
        state += ranges & _OFFSET
        # Not flatnonzero: its three wrappers take longer than the search.
        (short,) = (state < _LOW).nonzero()
        if short.size:
            end = self._position + short.size
            if end > self._words.size:
                raise CorruptDeltaError("an entropy coder's stream ends too early")
            state[short] = state[short] << _WORD_BITS | self._words[self._position : end]
            self._position = end

    def rest(self) -> tuple[Lanes, Lanes]:
        """What the lanes' last states carry, and the words that are left."""
        carried = self._ended - _LOW
        if carried.min() < 0 or carried.max() >= _LOW:
            raise CorruptDeltaError("an entropy coder's stream does not end where it should")
        return carried, self._words[self._position :]


def _slots(model: Model) -> Lanes:
    """Of each table and slot, in one integer: frequency, magnitude, symbol, offset in its range."""
    out = np.empty((len(model.frequencies), 1 << SCALE_BITS), dtype=np.int64)
    of_symbol = _MAGNITUDE << _MAGNITUDE_SHIFT | np.arange(SYMBOLS) << _SYMBOL_SHIFT
    for row, frequencies in zip(out, model.frequencies, strict=True):
        starts = np.repeat(np.cumsum(frequencies) - frequencies, frequencies)
        row[:] = np.arange(_SLOTS + 1) - starts
        row[:] |= np.repeat(frequencies << _FREQUENCY_SHIFT | of_symbol, frequencies)
    return out.reshape(-1)


@dataclass(frozen=True, slots=True)
class _Laid:
    """Symbols and their sides, step by step; the last step may be short."""

    count: int
    lane_bits: int
    rows: list[Bytes]
    sides: list[Bytes] | None

    @classmethod
    def out(cls, values: Bytes, side: Bytes | None, lane_bits: int) -> _Laid:
        """In so many lanes."""
        steps, last = _laned(values, 1 << lane_bits)
        if side is None:
            return cls(values.size, lane_bits, [*steps, last], None)
        side_steps, side_last = _laned(side, 1 << lane_bits)
        return cls(values.size, lane_bits, [*steps, last], [*side_steps, side_last])

    def contexts(self, sides: int, *, is_active: bool = True) -> list[Lanes]:
        """The context of each symbol; with `is_active` of its lane's activity, too."""
        activity = np.full(1 << self.lane_bits, _FIRST_ACTIVITY, dtype=np.int64)
        contexts = []
        for step, row in enumerate(self.rows):
            activity = activity[: row.size]
            context = _ACTIVITY[activity] * sides if is_active else np.zeros(row.size, np.int64)
            contexts.append(context if self.sides is None else context + self.sides[step])
            if is_active:
                activity += (_MAGNITUDE[row] - activity) >> _ACTIVITY_SHIFT
        return contexts


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


def _parts(values: Bytes, side: Bytes | None, max_steps: int) -> list[_Laid]:
    """The symbols in lanes; when there are many, the last ones in a few lanes of their own."""
    counts = np.bincount(values, minlength=SYMBOLS)[None]
    bits = int(counts.sum() * ans_model.log2(counts.sum(axis=1))[0])
    bits = (bits - int((counts * ans_model.log2(counts)).sum())) >> ans_model.LOG_FRACTION_BITS
    bytes_a_lane = _LONG_BYTES_A_LANE if values.size >= _LONG else _BYTES_A_LANE
    wanted = max((bits >> 3) // bytes_a_lane, -(-values.size // max_steps), 1)
    lane_bits = min(wanted.bit_length() - 1, MAX_LANE_BITS, values.size.bit_length() - 1)
    lanes = 1 << lane_bits
    # As many as fill what the states carry; the entropy is a bit above what they really take.
    tail = values.size * _WORD_BITS * lanes * 9 // (8 * max(bits, 1))
    if lanes < _MIN_TAILED_LANES or tail > values.size >> _TAIL_SHIFT:
        return [_Laid.out(values, side, lane_bits)]
    front, side_front = values[:-tail], None if side is None else side[:-tail]
    behind = None if side is None else side[-tail:]
    tail_bits = _tail_lanes(lanes).bit_length() - 1
    return [_Laid.out(front, side_front, lane_bits), _Laid.out(values[-tail:], behind, tail_bits)]


def _tail_lanes(lanes: int) -> int:
    return max(1, lanes >> 4)


def _zigzag(symbols: Bytes) -> Bytes:
    signed = symbols.view(np.int8)
    return ((signed << 1) ^ (signed >> 7)).view(np.uint8)


def _unzigzag(values: Bytes) -> Bytes:
    return _ZIGZAG_INVERSE[values]
