"""How often one may fail: the worker's restart budget and a neighbour's circuit breaker. Pure; the clock comes in."""

from collections import deque
from collections.abc import Callable
from typing import Final

Clock = Callable[[], float]

RESTARTS: Final = 5
RESTART_WINDOW_S: Final = 60.0
BREAKER_FAILURES: Final = 3
BREAKER_OPEN_S: Final = 10.0


class RestartBudget:
    """At most `limit` restarts in any `window_s` seconds."""

    def __init__(
        self, clock: Clock, *, limit: int = RESTARTS, window_s: float = RESTART_WINDOW_S
    ) -> None:
        self._clock = clock
        self._window_s = window_s
        self._spent: deque[float] = deque(maxlen=limit)

    def spend(self) -> None:
        """One restart is under way."""
        self._spent.append(self._clock())

    def wait_s(self) -> float:
        """How long until the next restart is allowed; 0: now."""
        if len(self._spent) < (self._spent.maxlen or 0):
            return 0.0
        return max(0.0, self._spent[0] + self._window_s - self._clock())


class Breaker:
    """Lets requests through until some fail in a row, then none for a while.

    After that one goes through to see (half open): its outcome closes the breaker or opens it again.
    """

    def __init__(
        self, clock: Clock, *, failures: int = BREAKER_FAILURES, open_s: float = BREAKER_OPEN_S
    ) -> None:
        self._clock = clock
        self._limit = failures
        self._open_s = open_s
        self._failures = 0
        self._closed_again_at = 0.0

    @property
    def is_open(self) -> bool:
        """Nothing may go at the moment."""
        return self._failures >= self._limit and self._clock() < self._closed_again_at

    def allows(self) -> bool:
        """Whether a request may go now; when half open, asking takes the one permission."""
        if self._failures < self._limit:
            return True
        if self.is_open:
            return False
        self._closed_again_at = self._clock() + self._open_s
        return True

    def succeeded(self) -> None:
        """The neighbour answered."""
        self._failures = 0

    def failed(self) -> None:
        """The neighbour did not."""
        self._failures = min(self._failures + 1, self._limit)
        if self._failures == self._limit:
            self._closed_again_at = self._clock() + self._open_s
