"""How float weights are stepped: the width of the cells, and what a low-rank update works on.

Floats only compare and round here, element by element: the same on every machine.
"""

from __future__ import annotations

from math import frexp

import numpy as np
import numpy.typing as npt

from shoal_delta.arithmetic import Bytes, Patterns
from shoal_delta.float_steps import MAX_CELL, MIN_CELL, bits_needed
from shoal_delta.information import context_bits
from shoal_delta.low_rank_fit import matrix_bits

_BIAS = 127
# Half of the steps are below about six cells: enough to tell their distribution, few enough to learn it.
_FINEST, _COARSEST = 4, 2


def cheapest_cell(expected: Patterns, new: Patterns, side: Bytes | None = None) -> tuple[int, int]:
    """The cell with which the numbers take the fewest bits, and how many."""
    middle = _middle(expected, new)
    if middle == 0.0:
        return MAX_CELL, 0
    exponent = frexp(middle)[1] + _BIAS
    choices = range(exponent - _FINEST, exponent - _COARSEST + 1)
    cells = sorted({min(max(cell, MIN_CELL), MAX_CELL) for cell in choices})
    costs = [(bits_of(expected, new, cell, side), cell) for cell in cells]
    bits, cell = min(costs)
    return cell, bits


def bits_of(expected: Patterns, new: Patterns, cell: int, side: Bytes | None) -> int:
    """About how many bits the steps take, and those that go with them."""
    steps, raw = bits_needed(expected, new, cell)
    return raw + context_bits(steps, np.zeros_like(steps) if side is None else side)


def movements(
    old: Patterns, new: Patterns, shape: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], int] | None:
    """How far each number moved as integers, in 2^unit: (matrix, unit). None: not all are finite."""
    with np.errstate(invalid="ignore"):
        far = new.view("<f4").astype(np.float64) - old.view("<f4").astype(np.float64)
    if not np.isfinite(far).all() or not far.any():
        return None
    unit = frexp(float(np.abs(far).max()))[1] - matrix_bits(shape)
    return np.rint(np.ldexp(far, -unit)).astype(np.int64).reshape(shape), unit


def _middle(expected: Patterns, new: Patterns) -> float:
    """The median of what is not 0 of the distances; 0 when nothing else is there."""
    with np.errstate(invalid="ignore"):
        far = new.view("<f4").astype(np.float64) - expected.view("<f4").astype(np.float64)
    far = np.abs(far[np.isfinite(far) & (far != 0)])
    return float(np.partition(far, far.size // 2)[far.size // 2]) if far.size else 0.0
