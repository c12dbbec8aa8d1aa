"""Mode 9: numbers through the row coder, as bytes and back. See `row_coder` for how they are coded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shoal_delta.ans_model import log2
from shoal_delta.arithmetic import Bytes
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.row_coder import (
    MAX_COLUMNS,
    MAX_LANE_BITS,
    STRENGTHS,
    Integers,
    Matrix,
    effort,
    walk,
)
from shoal_delta.spread_tables import MAX_REACH, SCALE_BITS
from shoal_delta.wire import Cursor, varint

MAX_MODEL_BYTES = 1 << 17
# A hostile stream must not cost more than some seconds.
MAX_EFFORT = 3 << 16

_STATE_BYTES, _WORD_BYTES, _WORD_BITS = 4, 2, 16
_LOW = 1 << _WORD_BITS
_SLOTS = (1 << SCALE_BITS) - 1
_RAW_BITS = 8
_BYTES_A_LANE = 512
_USUAL_LANE_BITS = 6

Expected = npt.NDArray[np.int8]


# The usual one first.
_TRIED_STRENGTHS = (5, 8, 2)
# Few lanes take long: to find out whether it pays, so many do.
_TRIAL_LANE_BITS = 4
# Another strength may save a thirty-second.
_HOPE_SHIFT = 5


def encode(
    numbers: Bytes, sizes: Sequence[tuple[int, int]], expected: Expected | None, beat: int
) -> tuple[bytes, bytes] | None:
    """(model, stream) of signed `numbers`.

    None when that takes too long to decode or has no hope to `beat` so many bytes. `sizes` are
    (numbers, columns) of the matrices they fill one after the other, `expected` what each number
    should be, in 1/16.
    """
    if not any(columns > 1 for _, columns in sizes):
        return None
    values = numbers.view(np.int8).astype(np.int64)
    centres = _centres(expected, values.size)
    reach = _reach(values)
    lane_bits = _lane_bits(values)
    shapes = [_shape(size, columns) for size, columns in sizes]
    tried: list[Integers] = []
    for strength in _TRIED_STRENGTHS:
        matrices = [Matrix(*shape, strength) for shape in shapes]
        if effort(matrices, 1 << lane_bits) > MAX_EFFORT:
            return None
        meter = _Meter(values, reach, [matrix.size for matrix in matrices])
        walk(matrices, centres, reach, 1 << max(lane_bits, _TRIAL_LANE_BITS), meter)
        tried.append(meter.costs)
        if int(tried[0].sum()) >> 13 > beat + (beat >> _HOPE_SHIFT):
            return None
    best = np.argmin(tried, axis=0)
    matrices = [
        Matrix(*shape, _TRIED_STRENGTHS[choice]) for shape, choice in zip(shapes, best, strict=True)
    ]
    encoder = _Encoder(values, reach)
    walk(matrices, centres, reach, 1 << lane_bits, encoder)
    model = bytes([lane_bits, reach]) + b"".join(
        varint(m.columns << 1 | m.is_transposed) + bytes([m.strength]) for m in matrices
    )
    return model, encoder.stream(1 << lane_bits)


def decode(
    raw_model: bytes, stream: bytes, sizes: Sequence[int], expected: Expected | None
) -> Bytes:
    """The numbers that were encoded, for matrices of `sizes`.

    Raises:
        CorruptDeltaError: it is not what `encode` makes.
    """
    cursor = Cursor(raw_model)
    lane_bits, reach = cursor.byte(), cursor.byte()
    if lane_bits > MAX_LANE_BITS or not 1 <= reach <= MAX_REACH:
        raise CorruptDeltaError("a row coder's lanes or its reach are not possible")
    matrices = [_matrix(cursor, size) for size in sizes]
    lanes = 1 << lane_bits
    if cursor.remaining or effort(matrices, lanes) > MAX_EFFORT:
        raise CorruptDeltaError("a row coder's matrices are not possible")
    decoder = _Decoder(stream, sum(sizes), reach, lanes)
    walk(matrices, _centres(expected, sum(sizes)), reach, lanes, decoder)
    decoder.finish()
    return decoder.numbers.astype(np.uint8)


def _centres(expected: Expected | None, size: int) -> Integers:
    return np.zeros(size, dtype=np.int64) if expected is None else expected.astype(np.int64)


def _matrix(cursor: Cursor, size: int) -> Matrix:
    shape, strength = cursor.number(), cursor.byte()
    columns, is_transposed = shape >> 1, bool(shape & 1)
    if (
        not 1 <= columns <= min(size, MAX_COLUMNS)
        or (is_transposed and size % columns)
        or strength >= len(STRENGTHS)
    ):
        raise CorruptDeltaError("a row coder's matrix is not possible")
    return Matrix(size, columns, is_transposed, strength)


class _Differences:
    """The encoder's end without its stream: which symbols stand for the numbers it knows."""

    def __init__(self, values: Integers, reach: int) -> None:
        self._values = values
        self._reach = reach

    def symbols(
        self, where: Integers, rounded: Integers, mirror: Integers
    ) -> tuple[Integers, Integers, Integers]:
        """The numbers, their differences, and the symbols of these."""
        numbers = self._values[where]
        difference = _wrapped(numbers - rounded)
        folded = (difference ^ mirror) - mirror
        is_far = np.abs(folded) > self._reach
        return numbers, difference, np.where(is_far, 2 * self._reach + 1, folded + self._reach)


