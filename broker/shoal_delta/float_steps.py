"""Float32 weights as steps from their prediction: how many cells away, and where in the cell.

Training moves a weight by an amount that does not depend on its size, so the difference is counted in
cells of one width, a power of two: those counts are small and alike, and go through the entropy coder
as one byte a weight. Where in its cell a number lies is as good as random: those bits, as many as the
floats of the cell need, are sent as they are. Integers only; numbers are their bit patterns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal_delta.arithmetic import Bytes, Patterns
from shoal_delta.errors import CorruptDeltaError

MIN_CELL, MAX_CELL = 1, 254
SAME, ESCAPE = 0, 128
MAX_BITS = 32
# As signed bytes: 0 is no movement at all, 1 and -1 lead into the cell and into the one below it.
_FARTHEST_UP, _FARTHEST_DOWN = 126, -127
_MANTISSA_BITS = 23
_HIDDEN_BIT = 1 << _MANTISSA_BITS
_SIGN = 1 << 31
_INFINITY = 255
# Cells are counted in 31 bits; what lies further out counts as cell 0, and is sent whole.
_MAX_EXPONENTS = 30
_BLOCK = 1 << 16

_Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Places:
    """Which cell each number is in (negative ones below 0), which is False where it cannot be said."""

    cells: _Integers
    are_counted: npt.NDArray[np.bool_]


def encode(expected: Patterns, new: Patterns, cell: int) -> tuple[Bytes, bytes]:
    """(steps, bits) from the expected numbers to the new ones; a cell's width is 2^(`cell` - 127)."""
    steps = np.empty(new.size, dtype=np.uint8)
    values, sizes = np.empty(new.size, dtype=np.uint32), np.empty(new.size, dtype=np.uint8)
    for start in range(0, new.size, _BLOCK):
        here = slice(start, start + _BLOCK)
        steps[here], sizes[here] = _steps(expected[here], new[here], cell)
        mask = (1 << sizes[here].astype(np.int64)) - 1
        values[here] = new[here] & mask
    return steps, _packed(values, sizes)


def bits_needed(expected: Patterns, new: Patterns, cell: int) -> tuple[Bytes, int]:
    """The steps, and how many bits would go with them."""
    steps, sizes = _steps(expected, new, cell)
    return steps, int(sizes.sum(dtype=np.int64))


