"""Which rows, columns or channels of an old tensor are still there in the new one.

Arrays in, `AxisMap`s out. What was kept is in the same order; a kept row may have moved a little. Sums
are of small integers, so that every machine finds the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal_delta.views import AxisMap

Numbers = npt.NDArray[np.float64]

_LEVEL = 127
_MAX_FEATURES = 1024
# More pairs of rows than this are not compared: only what agrees at both ends is.
_MAX_PAIRS = 4 << 20
# Rows that point less alike than this are not the same row, trained on.
_ALIKE = 0.5
_FRESH = -1


def aligned_axis(old: Numbers, new: Numbers, axis: int) -> AxisMap | None:
    """How `axis` of `old` became that of `new`, whose other axes are as long; None when nothing is alike."""
    before, after = (_features(array, axis) for array in (old, new))
    front = back = 0
    if len(before) * len(after) > _MAX_PAIRS:
        size = min(len(before), len(after))
        front = _run(_likeness(before[:size], after[:size]))
        back = _run(_likeness(before[::-1][: size - front], after[::-1][: size - front]))
    indices = np.full(len(after), _FRESH, dtype=np.int32)
    indices[:front] = np.arange(front)
    some, others = before[front : len(before) - back], after[front : len(after) - back]
    if len(some) * len(others) <= _MAX_PAIRS:
        indices[front : len(after) - back] = _ordered_pairs(some, others, front)
    indices[len(after) - back :] = np.arange(len(before) - back, len(before))
    return AxisMap(len(before), indices) if (indices != _FRESH).any() else None


def end_map(old_length: int, new_length: int) -> AxisMap:
    """What was there stays, as far as there is room; what is new stands at the end."""
    indices = np.full(new_length, _FRESH, dtype=np.int32)
    kept = min(old_length, new_length)
    indices[:kept] = np.arange(kept)
    return AxisMap(old_length, indices)


def seen_through(old: npt.NDArray[np.generic], axis: int, each: AxisMap) -> npt.NDArray[np.generic]:
    """`old` as a view with `each` shows it, zeros where it is new."""
    taken = np.take(old, np.maximum(each.indices, 0), axis)
    shape = [1] * old.ndim
    shape[axis] = -1
    return np.where((each.indices == _FRESH).reshape(shape), old.dtype.type(0), taken)


def _features(array: Numbers, axis: int) -> Numbers:
    """A row of small whole numbers for each index of `axis`, [length, at most `_MAX_FEATURES`]."""
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    rows = rows[:, :: max(1, rows.shape[1] // _MAX_FEATURES)]
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    return np.rint(rows / np.where(largest > 0, largest, 1) * _LEVEL)


def _likeness(before: Numbers, after: Numbers) -> Numbers:
    """The cosine of each row with the one of the same index."""
    lengths = (before * before).sum(axis=1) * (after * after).sum(axis=1)
    return np.where(lengths > 0, (before * after).sum(axis=1) / np.sqrt(np.maximum(lengths, 1)), 1)


def _run(likeness: Numbers) -> int:
    """How many at the front are alike."""
    other = np.flatnonzero(likeness < _ALIKE)
    return int(other[0]) if other.size else likeness.size


def _ordered_pairs(before: Numbers, after: Numbers, first: int) -> npt.NDArray[np.int32]:
    """The old index of each new row (from `first`), in order, such that all are most alike."""
    indices = np.full(len(after), _FRESH, dtype=np.int32)
    if not len(before) or not len(after):
        return indices
    products = before @ after.T
    lengths = (before * before).sum(axis=1)[:, None] * (after * after).sum(axis=1)
    gains = np.where(lengths > 0, products / np.sqrt(np.maximum(lengths, 1)), 0) - _ALIKE
    best = np.zeros((len(before) + 1, len(after) + 1))
    for row, gain in enumerate(gains):
        with_row = np.maximum(best[row, 1:], best[row, :-1] + gain)
        best[row + 1, 1:] = np.maximum.accumulate(with_row)
    row, column = len(before), len(after)
    while row and column:
        if best[row, column] == best[row - 1, column]:
            row -= 1
        elif best[row, column] == best[row, column - 1]:
            column -= 1
        else:
            row, column = row - 1, column - 1
            indices[column] = first + row
    return indices
