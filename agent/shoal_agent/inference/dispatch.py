"""Keeps a worker process running and gives it one batch after the other.

It restarts the worker within a budget, reloads what it had, and puts unanswered requests back. Who may ask
for what is the engine's matter.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import structlog

from shoal_agent.inference.backlog import Piece
from shoal_agent.inference.batching import batch_of
from shoal_agent.inference.calibrations import Calibrations
from shoal_agent.inference.errors import (
    BadInputError,
    InferenceError,
    LateBatchError,
    ModelFailedError,
    ModelRefusedError,
    NotServingError,
    WorkerLostError,
)
from shoal_agent.inference.fairness import Turns
from shoal_agent.inference.limits import RestartBudget
from shoal_agent.inference.pace import Pace, Point
from shoal_agent.inference.process_worker import ProcessWorker
from shoal_agent.inference.served import EngineStats, Release
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.signature import Forms
from shoal_agent.inference.thread_worker import ThreadWorker
from shoal_agent.inference.trial import LOAD_TIMEOUT_S
from shoal_agent.inference.worker import CallRefusedError, Worker

log = structlog.get_logger()

GRACE_S: Final = 1.0
"""What a worker has for stopping a late batch itself, before it is killed."""
SHORT_BATCH_S: Final = 0.02
"""Longer ones gain nothing by lying ready in the worker, and would keep what is urgent waiting."""
LANES: Final = 2
"""Batches under way: one runs, and a full one may wait for it in the worker."""
_INSTALL_ATTEMPTS: Final = 3
_LOAD_CRASHES: Final = 3
"""A release that the worker did not survive so often in a row is left out of the next one."""


class Dispatcher:
    """Runs what waits in the releases' queues.

    Args:
        stats: counted into.
        max_batch: rows that run at once.
        python: the interpreter of the worker.
        settings: how the worker runs models.
        calibrations: what is known of how fast releases are here.

    Attributes:
        releases: what is loaded, by id; the engine adds, retired ones disappear when they are drained.
        worker: the one that runs, if one does.
        halted: why nothing can run at the moment.
    """

    def __init__(
        self,
        stats: EngineStats,
        *,
        max_batch: int,
        python: str,
        settings: WorkerSettings,
        calibrations: Calibrations,
    ) -> None:
        self.releases: dict[bytes, Release] = {}
        self.worker: Worker | None = None
        self.halted: str | None = None
        self._stats = stats
        self._max_batch = max_batch
        self._python = python
        self._settings = settings
        self._calibrations = calibrations
        self._clock = asyncio.get_running_loop().time
        self.budget = RestartBudget(self._clock)
        self._turns = Turns()
        self._until: dict[int, float] = {}
        self._busy_until = 0.0
        self._work = asyncio.Event()
        self._load = asyncio.Event()
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """There is something to run, to load or to unload, or nothing any more."""
        self._work.set()
        self._load.set()

    def offer(self, release: Release) -> None:
        """A request waits for this release; nobody is woken who could not take it."""
        if release.is_evicted:
            self._load.set()
        elif not self._until or self._is_worth_sending_ahead(release):
            self._work.set()

    async def run(self) -> None:
        """Start a worker whenever there is something to serve, for ever."""
        lost = False
        while True:
            while not self.releases:
                self._work.clear()
                await self._work.wait()
            if lost and (wait_s := self.budget.wait_s()):
                self.halt(f"the worker died too often; it is started again in {wait_s:.0f} s")
                await asyncio.sleep(wait_s)
            if lost:
                self.budget.spend()
                self._stats.worker_restarts += 1
            try:
                lost = False
                async with self._open_worker() as worker:
                    await self._reload(worker)
                    self.worker, self.halted = worker, None
                    self._tell_changed()
                    await self._dispatch(worker)
            except WorkerLostError as exc:
                lost = True
                log.warning("inference worker lost", reason=str(exc))
            finally:
                self.worker = None

    def _open_worker(self) -> AbstractAsyncContextManager[Worker]:
        if self._settings.kind == "thread":
            return ThreadWorker.open(self._settings, on_lost=self.wake)
        return ProcessWorker.open(python=self._python, settings=self._settings, on_lost=self.wake)

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _reload(self, worker: Worker) -> None:
        """Give a new worker everything that serves or is admitted."""
        for release in list(self.releases.values()):
            if release.broken is None and not release.is_evicted:
                await self._load_into(worker, release)

    async def _load_into(self, worker: Worker, release: Release) -> None:
        if release.id in worker.loaded:
            release.is_evicted = False
            return
        calibrate_rows = 0 if release.pace.is_known else self._max_batch
        try:
            loaded = await worker.load(
                release.id,
                release.directory,
                calibrate_rows=calibrate_rows,
                timeout_s=LOAD_TIMEOUT_S,
            )
        except CallRefusedError as exc:
            self._give_up(release, str(exc))
        except WorkerLostError as exc:
            release.load_crashes += 1
            if release.load_crashes >= _LOAD_CRASHES:
                self._give_up(release, f"loading it ends the worker: {exc}")
            raise
        else:
            release.load_crashes = 0
            release.is_evicted = False
            release.load_s = loaded.load_us / 1e6
            release.size_bytes = loaded.grown_bytes
            release.forms = Forms(loaded.signature)
            release.providers = loaded.providers
            if loaded.points:
                self.remember(release, loaded.points)

    async def evict(self, release: Release) -> bool:
        """Take a release that nobody waits for out of the worker; the next request brings it back."""
        worker = self.worker
        if worker is None or release.waiting or release.id not in worker.loaded:
            return False
        release.is_evicted = True
        with contextlib.suppress(WorkerLostError):
            await worker.unload(release.id)
        self.wake()
        return True

    def remember(self, release: Release, points: Sequence[Point]) -> None:
        """This is how fast it is here."""
        release.pace = Pace(points, limit=self._max_batch)
        self._calibrations.put(release.id, points)

    async def install(self, release: Release) -> None:
        """Bring a release of `releases` into the worker that runs, which may have to start for it.

        Raises:
            ModelRefusedError: it does not load.
            WorkerLostError: no worker runs, or it died of something.
        """
        for _ in range(_INSTALL_ATTEMPTS):
            worker = await self._running_worker()
            with contextlib.suppress(WorkerLostError):
                await self._load_into(worker, release)
                if release.broken is None:
                    return
            if release.broken is not None:
                raise ModelRefusedError(release.broken)
        raise WorkerLostError("the worker died while the release was loaded")

    async def _running_worker(self) -> Worker:
        self.wake()
        while self.worker is None or self.worker.lost is not None:
            if self.halted is not None:
                raise WorkerLostError(self.halted)
            await self._changed.wait()
        return self.worker

    def halt(self, reason: str) -> None:
        """Nothing can run for now: whoever waits is told the reason."""
        self.halted = reason
        self._tell_changed()
        for release in self.releases.values():
            release.fail_all(NotServingError(reason))

    def _give_up(self, release: Release, reason: str) -> None:
        log.error("a release cannot be loaded", release=release.id.hex()[:12], reason=reason)
        release.broken = reason
        release.fail_all(NotServingError(reason))

    # ------------------------------------------------------------------ batches
    async def _dispatch(self, worker: Worker) -> None:
        """Run batches until nothing is left to serve.

        Raises:
            WorkerLostError: with every unanswered request back in its queue.
        """
        self._until.clear()
        async with asyncio.TaskGroup() as lanes:
            for number in range(LANES):
                lanes.create_task(self._run_lane(worker, number), name=f"engine.lane-{number}")
            lanes.create_task(self._bring_back(worker), name="engine.bring-back")
        if worker.lost is not None:
            raise WorkerLostError(worker.lost)

    async def _run_lane(self, worker: Worker, number: int) -> None:
        while worker.lost is None:
            if number == 0:
                await self._unload_drained(worker)
            if not self.releases:
                self.wake()
                return
            release, batch = self._next_batch()
            if release is None:
                self._work.clear()
                await self._work.wait()
                continue
            try:
                await self._run_batch(worker, release, batch, number)
            finally:
                self._until.pop(number, None)

    async def _bring_back(self, worker: Worker) -> None:
        """Load what was evicted and is asked for again, beside the batches of the others."""
        while worker.lost is None and self.releases:
            asked = [r for r in self.releases.values() if r.is_evicted and r.is_wanted]
            if not asked:
                self._load.clear()
                await self._load.wait()
                continue
            with contextlib.suppress(WorkerLostError):
                await self._load_into(worker, asked[0])
            # What does not load now, for want of memory say, may when it is asked for again.
            asked[0].broken = None
            self.wake()

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
                for release in self.releases.values()
                if (release.backlog.rows if is_idle else self._is_worth_sending_ahead(release))
                and not release.is_evicted
            }
            if not classes:
                return None, []
            release = self.releases[self._turns.next(classes)]
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
        if len(self.releases) == 1:
            return wait_s
        busy = sum(1 for other in self.releases.values() if other is release or other.backlog.rows)
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
            await self._load_into(worker, release)
            ran = await worker.run(
                release.id,
                batch_of(batch, row_count),
                timeout_s=len(self._until) * self._settings.run_timeout_s + GRACE_S,
            )
        except (WorkerLostError, LateBatchError) as exc:
            release.put_back(batch, exc)
            return
        except CallRefusedError as exc:
            self._fail(release, batch, ModelFailedError(str(exc)))
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

    async def _unload_drained(self, worker: Worker) -> None:
        drained = [r for r in self.releases.values() if r.retired and not r.waiting]
        for release in drained:
            del self.releases[release.id]
            self._turns.forget(release.id)
            if release.id in worker.loaded:
                with contextlib.suppress(WorkerLostError):
                    await worker.unload(release.id)
