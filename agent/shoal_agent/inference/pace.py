"""How long a model's batches take, and how many rows are best. Pure: measured points and observations come in."""

from collections.abc import Sequence
from typing import Final

_GOOD_SHARE: Final = 0.95
"""A batch this near to the best throughput is as good, and sooner done."""
_BATCH_US: Final = 400
"""What a batch costs beside the model, about (agent and worker together, measured with three networks): the quicker a model, the more it gains by larger ones."""
_NEW_SHARE: Final = 0.2
_MAX_DRIFT: Final = 16.0

Point = tuple[int, int]
"""Rows of a batch, and the microseconds that it took."""


def best_rows(points: Sequence[Point], limit: int) -> int:
    """The smallest batch that is nearly as productive as the most productive one; `limit` without points."""
    rates = {rows: rows / (us + _BATCH_US) for rows, us in points if rows <= limit}
    if not rates:
        return limit
    good = _GOOD_SHARE * max(rates.values())
    return min(rows for rows, rate in rates.items() if rate >= good)


class Pace:
    """Predicts the time of a batch: the measured points, times how much slower batches are lately.

    Args:
        points: of a calibration, any order; none: what is observed is all there is.
        limit: rows of the largest batch.

    Attributes:
        best_rows: how many rows a batch should have.
        best_s: how long a batch of so many takes; 0.0: not known.
        row_s: what one row takes when many wait; 0.0: not known.
    """

    def __init__(self, points: Sequence[Point] = (), *, limit: int) -> None:
        self.points = tuple(sorted(points))
        self.best_rows = best_rows(self.points, limit)
        self._drift = 1.0
        self.best_s = self.batch_s(self.best_rows)
        self.row_s = self.best_s / self.best_rows

    @property
    def is_known(self) -> bool:
        """Whether there is anything to predict from."""
        return bool(self.points)

    def batch_s(self, rows: int) -> float:
        """How long a batch of so many rows takes; 0.0: not known."""
        return self._base_s(rows) * self._drift

    def observe(self, rows: int, seconds: float) -> None:
        """A batch took so long."""
        if not self.points:
            self.points = ((rows, max(1, round(seconds * 1e6))),)
        else:
            ratio = min(max(seconds / self._base_s(rows), 1 / _MAX_DRIFT), _MAX_DRIFT)
            self._drift += _NEW_SHARE * (ratio - self._drift)
        self.best_s = self.batch_s(self.best_rows)
        self.row_s = self.best_s / self.best_rows

    def _base_s(self, rows: int) -> float:
        """Between two points on the line through them, outside as the nearest point's time a row."""
        if not self.points:
            return 0.0
        if len(self.points) == 1:
            # Unknown how it grows: a batch is taken to cost the same, until more rows than that are asked for.
            only_rows, us = self.points[0]
            return us * max(1.0, rows / only_rows) / 1e6
        smaller, larger = self.points[0], self.points[-1]
        for point in self.points:
            if point[0] <= rows:
                smaller = point
            if point[0] >= rows:
                larger = point
                break
        if smaller[0] == larger[0]:
            return smaller[1] * max(1.0, rows / smaller[0]) / 1e6
        if rows > larger[0]:
            return larger[1] * rows / larger[0] / 1e6
        share = (rows - smaller[0]) / (larger[0] - smaller[0])
        return (smaller[1] + share * (larger[1] - smaller[1])) / 1e6
