"""How symbols lie in the entropy coder's lanes, and what a lane remembers of those it has had.

Each lane takes neighbours, and all of them go one symbol on in a step; the last symbols may lie in a few
lanes of their own (the tail). Coding is `ans`'s and `ans_decoder`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal_delta.ans_model import SYMBOLS
from shoal_delta.arithmetic import Bytes

MAX_LANE_BITS = 10
# What a lane remembers is its activity: how large its last few symbols were.
FIRST_ACTIVITY = 16
ACTIVITY_SHIFT = 3
_MAX_MAGNITUDE = 15
_THRESHOLDS = (3, 8, 14, 22, 34, 54, 90)
MAGNITUDE = np.minimum((np.arange(SYMBOLS) + 1) // 2, _MAX_MAGNITUDE).astype(np.int64) << 4
"""Of each symbol."""
ACTIVITY = np.searchsorted(_THRESHOLDS, np.arange(SYMBOLS), side="right").astype(np.int64)
"""The class that each activity has as a context, below `ans_model.ACTIVITIES`."""

Lanes = npt.NDArray[np.int64]


def tail_lanes(lanes: int) -> int:
    """How many lanes the tail of so many has."""
    return max(1, lanes >> 4)


def laned(values: Bytes, lanes: int) -> tuple[Bytes, Bytes]:
    """What all lanes do step by step [steps, lanes], and the last step, which may be short."""
    steps = (values.size - 1) // lanes
    rest = values.size - steps * lanes
    long = values[: rest * (steps + 1)].reshape(rest, steps + 1)
    short = values[rest * (steps + 1) :].reshape(lanes - rest, steps)
    full = np.ascontiguousarray(np.concatenate([long[:, :steps], short]).T)
    return full, long[:, steps]


def unlaned(full: Bytes, last: Bytes) -> Bytes:
    """The inverse of `laned`."""
    long = np.concatenate([full[:, : last.size].T, last[:, None]], axis=1)
    return np.concatenate([long.reshape(-1), full[:, last.size :].T.reshape(-1)])


@dataclass(frozen=True, slots=True)
class Laid:
    """Symbols and their sides, step by step; the last step may be short."""

    count: int
    lane_bits: int
    rows: list[Bytes]
    sides: list[Bytes] | None

    @classmethod
    def out(cls, values: Bytes, side: Bytes | None, lane_bits: int) -> Laid:
        """In so many lanes."""
        steps, last = laned(values, 1 << lane_bits)
        if side is None:
            return cls(values.size, lane_bits, [*steps, last], None)
        side_steps, side_last = laned(side, 1 << lane_bits)
        return cls(values.size, lane_bits, [*steps, last], [*side_steps, side_last])

    def contexts(self, sides: int, *, is_active: bool = True) -> list[Lanes]:
        """The context of each symbol; with `is_active` of its lane's activity, too."""
        activity = np.full(1 << self.lane_bits, FIRST_ACTIVITY, dtype=np.int64)
        contexts = []
        for step, row in enumerate(self.rows):
            activity = activity[: row.size]
            context = ACTIVITY[activity] * sides if is_active else np.zeros(row.size, np.int64)
            contexts.append(context if self.sides is None else context + self.sides[step])
            if is_active:
                activity += (MAGNITUDE[row] - activity) >> ACTIVITY_SHIFT
        return contexts
