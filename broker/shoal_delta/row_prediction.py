"""What the rows of a weight update so far tell of the next one: a Gaussian model of a row.

An update is nearly a sum of a few outer products, so columns move together: how, is in the covariance
of the rows that are known. Factored as L D L^T it gives for each column the best linear prediction
from what the row's earlier columns turned out to be, and how wrong that will be. Nothing of it is
sent. Integers only; every product and sum stays below 2^62.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal_delta.ans_model import log2

Integers = npt.NDArray[np.int64]

FRACTION_BITS = 4
"""Updates are in 1/16 of a quantisation step."""
COEFFICIENT_BITS = 16
_LOG_SHIFT = 6

_FIRST_VARIANCE = 64
_PRIOR_ROWS = 2
_MAX_COVARIANCE_BITS = 20
_SHARPNESS = 8
_GUARD_BITS = 4
_MAX_COEFFICIENT = 1 << 24
_GROWTH = 3, 2
_MAX_AGE_ROWS = 256


@dataclass(frozen=True, slots=True)
class RowModel:
    """`coefficients[j, :j]` in 1/2^16 times the row's errors so far predict column `j`.

    `variance` is what to expect of each column's error, at least 1; `log_variance` its log2 in 1/16.
    """

    coefficients: Integers | None
    variance: Integers
    log_variance: Integers


def is_due(rows: int, rows_of_model: int) -> bool:
    """Whether `rows` known rows deserve another model than one of `rows_of_model`."""
    up, down = _GROWTH
    age = rows - rows_of_model
    return age > 0 and (down * rows >= up * rows_of_model or age >= _MAX_AGE_ROWS)


class Covariance:
    """Learns from one matrix of `columns`, row by row. `before` is the mean square of the last one."""

    def __init__(self, columns: int, strength: int, before: int = _FIRST_VARIANCE) -> None:
        self._columns = columns
        self._strength = strength
        self._before = before
        self._products = np.zeros((columns, columns), dtype=np.int64)
        self._squares = 0
        self._rows = 0
        self._rows_of_model = 0
        self._model: RowModel | None = None

    @property
    def rows(self) -> int:
        """How many rows are known."""
        return self._rows

    @property
    def mean_square(self) -> int:
        """Of all updates so far, at least 1."""
        prior = self._columns * _PRIOR_ROWS
        return (self._squares + self._before * prior) // (self._rows * self._columns + prior) + 1

    def add(self, updates: Integers) -> None:
        """Learn from rows [rows, columns] of updates below 2^12 in size."""
        exact = updates.astype(np.float64)
        self._products += (exact.T @ exact).astype(np.int64)
        self._squares += int((updates * updates).sum())
        self._rows += len(updates)

    def model(self) -> RowModel:
        """The model for the next rows, made anew when it is due."""
        if self._model is None or is_due(self._rows, self._rows_of_model):
            self._rows_of_model = self._rows
            self._model = self._made()
        return self._model

    def _made(self) -> RowModel:
        mean = self.mean_square
        if self._rows == 0 or self._columns == 1:
            return _model(None, np.full(self._columns, mean))
        excess = int(self._products.diagonal().max()).bit_length() - _MAX_COVARIANCE_BITS
        shift = max(0, excess)
        covariance = (self._products >> shift).astype(np.float64)
        # Squared: what many rows agree on counts, what looks like noise does not.
        power = max(1, int(covariance.trace()) // self._columns)
        squared = (covariance @ covariance).astype(np.int64) // (_SHARPNESS * power)
        prior = max(1, self._strength * mean >> shift)
        squared[np.diag_indices(self._columns)] += prior
        coefficients, pivots = _factored(squared << _GUARD_BITS)
        share = max(1, int(pivots.sum()) // self._columns)
        return _model(coefficients, np.maximum(pivots * mean // share, 1))


def _model(coefficients: Integers | None, variance: Integers) -> RowModel:
    return RowModel(coefficients, variance, log2(variance) >> _LOG_SHIFT)


def _factored(matrix: Integers) -> tuple[Integers, Integers]:
    """Unit lower L (in 1/2^16) and D of `matrix` = L D L^T; `matrix` is used up."""
    size = len(matrix)
    lower = np.zeros((size, size), dtype=np.int64)
    pivots = np.ones(size, dtype=np.int64)
    for column in range(size):
        pivot = max(1, int(matrix[column, column]))
        pivots[column] = pivot
        below = matrix[column + 1 :, column].copy()
        factors = np.clip((below << COEFFICIENT_BITS) // pivot, -_MAX_COEFFICIENT, _MAX_COEFFICIENT)
        lower[column + 1 :, column] = factors
        matrix[column + 1 :, column + 1 :] -= factors[:, None] * below >> COEFFICIENT_BITS
    return lower, pivots
