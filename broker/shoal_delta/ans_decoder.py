"""The steps of the entropy coder's decoder: what a board spends most of an apply on.

A step is a dozen numpy calls, each on all lanes, and for most streams a call costs more than its numbers do.
So every call writes into an array that is there already, and constants are arrays: a Python integer takes
as long to become one as the whole call does.
"""

from __future__ import annotations

import numpy as np

from shoal_delta.ans_model import ACTIVITIES, SCALE_BITS, SYMBOLS, Counts, Model
from shoal_delta.arithmetic import Bytes
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.lanes import (
    ACTIVITY,
    ACTIVITY_SHIFT,
    FIRST_ACTIVITY,
    MAGNITUDE,
    Lanes,
    laned,
    tail_lanes,
    unlaned,
)

WORD_BITS = 16
LOW = 1 << WORD_BITS
"""A state is never below this between steps."""

# Where things stand in what `_ranges` makes; the offset in the low 16 bits.
_SYMBOL_SHIFT, _MAGNITUDE_AT, _FREQUENCY_AT = 16, 24, 32

# What is worked on at once between the steps.
_CHUNK = 1 << 15

_SCALE, _SLOTS = np.array(SCALE_BITS), np.array((1 << SCALE_BITS) - 1)
_WORD, _LOW, _OFFSET = np.array(WORD_BITS), np.array(LOW), np.array(0xFFFF)
_FREQUENCY_SHIFT, _MAGNITUDE_SHIFT = np.array(_FREQUENCY_AT), np.array(_MAGNITUDE_AT)
_BYTE, _FADE = np.array(0xFF), np.array(ACTIVITY_SHIFT)


def decoded(
    stream: bytes, sizes: tuple[int, int], lanes: int, model: Model, side: Bytes | None
) -> Bytes:
    """So many symbols in the lanes, and so many behind them in the tail's.

    Raises:
        CorruptDeltaError: the stream does not begin or end as a stream does.
    """
    ranges, out = _ranges(model), []
    words = np.frombuffer(stream, "<u2").astype(np.int64)
    carried, left, padding = words, words, lanes if sizes[1] else 0
    for size, start in zip(sizes, (0, sizes[0]), strict=True):
        if size == 0:
            break
        here = None if side is None else side[start : start + size]
        decoder = _Decoder(words, lanes, model, ranges)
        out.append(_part(decoder, size, lanes, here))
        carried, left = decoder.rest()
        words, lanes = np.concatenate([carried, left]), tail_lanes(lanes)
    # Where there were more states than words to carry, zeros are left.
    if carried.any() or left.any() or left.size > padding:
        raise CorruptDeltaError("an entropy coder's stream does not end where it should")
    return np.concatenate(out)


