"""Calls back for requests whose deadline is over: one timer for all of them, 10 ms late at most."""

import heapq
from collections.abc import Callable
from typing import Any, Final, Protocol

from shoal_agent.inference.backlog import Request

TICK_S: Final = 0.01


class Timers(Protocol):
    """The part of an event loop that is needed here."""

    def call_at(self, when: float, callback: Callable[[], object], /) -> Any:
        """Call then; the answer has `cancel`."""


class Deadlines:
    """Watches requests; those forgotten in time are not called back for.

    A timer a request would cost more than all the rest of the queue.

    Args:
        timers: the event loop.
        expired: called with each request whose deadline has passed.
    """

    def __init__(self, timers: Timers, expired: Callable[[Request], None]) -> None:
        self._timers = timers
        self._expired = expired
        self._buckets: dict[int, set[Request]] = {}
        self._order: list[int] = []
        self._timer: Any = None
        self._timer_for = 0

    def watch(self, request: Request) -> None:
        """From now on."""
        number = int(request.deadline / TICK_S) + 1
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = set()
            heapq.heappush(self._order, number)
            if self._timer is None or number < self._timer_for:
                self._arm()
        bucket.add(request)
        request.bucket = bucket

    def forget(self, request: Request) -> None:
        """It was answered, or nobody waits."""
        if request.bucket is not None:
            request.bucket.discard(request)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_for = self._order[0]
        self._timer = self._timers.call_at(self._timer_for * TICK_S, self._due)

    def _due(self) -> None:
        self._timer = None
        due = self._timer_for
        while self._order and self._order[0] <= due:
            for request in self._buckets.pop(heapq.heappop(self._order)):
                self._expired(request)
        while self._order and not self._buckets[self._order[0]]:
            del self._buckets[heapq.heappop(self._order)]
        if self._order:
            self._arm()
