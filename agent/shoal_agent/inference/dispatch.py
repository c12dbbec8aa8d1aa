"""Keeps a worker running and loaded: restarts it within a budget, gives it back what it had, evicts and reloads.

Batches are `lanes`; who may ask for what is the engine's matter.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import structlog

from shoal_agent.inference.calibrations import Calibrations
from shoal_agent.inference.errors import (
    ModelRefusedError,
    NotServingError,
    WorkerLostError,
)
from shoal_agent.inference.lanes import Lanes
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

_INSTALL_ATTEMPTS: Final = 3
_LOAD_CRASHES: Final = 3
"""A release that the worker did not survive so often in a row is left out of the next one."""


class Dispatcher:
    """Has the releases and the worker that they run in.

    Args:
        stats: counted into.
        max_batch: rows that run at once.
        python: the interpreter of the worker.
        settings: how the worker runs models.
        calibrations: what is known of how fast releases are here.

    Attributes:
        releases: what is loaded, by id; the engine adds, retired ones disappear when they are drained.
        worker: the one that runs, if one does.
        lanes: batches.
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
        self.lanes = Lanes(self.releases, stats, run_timeout_s=settings.run_timeout_s)
        self._change = asyncio.Event()
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """There is something to run, to load or to unload, or nothing any more."""
        self._change.set()
        self.lanes.wake()

    def offer(self, release: Release) -> None:
        """A request waits for this release."""
        if release.is_evicted:
            self._change.set()
        else:
            self.lanes.offer(release)

    async def run(self) -> None:
        """Start a worker whenever there is something to serve, for ever."""
        lost = False
        while True:
            while not self.releases:
                self._change.clear()
                await self._change.wait()
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

    # ------------------------------------------------------------------ while a worker runs
    async def _dispatch(self, worker: Worker) -> None:
        """Run batches until nothing is left to serve.

        Raises:
            WorkerLostError: with every unanswered request back in its queue.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.lanes.run(worker), name="engine.lanes")
            tasks.create_task(self._load_and_unload(worker), name="engine.load-and-unload")
        if worker.lost is not None:
            raise WorkerLostError(worker.lost)

    async def _load_and_unload(self, worker: Worker) -> None:
        """Beside the batches: unload what is drained, load what was evicted and is asked for again."""
        while worker.lost is None and self.releases:
            self._change.clear()
            for release in [r for r in self.releases.values() if r.retired and not r.waiting]:
                await self._unload(worker, release)
            asked = [r for r in self.releases.values() if r.is_evicted and r.is_wanted]
            for release in asked:
                with contextlib.suppress(WorkerLostError):
                    await self._load_into(worker, release)
                # What does not load now, for want of memory say, may when it is asked for again.
                release.broken = None
                self.lanes.wake()
            if not asked and self.releases and worker.lost is None:
                await self._change.wait()

    async def _unload(self, worker: Worker, release: Release) -> None:
        del self.releases[release.id]
        self.lanes.forget(release)
        self.lanes.wake()
        if release.id in worker.loaded:
            with contextlib.suppress(WorkerLostError):
                await worker.unload(release.id)