class _Meter(_Differences):
    """How many bits each matrix would take, in 1/1024."""

    def __init__(self, values: Integers, reach: int, sizes: Sequence[int]) -> None:
        super().__init__(values, reach)
        self._ends = np.cumsum(sizes)
        self.costs = np.zeros(len(sizes), dtype=np.int64)

    def step(
        self, where: Integers, ends: Integers, rounded: Integers, mirror: Integers
    ) -> tuple[Integers, Integers]:
        numbers, _, symbols = self.symbols(where, rounded, mirror)
        _, frequencies = _ranges(ends, symbols)
        bits = SCALE_BITS * where.size << 10
        bits += (_RAW_BITS << 10) * int((symbols > 2 * self._reach).sum())
        matrix = int(np.searchsorted(self._ends, where[0], side="right"))
        self.costs[matrix] += bits - int(log2(frequencies).sum())
        return numbers, symbols


class _Encoder(_Differences):
    """Collects what to code; rANS goes backward."""

    def __init__(self, values: Integers, reach: int) -> None:
        super().__init__(values, reach)
        self._steps: list[tuple[Integers, Integers, Integers, Integers]] = []

    def step(
        self, where: Integers, ends: Integers, rounded: Integers, mirror: Integers
    ) -> tuple[Integers, Integers]:
        numbers, difference, symbols = self.symbols(where, rounded, mirror)
        far = np.flatnonzero(symbols > 2 * self._reach)
        self._steps.append((*_ranges(ends, symbols), far, difference[far] & 0xFF))
        return numbers, symbols

    def stream(self, lanes: int) -> bytes:
        """The lanes' states and the words."""
        state = np.full(lanes, _LOW, dtype=np.int64)
        words: list[Integers] = [np.empty(0, dtype=np.int64)]
        for start, frequency, far, raw in reversed(self._steps):
            if far.size:
                words.append(_flushed(state, far, np.int64(_LOW << _WORD_BITS - _RAW_BITS)))
                state[far] = state[far] << _RAW_BITS | raw
            active = np.arange(start.size)
            words.append(_flushed(state, active, frequency << 2 * _WORD_BITS - SCALE_BITS))
            part = state[: start.size]
            part[:] = (part // frequency << SCALE_BITS) + part % frequency + start
        stream = np.concatenate(words[::-1])
        return state.astype("<u4").tobytes() + stream.astype("<u2").tobytes()


def _flushed(state: Integers, lanes: Integers, limit: Integers | np.int64) -> Integers:
    full = lanes[state[lanes] >= limit]
    words = state[full] & _LOW - 1
    state[full] >>= _WORD_BITS
    return words


class _Decoder:
    """Reads the lanes' states and words."""

    def __init__(self, stream: bytes, size: int, reach: int, lanes: int) -> None:
        if len(stream) < _STATE_BYTES * lanes or len(stream) % _WORD_BYTES:
            raise CorruptDeltaError("a row coder's stream is torn")
        self._state = np.frombuffer(stream, "<u4", lanes).astype(np.int64)
        self._words = np.frombuffer(stream, "<u2", offset=_STATE_BYTES * lanes).astype(np.int64)
        self._position = 0
        self._reach = reach
        self.numbers = np.zeros(size, dtype=np.int8)

    def step(
        self, where: Integers, ends: Integers, rounded: Integers, mirror: Integers
    ) -> tuple[Integers, Integers]:
        state = self._state[: where.size]
        slot = state & _SLOTS
        symbols = np.add.reduce(ends <= slot[:, None], axis=1) - 1
        start, frequency = _ranges(ends, symbols)
        state[:] = (state >> SCALE_BITS) * frequency + slot - start
        self._refill(np.flatnonzero(state < _LOW))
        folded = symbols - self._reach
        difference = (folded ^ mirror) - mirror
        far = np.flatnonzero(symbols > 2 * self._reach)
        if far.size:
            difference[far] = _wrapped(state[far] & 0xFF)
            state[far] >>= _RAW_BITS
            self._refill(far[state[far] < _LOW])
        numbers = _wrapped(rounded + difference)
        self.numbers[where] = numbers
        return numbers, symbols

    def finish(self) -> None:
        """Everything must have been used up."""
        if self._position != self._words.size or (self._state != _LOW).any():
            raise CorruptDeltaError("a row coder's stream does not end where it should")

    def _refill(self, short: Integers) -> None:
        end = self._position + short.size
        if end > self._words.size:
            raise CorruptDeltaError("a row coder's stream ends too early")
        words = self._words[self._position : end]
        self._state[short] = self._state[short] << _WORD_BITS | words
        self._position = end


def _ranges(ends: Integers, symbols: Integers) -> tuple[Integers, Integers]:
    """Where each symbol's range starts, and how long it is."""
    at = symbols + np.arange(0, ends.size, ends.shape[1])
    flat = ends.reshape(-1)
    start = flat[at]
    return start, flat[at + 1] - start


def _wrapped(values: Integers) -> Integers:
    return (values + 128 & 0xFF) - 128


def _shape(size: int, columns: int) -> tuple[int, int, bool]:
    """(size, columns, is_transposed) of a matrix that has `columns`: the shorter side is the row."""
    if not 1 <= columns <= size:
        columns = 1
    rows = size // columns
    if columns > MAX_COLUMNS or (rows < columns and rows * columns == size):
        is_exact = rows * columns == size and rows <= MAX_COLUMNS
        return (size, rows, True) if is_exact else (size, 1, False)
    return size, columns, False


def _reach(values: Integers) -> int:
    """What all but one in 500 do not exceed."""
    counts = np.bincount(np.abs(values), minlength=MAX_REACH + 1)
    beyond = values.size - np.cumsum(counts)
    return int(np.clip(np.argmax(beyond * 500 <= values.size) + 1, 2, MAX_REACH))


def _lane_bits(values: Integers) -> int:
    """About as many lanes as there are 512 bytes; each costs about three."""
    magnitude = int(log2(np.abs(values) + 1).sum()) >> 10
    wanted = max(1, (magnitude + values.size) // (8 * _BYTES_A_LANE))
    return min(wanted.bit_length() - 1, _USUAL_LANE_BITS)
