"""Waits, but no longer than until the wall clock jumps: a clock that was set may have been what was wrong.

Certificates are judged by the wall clock. A board that was refused because its clock stood in 1970
need not wait to the end once the time has come over the network.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

LOOK_EVERY_S: Final = 5.0
JUMP_S: Final = 60.0
"""Of the wall clock against the steady one. NTP slews what is less."""


class ClockJump:
    """Remembers how the wall clock stood when something began that may fail because of it."""

    __slots__ = ("_apart_s", "_steady_s", "_wall_s")

    def __init__(
        self,
        wall_s: Callable[[], float] = time.time,
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall_s = wall_s
        self._steady_s = steady_s
        self._apart_s = wall_s() - steady_s()

    def has_come(self) -> bool:
        """Whether the wall clock was set since."""
        return abs(self._wall_s() - self._steady_s() - self._apart_s) > JUMP_S

    async def sleep(self, delay_s: float) -> None:
        """Return after `delay_s`, or within LOOK_EVERY_S once the wall clock was set."""
        until_s = self._steady_s() + delay_s
        while (left_s := until_s - self._steady_s()) > 0 and not self.has_come():  # noqa: ASYNC110 - clocks have no event
            await asyncio.sleep(min(left_s, LOOK_EVERY_S))
