"""Gives a worker one batch after the other, two at most under way. Pure waiting and choosing; the worker is a port.

Which release and how many rows is decided here, from queues, pace and fairness; keeping the worker alive is `dispatch`.
"""

import asyncio
from typing import Final

from shoal_agent.inference.backlog import Piece
from shoal_agent.inference.batching import batch_of
from shoal_agent.inference.errors import (
    BadInputError,
    InferenceError,
    LateBatchError,
    ModelFailedError,
    WorkerLostError,
)
from shoal_agent.inference.fairness import Turns
from shoal_agent.inference.served import EngineStats, Release
from shoal_agent.inference.worker import Worker

GRACE_S: Final = 1.0
"""What a worker has for stopping a late batch itself, before it is killed."""
SHORT_BATCH_S: Final = 0.02
"""Longer ones gain nothing by lying ready in the worker, and would keep what is urgent waiting."""
LANES: Final = 2
"""Batches under way: one runs, and a full one may wait for it in the worker."""


class Lanes:
    """Takes what waits in the releases' queues.

    Args:
        releases: by id; whoever adds and removes them says so by `wake`.
        stats: counted into.
        run_timeout_s: what a batch may take.
    """

    def __init__(
        self, releases: dict[bytes, Release], stats: EngineStats, *, run_timeout_s: float
    ) -> None:
        self._releases = releases
        self._stats = stats
        self._run_timeout_s = run_timeout_s
        self._clock = asyncio.get_running_loop().time
        self._turns = Turns()
        self._until: dict[int, float] = {}
        self._busy_until = 0.0
        self._work = asyncio.Event()

    @property
    def is_busy(self) -> bool:
        """A batch is under way."""
        return bool(self._until)

    def wake(self) -> None:
        """There is something to run, or nothing any more."""
        self._work.set()

    def offer(self, release: Release) -> None:
        """A request waits for this release; nobody is woken who could not take it."""
        if not self._until or self._is_worth_sending_ahead(release):
            self._work.set()

    def forget(self, release: Release) -> None:
        """It is gone."""
        self._turns.forget(release.id)

    async def run(self, worker: Worker) -> None:
        """Run batches until nothing is left to serve or the worker is lost; what it had is then back in its queue."""
        self._until.clear()
        async with asyncio.TaskGroup() as lanes:
            for number in range(LANES):
                lanes.create_task(self._run_lane(worker, number), name=f"engine.lane-{number}")

    async def _run_lane(self, worker: Worker, number: int) -> None:
        while worker.lost is None and self._releases:
            release, batch = self._next_batch()
            if release is None:
                self._work.clear()
                await self._work.wait()
                continue
            try:
                await self._run_batch(worker, release, batch, number)
            finally:
                self._until.pop(number, None)
        self._work.set()  # the other one is to see it, too

    def _next_batch(self) -> tuple[Release | None, list[Piece]]:
        """What is to run now, of whose turn it is.

        While a batch runs, the next one goes to the worker only if it is full, and short: what is not yet
        given away may still grow, and be overtaken by something urgent.
        """
        now = self._clock()
        is_idle = not self._until
        while True:
            classes = {
                release.id: release.backlog.first_class(now)
                for release in self._releases.values()
                if (release.backlog.rows if is_idle else self._is_worth_sending_ahead(release))
                and not release.is_evicted
            }
            if not classes:
                return None, []
            release = self._releases[self._turns.next(classes)]
            batch = release.backlog.take(release.pace.best_rows, now)
            if batch:
                return release, batch

    def _is_worth_sending_ahead(self, release: Release) -> bool:
        rows_wanted = release.pace.best_rows
        if release.backlog.rows < rows_wanted:
            return False
        return release.pace.is_known and release.pace.batch_s(rows_wanted) <= SHORT_BATCH_S

    def eta_s(self, release: Release, priority: int, row_count: int) -> float:
        """How long a request that comes now would take, if nothing more urgent came; 0.0: not known.

        Every model that has work gets its share of the worker. Where nothing is ahead nothing is foretold: that one
        is what the next guess is made from.
        """
        row_s = release.pace.row_s
        if not row_s or not (self._until or release.backlog.rows):
            return 0.0
        # A batch that should have been done may take as long again.
        ahead_s = abs(self._busy_until - self._clock()) if self._until else 0.0
        wait_s = ahead_s + (release.backlog.rows_before(priority) + row_count) * row_s
        if len(self._releases) == 1:
            return wait_s
        busy = sum(1 for other in self._releases.values() if other is release or other.backlog.rows)
        return wait_s * busy

    async def _run_batch(
        self, worker: Worker, release: Release, batch: list[Piece], lane: int
    ) -> None:
        row_count = sum(piece.stop - piece.start for piece in batch)
        guess_s = release.pace.batch_s(row_count)
        self._turns.charge(release.id, guess_s)
        started = self._clock()
        self._busy_until = max(started, self._busy_until if self._until else 0.0) + guess_s
        self._until[lane] = self._busy_until
        try:
            ran = await worker.run(
                release.id,
                batch_of(batch, row_count),
                timeout_s=len(self._until) * self._run_timeout_s + GRACE_S,
            )
        except (WorkerLostError, LateBatchError) as exc:
            release.put_back(batch, exc)
            return
        except (BadInputError, ModelFailedError) as exc:
            if len(batch) == 1:
                self._fail(release, batch, exc)
            else:  # one of them may be at fault: the others must not pay for it
                for piece in batch:
                    await self._run_batch(worker, release, [piece], lane)
            return
        release.settle(batch, ran.outputs)
        took_s = ran.run_us / 1e6
        self._turns.charge(release.id, took_s - guess_s)
        release.pace.observe(row_count, took_s)
        self._stats.batches += 1
        self._stats.items += row_count
        self._stats.busy_s += took_s

    def _fail(self, release: Release, batch: list[Piece], error: InferenceError) -> None:
        for piece in batch:
            release.fail(piece.request, error)
