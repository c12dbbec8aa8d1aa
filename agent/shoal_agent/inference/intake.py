"""Lets requests in, or refuses them at once, and sees them out: answered, too late, or given up by their callers.

On the way of every request: it costs what stands here, so calls and look-ups are few.
"""

import asyncio
from typing import Final

from shoal_agent.inference.backlog import Request
from shoal_agent.inference.deadlines import Deadlines
from shoal_agent.inference.dispatch import Dispatcher
from shoal_agent.inference.errors import BadInputError, DeadlineError, QueueFullError
from shoal_agent.inference.served import EngineStats, Release

_AT_LEAST_S: Final = 0.001


class Intake:
    """The way into the queues.

    Args:
        dispatcher: is told what waits.
        stats: counted into.
        queue_limit: rows that may wait for one release.
    """

    def __init__(self, dispatcher: Dispatcher, stats: EngineStats, *, queue_limit: int) -> None:
        self._dispatcher = dispatcher
        self._lanes = dispatcher.lanes
        self._stats = stats
        self._queue_limit = queue_limit
        self._deadlines = Deadlines(asyncio.get_running_loop(), self._expire)

    def accept(self, release: Release, request: Request) -> None:
        """Queue it; whoever waits for it calls `leave` in the end.

        Raises:
            BadInputError: it has no rows, or more than may ever wait.
            QueueFullError: it has no room, or would be done too late.
        """
        backlog, rows = release.backlog, request.rows
        if not 1 <= rows <= self._queue_limit:
            raise BadInputError(f"{rows} rows; 1 to {self._queue_limit} are allowed")
        if backlog.rows + rows > self._queue_limit or not self._lanes.is_soon_enough(
            release, request
        ):
            self._check_room(release, request)
        backlog.push(request)
        release.waiting.add(request)
        self._deadlines.watch(request)
        self._stats.requests += 1
        release.used_at = request.arrived
        if release.is_evicted:
            self._dispatcher.wake()
        else:
            self._lanes.offer(release)

    def leave(self, release: Release, request: Request) -> None:
        """Nobody waits for it any more."""
        request.over = True
        waiting = release.waiting
        waiting.discard(request)
        self._deadlines.forget(request)
        if request.done.done() and not request.done.cancelled():
            release.count(request.done.exception())
        if not waiting and release.is_going:
            self._dispatcher.wake()

    def _check_room(self, release: Release, request: Request) -> None:
        rows, now = request.rows, request.arrived
        if not release.backlog.has_room(rows):
            self._stats.refused += 1
            wait_s = self._lanes.eta_s(release, request.priority, 0, now)
            raise QueueFullError(
                f"{release.backlog.rows} rows are waiting", retry_after_s=max(wait_s, _AT_LEAST_S)
            )
        eta_s = self._lanes.eta_s(release, request.priority, rows, now)
        has_s = request.deadline - now
        if eta_s > has_s:
            self._stats.refused += 1
            raise QueueFullError(
                f"it would be done in {eta_s:.3g} s, later than the {has_s:.3g} s that it may take",
                retry_after_s=max(eta_s - has_s, _AT_LEAST_S),
            )

    def _expire(self, request: Request) -> None:
        request.over = True
        if not request.done.done():
            self._stats.expired += 1
            where = "was running" if request.is_running else "was still waiting"
            request.done.set_exception(DeadlineError(f"it {where} when its time was over"))
