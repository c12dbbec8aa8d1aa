"""Log lines about strangers: whoever reaches the port can cause them, and must not fill a board's flash."""

from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger()

BURST: Final = 10
EVERY_S: Final = 60.0


class Complaints:
    """Ten lines at once, then one a minute, which tells how many were left out."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._room = float(BURST)
        self._filled_s = clock()
        self._left_out = 0

    def warn(self, event: str, **facts: object) -> None:
        """A line, or none."""
        now_s = self._clock()
        self._room = min(BURST, self._room + (now_s - self._filled_s) / EVERY_S)
        self._filled_s = now_s
        if self._room < 1:
            self._left_out += 1
            return
        self._room -= 1
        if self._left_out:
            facts["left_out"] = self._left_out
            self._left_out = 0
        log.warning(event, **facts)