def decode(expected: Patterns, steps: Bytes, bits: Bytes, cell: int) -> tuple[Patterns, int]:
    """The new numbers, and how many bytes of `bits` they took.

    Raises:
        CorruptDeltaError: there are too few bits, or a step leads beyond the largest number.
    """
    out = np.empty(steps.size, dtype=np.uint32)
    position = 0
    for start in range(0, steps.size, _BLOCK):
        here = slice(start, start + _BLOCK)
        step, base = steps[here], expected[here]
        far = step.view(np.int8).astype(np.int64)
        target = _places(base, cell).cells + far - (far > 0)
        count = np.where(target < 0, -target - 1, target)
        sizes = _cell_bits(count, cell)
        sizes[step == SAME], sizes[step == ESCAPE] = 0, MAX_BITS
        raw, position = _unpacked(bits, position, sizes)
        made = _number(target, count, raw, cell)
        is_step = (step != SAME) & (step != ESCAPE)
        if (made[is_step] & (_SIGN - 1) >= _INFINITY << _MANTISSA_BITS).any():
            raise CorruptDeltaError("a step leads beyond the largest number")
        out[here] = np.select([step == SAME, step == ESCAPE], [base, raw], made)
    return out, -(-position // 8)


def _steps(expected: Patterns, new: Patterns, cell: int) -> tuple[Bytes, Bytes]:
    base, target = _places(expected, cell), _places(new, cell)
    far = target.cells - base.cells
    is_step = target.are_counted & (far >= _FARTHEST_DOWN) & (far <= _FARTHEST_UP)
    steps = np.where(is_step, far + (far >= 0), ESCAPE)
    sizes = _cell_bits(np.where(target.cells < 0, -target.cells - 1, target.cells), cell)
    sizes = np.where(is_step, sizes, MAX_BITS)
    is_same = expected == new
    return (
        np.where(is_same, SAME, steps).astype(np.uint8),
        np.where(is_same, 0, sizes).astype(np.uint8),
    )


def _places(patterns: Patterns, cell: int) -> _Places:
    magnitude = (patterns & (_SIGN - 1)).astype(np.int64)
    exponent = magnitude >> _MANTISSA_BITS
    above = exponent - cell
    are_counted = (above <= _MAX_EXPONENTS) & (exponent < _INFINITY)
    mantissa = magnitude & (_HIDDEN_BIT - 1) | _HIDDEN_BIT
    count = mantissa << np.clip(above, 0, _MAX_EXPONENTS) >> _MANTISSA_BITS
    count = np.where((above >= 0) & are_counted, count, 0)
    return _Places(np.where(patterns & _SIGN, -count - 1, count), are_counted)


def _cell_bits(count: _Integers, cell: int) -> _Integers:
    """How many bits say which float of a cell it is; `count` is the cell without its sign."""
    within = np.maximum(_MANTISSA_BITS + 1 - _bit_length(count), 0)
    return np.where(count == 0, ((cell << _MANTISSA_BITS) - 1).bit_length(), within)


def _number(target: _Integers, count: _Integers, raw: Patterns, cell: int) -> _Integers:
    """The number in cell `target` that the bits `raw` say."""
    above = _bit_length(count) - 1
    mantissa = (
        count << np.maximum(_MANTISSA_BITS - above, 0) >> np.maximum(above - _MANTISSA_BITS, 0)
    )
    magnitude = (cell + above << _MANTISSA_BITS) + (mantissa & (_HIDDEN_BIT - 1) | raw)
    magnitude = np.where(count == 0, raw, magnitude)
    return np.where(target < 0, magnitude | _SIGN, magnitude)


def _bit_length(values: _Integers) -> _Integers:
    # Exact: the values are below 2^53.
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _packed(values: Patterns, sizes: Bytes) -> bytes:
    """Each value in its number of bits, the lowest first, filled up to a whole byte."""
    ends = np.cumsum(sizes, dtype=np.int64)
    words = np.zeros(int(ends[-1]) // 32 + 2, dtype=np.uint64)
    for start in range(0, values.size, _BLOCK):
        here = slice(start, start + _BLOCK)
        at = ends[here] - sizes[here]
        shifted = values[here].astype(np.uint64) << (at & 31).astype(np.uint64)
        first = int(at[0]) >> 5
        word = (at >> 5) - first
        # Bits do not overlap, so that sums are unions; below 2^53 they are exact.
        for offset, part in ((0, shifted & 0xFFFFFFFF), (1, shifted >> 32)):
            sums = np.bincount(word + offset, weights=part.astype(np.float64))
            words[first : first + sums.size] += sums.astype(np.uint64)
    return words.astype("<u4").tobytes()[: -(-int(ends[-1]) // 8)]


def _unpacked(bits: Bytes, position: int, sizes: _Integers) -> tuple[Patterns, int]:
    """Values of so many bits each from bit `position` on, and the position after them."""
    ends = position + np.cumsum(sizes)
    end = int(ends[-1])
    if end > 8 * bits.size:
        raise CorruptDeltaError("the bits of numbers end too early")
    first = position >> 3
    piece = np.zeros((-(-end // 8) - first + 11) // 4 * 4, dtype=np.uint8)
    content = bits[first : -(-end // 8)]
    piece[: content.size] = content
    words = piece.view("<u4").astype(np.uint64)
    at = ends - sizes - 8 * first
    word = at >> 5
    both = words[word] | words[word + 1] << np.uint64(32)
    mask = (np.uint64(1) << sizes.astype(np.uint64)) - np.uint64(1)
    return (both >> (at & 31).astype(np.uint64) & mask).astype(np.uint32), end