def _part(decoder: _Decoder, size: int, lanes: int, side: Bytes | None) -> Bytes:
    steps = (size - 1) // lanes
    full = np.empty((steps, lanes), dtype=np.uint8)
    last = np.empty(size - steps * lanes, dtype=np.uint8)
    side_steps, side_last = (None, None) if side is None else laned(side, lanes)
    chunk = max(1, _CHUNK // lanes)
    for start in range(0, steps, chunk):
        here = slice(start, start + chunk)
        decoder.steps(full[here], None if side_steps is None else side_steps[here])
    decoder.steps(last[None], None if side_last is None else side_last[None])
    return unlaned(full, last)


class _Decoder:
    """The lanes' states and activities, and the words that are left."""

    def __init__(self, words: Lanes, lanes: int, model: Model, ranges: Lanes) -> None:
        states, self._words = words[: 2 * lanes], words[2 * lanes :]
        if states.size < 2 * lanes or states[1::2].min() == 0:
            raise CorruptDeltaError("an entropy coder's lanes are not possible")
        self._state = states[1::2] << WORD_BITS | states[::2]
        self._ended = self._state
        self._position = 0
        self._ranges = ranges
        self._activity = np.full(lanes, FIRST_ACTIVITY, dtype=np.int64)
        self._knows_activity = model.knows_activity
        # Where the table of each side and activity begins: without activities only of each side.
        at = (model.tables.astype(np.int64) << SCALE_BITS).reshape(ACTIVITIES, model.sides)
        self._tables = at.T[:, ACTIVITY].reshape(-1) if model.knows_activity else at[0]

    def steps(self, out: Bytes, side: Bytes | None) -> None:
        """The next symbols [steps, lanes], of the first lanes when there are fewer."""
        lanes = out.shape[1]
        if lanes < self._state.size:
            self._state, self._activity = self._state[:lanes], self._activity[:lanes]
        found = np.empty(out.shape, dtype=np.int64)
        (self._active_steps if self._knows_activity else self._plain_steps)(found, side)
        found >>= _SYMBOL_SHIFT
        # The cast keeps the low byte.
        out[:] = found

    def _plain_steps(self, found: Lanes, side: Bytes | None) -> None:
        slot = np.empty_like(self._state)
        spare = np.empty_like(slot)
        tables = None if side is None else self._tables.take(side)
        for step, ranges in enumerate(found):
            np.bitwise_and(self._state, _SLOTS, slot)
            if tables is not None:
                np.add(slot, tables[step], slot)
            self._ranges.take(slot, None, ranges, "clip")
            self._go_on(ranges, spare)

    def _active_steps(self, found: Lanes, side: Bytes | None) -> None:
        activity = self._activity
        slot, table = np.empty_like(activity), np.empty_like(activity)
        spare = np.empty_like(activity)
        first = None if side is None else side * np.int64(SYMBOLS)
        for step, ranges in enumerate(found):
            context = activity if first is None else np.add(first[step], activity, spare)
            self._tables.take(context, None, table, "clip")
            np.bitwise_and(self._state, _SLOTS, slot)
            np.add(slot, table, slot)
            self._ranges.take(slot, None, ranges, "clip")
            self._go_on(ranges, spare)
            np.right_shift(ranges, _MAGNITUDE_SHIFT, spare)
            np.bitwise_and(spare, _BYTE, spare)
            np.subtract(spare, activity, spare)
            np.right_shift(spare, _FADE, spare)
            np.add(activity, spare, activity)

    def _go_on(self, ranges: Lanes, spare: Lanes) -> None:
        """The states behind the symbols whose ranges were found."""
        state = self._state
        np.right_shift(state, _SCALE, state)
        np.right_shift(ranges, _FREQUENCY_SHIFT, spare)
        np.multiply(state, spare, state)
        np.bitwise_and(ranges, _OFFSET, spare)
        np.add(state, spare, state)
        # Not flatnonzero: its three wrappers take longer than the search.
        (short,) = np.less(state, _LOW).nonzero()
        if short.size:
            end = self._position + short.size
            if end > self._words.size:
                raise CorruptDeltaError("an entropy coder's stream ends too early")
            refilled = state[short]
            np.left_shift(refilled, _WORD, refilled)
            np.bitwise_or(refilled, self._words[self._position : end], refilled)
            state[short] = refilled
            self._position = end

    def rest(self) -> tuple[Lanes, Lanes]:
        """What the lanes' last states carry, and the words that are left."""
        carried = self._ended - LOW
        if carried.min() < 0 or carried.max() >= LOW:
            raise CorruptDeltaError("an entropy coder's stream does not end where it should")
        return carried, self._words[self._position :]


def _ranges(model: Model) -> Counts:
    """Of each table and slot, in one integer: frequency, magnitude, symbol, offset in its range."""
    out = np.empty((len(model.frequencies), 1 << SCALE_BITS), dtype=np.int64)
    of_symbol = MAGNITUDE << _MAGNITUDE_AT | np.arange(SYMBOLS) << _SYMBOL_SHIFT
    for row, frequencies in zip(out, model.frequencies, strict=True):
        starts = np.repeat(np.cumsum(frequencies) - frequencies, frequencies)
        row[:] = np.arange(1 << SCALE_BITS) - starts
        row[:] |= np.repeat(frequencies << _FREQUENCY_AT | of_symbol, frequencies)
    return out.reshape(-1)
