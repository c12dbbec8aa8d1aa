"""The controller's wall clock, in the unit of the contract, and how much of its time counts."""

import time
from typing import Final

CLOCK_WAS_SET_MS: Final = 2000
"""Wall clock and monotonic clock drift apart by less than this between two looks."""


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class ListeningTime:
    """Tells which part of the wall clock's time must not count against nodes.

    That is the time in which nobody listened to them, and the step of a clock that was set. A machine
    that was suspended shows as such a step.
    """

    def __init__(self, at_ms: int, monotonic_s: float) -> None:
        self._at_ms = at_ms
        self._monotonic_s = monotonic_s

    def uncounted_ms(self, at_ms: int, monotonic_s: float, *, listening: bool) -> int:
        """How much of the time since the last call does not count; negative when the clock went back."""
        passed_ms = at_ms - self._at_ms
        real_ms = round((monotonic_s - self._monotonic_s) * 1000)
        self._at_ms, self._monotonic_s = at_ms, monotonic_s
        if not listening:
            return passed_ms
        step_ms = passed_ms - real_ms
        return step_ms if abs(step_ms) >= CLOCK_WAS_SET_MS else 0
