"""Gives a worker one batch after the other, two at most under way. It has no task: it is called, and calls back.

Which release and how many rows is decided here, from queues, pace and fairness; keeping the worker alive is `dispatch`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from shoal_agent.inference.backlog import Piece, Request
from shoal_agent.inference.batch import Ran
from shoal_agent.inference.batching import batch_of
from shoal_agent.inference.errors import InferenceError, LateBatchError, WorkerLostError
from shoal_agent.inference.fairness import Turns
from shoal_agent.inference.served import EngineStats, Release
from shoal_agent.inference.worker import Worker

GRACE_S: Final = 1.0
"""What a worker has for stopping a late batch itself, before it is killed."""
SHORT_BATCH_S: Final = 0.02
"""Longer ones gain nothing by lying ready in the worker, and would keep what is urgent waiting."""
LANES: Final = 2
"""Batches under way: one runs, and a full one may wait for it in the worker."""


@dataclass(slots=True, eq=False)
class _Run:
    """A batch under way. `rest` runs after it, piece by piece, because together they failed."""

    worker: Worker
    release: Release
    batch: list[Piece]
    rows: int
    guess_s: float
    rest: Sequence[Piece]


class Lanes:
    """Takes what waits in the releases' queues.

    What is asked within one turn of the event loop goes together; the end of a batch starts the next one.

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
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._turns = Turns()
        self._worker: Worker | None = None
        self._runs: list[_Run] = []
        self._under_way = 0
        self._busy_until = 0.0
        self._is_looking = False
        self._ended = asyncio.Event()

    @property
    def is_busy(self) -> bool:
        """A batch is under way."""
        return bool(self._runs)

    def use(self, worker: Worker | None) -> None:
        """Batches go to this worker from now on; those under way in another one end there."""
        self._worker = worker
        self._under_way = 0
        self.wake()

    async def drained(self, worker: Worker) -> None:
        """Wait until nothing is under way in this worker, which is not used any more."""
        while any(run.worker is worker for run in self._runs):
            self._ended.clear()
            await self._ended.wait()

    def wake(self) -> None:
        """There may be something to run."""
        if not self._is_looking:
            self._is_looking = True
            self._loop.call_soon(self._look)

    def offer(self, release: Release) -> None:
        """A request waits for this release."""
        if self._is_looking or (
            self._under_way
            and (
                release.backlog.rows < release.pace.best_rows
                or not _is_worth_sending_ahead(release)
            )
        ):
            return
        self._is_looking = True
        self._loop.call_soon(self._look)

    def forget(self, release: Release) -> None:
        """It is gone."""
        self._turns.forget(release.id)

    def is_soon_enough(self, release: Release, request: Request) -> bool:
        """Whether it is done in time even if all that waits goes before it; False: `eta_s` knows better."""
        ahead_s = self._busy_until - request.arrived
        wait_s = (release.backlog.rows + request.rows) * release.pace.row_s
        if ahead_s > 0.0:
            wait_s += ahead_s
        elif self._under_way:
            return False
        return wait_s * len(self._releases) <= request.deadline - request.arrived

    def eta_s(self, release: Release, priority: int, row_count: int, now: float) -> float:
        """How long a request that comes now would take, if nothing more urgent came; 0.0: not known.

        Every model that has work gets its share of the worker. Where nothing is ahead nothing is foretold: that one
        is what the next guess is made from.
        """
        row_s = release.pace.row_s
        if not row_s or not (self._under_way or release.backlog.rows):
            return 0.0
        # A batch that should have been done may take as long again.
        ahead_s = abs(self._busy_until - now) if self._under_way else 0.0
        wait_s = ahead_s + (release.backlog.rows_before(priority) + row_count) * row_s
        if len(self._releases) == 1:
            return wait_s
        busy = sum(1 for other in self._releases.values() if other is release or other.backlog.rows)
        return wait_s * busy

    def _look(self) -> None:
        self._is_looking = False
        worker = self._worker
        while worker is not None and worker.lost is None and self._under_way < LANES:
            release, batch = self._next_batch()
            if release is None:
                return
            self._start(worker, release, batch)

    def _next_batch(self) -> tuple[Release | None, list[Piece]]:
        """What is to run now, of whose turn it is.

        While a batch runs, the next one goes to the worker only if it is full, and short: what is not yet
        given away may still grow, and be overtaken by something urgent.
        """
        now = self._clock()
        is_idle = not self._under_way
        while True:
            classes = {
                release.id: release.backlog.first_class(now)
                for release in self._releases.values()
                if (release.backlog.rows if is_idle else _is_worth_sending_ahead(release))
                and not release.is_evicted
            }
            if not classes:
                return None, []
            release = self._releases[self._turns.next(classes)]
            batch = release.backlog.take(release.pace.best_rows, now)
            if batch:
                return release, batch

    def _start(
        self, worker: Worker, release: Release, batch: list[Piece], rest: Sequence[Piece] = ()
    ) -> None:
        row_count = 0
        for piece in batch:
            row_count += piece.stop - piece.start
        guess_s = release.pace.batch_s(row_count)
        self._turns.charge(release.id, guess_s)
        now = self._clock()
        self._busy_until = max(now, self._busy_until if self._under_way else 0.0) + guess_s
        run = _Run(worker, release, batch, row_count, guess_s, rest)
        self._runs.append(run)
        self._under_way += 1
        worker.start(
            release.id,
            batch_of(batch, row_count),
            partial(self._end, run),
            timeout_s=self._under_way * self._run_timeout_s + GRACE_S,
        )

    def _end(self, run: _Run, outcome: Ran | InferenceError) -> None:
        self._runs.remove(run)
        self._ended.set()
        if run.worker is self._worker:
            self._under_way -= 1
        rest = run.rest
        if isinstance(outcome, Ran):
            self._settle(run, outcome)
        elif isinstance(outcome, WorkerLostError | LateBatchError):
            run.release.put_back([*run.batch, *rest], outcome)
            rest = ()
        elif len(run.batch) == 1:
            run.release.fail(run.batch[0].request, outcome)
        else:  # one of them may be at fault: the others must not pay for it
            rest = run.batch
        if rest:
            self._go_on(run.release, rest)
        self._look()

    def _settle(self, run: _Run, ran: Ran) -> None:
        release = run.release
        release.settle(run.batch, ran.outputs)
        took_s = ran.run_us / 1e6
        self._turns.charge(release.id, took_s - run.guess_s)
        release.pace.observe(run.rows, took_s)
        self._stats.record(run.batch, run.rows, took_s, self._clock())

    def _go_on(self, release: Release, rest: Sequence[Piece]) -> None:
        worker = self._worker
        if worker is None or worker.lost is not None:
            release.put_back(rest, WorkerLostError("the worker was lost"))
        else:
            self._start(worker, release, [rest[0]], rest[1:])


def _is_worth_sending_ahead(release: Release) -> bool:
    pace = release.pace
    return release.backlog.rows >= pace.best_rows and 0.0 < pace.best_s <= SHORT_BATCH_S
