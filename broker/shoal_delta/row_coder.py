"""The entropy coder for weight updates that are matrices: predicted from the rows so far, then rANS.

A block of rows is coded at once, a lane a row, column by column. Both ends learn the same from what
was coded: how columns move together (`row_prediction`), how far predictions miss (`spread_tables`).
Nothing but the shapes of the matrices is sent. Format: docs/delta-format.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shoal_delta.ans_model import log2
from shoal_delta.row_prediction import COEFFICIENT_BITS, FRACTION_BITS, Covariance, RowModel, is_due
from shoal_delta.spread_tables import FRACTIONS, SPREADS, SpreadTables

MAX_COLUMNS = 512
MAX_LANE_BITS = 8

_FIRST_BLOCK_ROWS = 4
STRENGTHS = tuple((8, 11)[code & 1] << (code >> 1) for code in range(16))
_ONE = 1 << FRACTION_BITS
_MAX_EXPECTED = 127 << FRACTION_BITS
# How a row's own spread is followed: squared errors over what was expected, in 1/64.
_RATIO_BITS = 6
_RATIO_LIMIT = 16 << _RATIO_BITS
_MAX_WEIGHT, _FIRST_COLUMNS, _MEMORY_COLUMNS = 1024, 6, 16
_SPREAD_BITS = 3
_LOG_RATIO = (log2(np.arange(_RATIO_LIMIT + 1)) >> 6) - (_RATIO_BITS << 4)
# How often the tables take in what came: it costs a board as much as some columns.
_LEARN_COLUMNS = 16
# A factoring of so many multiplications takes as long as a step.
_FACTORING_SHIFT = 16

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Matrix:
    """`size` numbers of a stream in rows of `columns`, or `is_transposed` in columns of size / `columns`.

    `strength` is an index: how many rows of doubt the prediction begins with.
    """

    size: int
    columns: int
    is_transposed: bool
    strength: int

    @property
    def rows(self) -> int:
        """Its rows; the last one may be shorter."""
        return -(-self.size // self.columns)

    @property
    def steps_between(self) -> tuple[int, int]:
        """How far the next row and the next column are."""
        return (1, self.rows) if self.is_transposed else (self.columns, 1)


class Coder(Protocol):
    """One end: says (encoder) or finds out (decoder) what the numbers at `where` are.

    Each is `rounded` + a difference, whose sign is changed where `mirror` is -1 and not 0. Symbols
    stand for such differences; symbol s of row i has the range from `ends[i, s]` to `ends[i, s + 1]`.
    """

    def step(
        self, where: Integers, ends: Integers, rounded: Integers, mirror: Integers
    ) -> tuple[Integers, Integers]:
        """The numbers, and the symbols that stood for them."""
        ...


def walk(
    matrices: Sequence[Matrix], expected: Integers, reach: int, lanes: int, coder: Coder
) -> None:
    """Take `coder` through all numbers, learning on the way. `expected` is in 1/16."""
    tables = SpreadTables(reach)
    start, mean_square = 0, None
    for matrix in matrices:
        strength = STRENGTHS[matrix.strength]
        known = (
            Covariance(matrix.columns, strength)
            if mean_square is None
            else Covariance(matrix.columns, strength, mean_square)
        )
        ratio = 1 << _RATIO_BITS
        for count in _blocks(matrix.rows, lanes):
            ratio = _block(matrix, start, count, known, ratio, expected, tables, coder)
        mean_square = known.mean_square
        start += matrix.size


def _block(
    matrix: Matrix,
    start: int,
    count: int,
    known: Covariance,
    first_ratio: int,
    expected: Integers,
    tables: SpreadTables,
    coder: Coder,
) -> int:
    """The next `count` rows; what their errors were, over what was expected, in 1/64."""
    model = known.model()
    row_step, column_step = matrix.steps_between
    at = start + (known.rows + np.arange(count)) * row_step
    updates = np.zeros((count, matrix.columns), dtype=np.int64)
    errors = np.zeros_like(updates)
    ratio = np.full(count, first_ratio, dtype=np.int64)
    short = matrix.rows * matrix.columns - matrix.size
    is_last = known.rows + count == matrix.rows
    for column in range(matrix.columns):
        active = count - (is_last and column >= matrix.columns - short)
        if active == 0:
            break
        if column % _LEARN_COLUMNS == 0:
            tables.learn()
        where = at[:active] + column * column_step
        base = expected[where]
        predicted = _predicted(model, errors[:active], column)
        centre = _limited(predicted + base, _MAX_EXPECTED) + (_ONE >> 1)
        rounded = centre >> FRACTION_BITS
        fraction = (centre & _ONE - 1) - (_ONE >> 1)
        mirror = fraction >> FRACTION_BITS
        own = ratio[:active]
        spread = _LOG_RATIO[own] + int(model.log_variance[column]) >> _SPREAD_BITS
        context = np.minimum(np.maximum(spread, 0), SPREADS - 1) * FRACTIONS
        context += fraction ^ mirror
        numbers, symbols = coder.step(where, tables.ends[context], rounded, mirror)
        tables.note(context, symbols)
        update = (numbers << FRACTION_BITS) - base
        error = update - predicted
        updates[:active, column], errors[:active, column] = update, error
        weight = max(_MAX_WEIGHT // (column + _FIRST_COLUMNS), _MAX_WEIGHT // _MEMORY_COLUMNS)
        missed = (error * error << _RATIO_BITS) // int(model.variance[column])
        own += (np.minimum(missed, _RATIO_LIMIT) - own) * weight >> 10
    known.add(updates)
    return max(1, int(ratio.sum()) // count)


def _predicted(model: RowModel, errors: Integers, column: int) -> Integers:
    if model.coefficients is None:
        return np.zeros(len(errors), dtype=np.int64)
    total: Integers = errors[:, :column] @ model.coefficients[column, :column]
    return _limited(total + (1 << COEFFICIENT_BITS - 1) >> COEFFICIENT_BITS, 2 * _MAX_EXPECTED)


def _limited(values: Integers, limit: int) -> Integers:
    # np.clip takes three times as long on a few numbers.
    return np.minimum(np.maximum(values, -limit), limit)


def _blocks(rows: int, lanes: int) -> Iterator[int]:
    """How many rows are coded at once: 4, then half as many as are known, up to `lanes`."""
    done = 0
    while done < rows:
        grown = done >> 1 & -_FIRST_BLOCK_ROWS
        count = min(lanes, max(_FIRST_BLOCK_ROWS, grown), rows - done)
        yield count
        done += count


def effort(matrices: Sequence[Matrix], lanes: int) -> int:
    """How long `walk` takes, in steps of some 0.1 ms on a desktop: a limit is set to it beforehand."""
    total = 0
    for matrix in matrices:
        done = known = 0
        for count in _blocks(matrix.rows, lanes):
            if is_due(done, known):
                total += matrix.columns**3 >> _FACTORING_SHIFT
                known = done
            total += matrix.columns
            done += count
    return total
