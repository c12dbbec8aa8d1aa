"""How fast, and at which time of day, chunks may be fetched: a bandwidth cap and a maintenance window.

Deciding is pure; `Allowance.wait` sleeps as long as that says. What was subscribed to before the window closed still
comes; chunks that a broker does not retain come when the controller sends them, and are not slowed down.
"""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from shoal_agent.errors import ConfigError

_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_DAY_S: Final = 86_400
_LOOK_AGAIN_S: Final = 60.0
"""The clock may be set while we wait for an hour of the day."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of each day, in seconds since midnight of the board's local time; it may go over midnight."""

    start_s: int
    end_s: int
    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "22:00-05:30".

        Raises:
            ConfigError: it is not like that, or is empty.
        """
        found = _WINDOW.fullmatch(text)
        if found is None:
            raise ConfigError(f"[updates] window {text!r} must be like 22:00-05:30")
        start_h, start_m, end_h, end_m = map(int, found.groups())
        start_s, end_s = start_h * 3600 + start_m * 60, end_h * 3600 + end_m * 60
        if start_s == end_s:
            raise ConfigError(
                f"[updates] window {text!r} is empty; without the key it is always open"
            )
        return cls(start_s, end_s, text)

    def opens_in_s(self, of_day_s: int) -> int:
        """How long until it is open; 0: it is."""
        since_start_s = (of_day_s - self.start_s) % _DAY_S
        if since_start_s < (self.end_s - self.start_s) % _DAY_S:
            return 0
        return _DAY_S - since_start_s


class Allowance:
    """What fetching may take.

    Args:
        bytes_per_s: on the average, and for no longer than a second more; 0: any.
        window: when; None: always.
        clock: seconds that only grow.
        of_day: seconds since midnight, local time.

    Attributes:
        waiting: how many wait for it at the moment.
    """

    def __init__(
        self,
        bytes_per_s: int = 0,
        window: Window | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        of_day: Callable[[], int] = lambda: _seconds_of_day(time.localtime()),
    ) -> None:
        self.waiting = 0
        self._bytes_per_s = bytes_per_s
        self._window = window
        self._clock = clock
        self._of_day = of_day
        self._free_at_s = clock()

    def why_not_now(self) -> str:
        """Why nothing may be fetched now; "": it may."""
        if self._window is None or self._window.opens_in_s(self._of_day()) == 0:
            return ""
        return f"waits for the window {self._window.text}"

    def delay_s(self, size_bytes: int) -> float:
        """Take so many bytes; how long to wait before they are asked for."""
        if not self._bytes_per_s:
            return 0.0
        now_s = self._clock()
        # A second of quiet may be made up for, no more.
        starts_s = max(self._free_at_s, now_s - 1.0)
        self._free_at_s = starts_s + size_bytes / self._bytes_per_s
        return max(0.0, starts_s - now_s)

    def give_back(self, size_bytes: int) -> None:
        """So many bytes that were taken did not come."""
        if self._bytes_per_s:
            self._free_at_s -= size_bytes / self._bytes_per_s

    async def wait(self, size_bytes: int) -> None:
        """Return when so many bytes may be asked for."""
        self.waiting += 1
        try:
            await asyncio.sleep(self.delay_s(size_bytes))
            while self._window is not None:
                closed_s = self._window.opens_in_s(self._of_day())
                if closed_s == 0:
                    return
                await asyncio.sleep(min(closed_s, _LOOK_AGAIN_S))
        finally:
            self.waiting -= 1


def _seconds_of_day(now: time.struct_time) -> int:
    return now.tm_hour * 3600 + now.tm_min * 60 + min(now.tm_sec, 59)
