"""The broker's own time, in milliseconds: it goes on over restarts and never jumps. Pure.

The core counts on a monotonic clock that starts anew with the machine, and the wall clock of a board may
be wrong until the network is there. So expiries are stored on a time line of our own. It goes on
during a run as the monotonic clock does; over a restart by as much as the wall clock has moved, where
that can be believed, else not at all: then nothing expires by the time the broker was away.
"""

from __future__ import annotations

from dataclasses import dataclass

CLOCK_FLOOR_MS = 1_767_225_600_000
"""2026-01-01: a wall clock before this software was not set yet."""

CREDIBLE_ABSENCE_MS = 366 * 86_400_000
"""A broker that seems to have been away for longer rather has a wrong clock."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Between the core's seconds of this run and the milliseconds that are stored."""

    origin_s: float
    origin_ms: int

    def stored(self, at_s: float | None) -> int | None:
        """A time of the core as it is stored; None stays None."""
        return None if at_s is None else self.origin_ms + round((at_s - self.origin_s) * 1000)

    def core(self, at_ms: int | None) -> float | None:
        """A stored time as the core knows it."""
        return None if at_ms is None else self.origin_s + (at_ms - self.origin_ms) / 1000


def absence_ms(stopped_wall_ms: int, wall_ms: int) -> int | None:
    """How long the broker was away by the wall clock; None when that cannot be believed.

    A clock that was not set, that went back, or that jumped by more than a year says nothing.
    """
    if min(stopped_wall_ms, wall_ms) < CLOCK_FLOOR_MS:
        return None
    absence = wall_ms - stopped_wall_ms
    return absence if 0 <= absence <= CREDIBLE_ABSENCE_MS else None
