"""Keeps a worker running and loaded: restarts it within a budget, has a second one take over, evicts and reloads.

Batches are `lanes`, what goes into a worker is `loading`; who may ask for what is the engine's matter.
"""

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final

import structlog

from shoal_agent.inference.errors import ModelRefusedError, NotServingError, WorkerLostError
from shoal_agent.inference.lanes import Lanes
from shoal_agent.inference.limits import RestartBudget
from shoal_agent.inference.loading import Loader
from shoal_agent.inference.process_worker import ProcessWorker
from shoal_agent.inference.served import EngineStats, Release
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.thread_worker import ThreadWorker
from shoal_agent.inference.worker import CallRefusedError, Worker

log = structlog.get_logger()

_INSTALL_ATTEMPTS: Final = 3
UNLOAD_WITHIN_S: Final = 3.0
"""So long a release that is not needed any more may wait for a moment without batches."""
_LOOK_AGAIN_S: Final = 0.02
_NICER: Final = 10
"""So much nicer is a second worker while it loads: what serves goes first."""


class Dispatcher:
    """Has the releases and the worker that they run in.

    Args:
        stats: counted into.
        python: the interpreter of the worker.
        settings: how the worker runs models.
        loader: loads releases into workers.

    Attributes:
        releases: what is loaded, by id; the engine adds, retired ones disappear when they are drained.
        worker: the one that runs, if one does.
        lanes: batches.
        halted: why nothing can run at the moment.
    """

    def __init__(
        self, stats: EngineStats, *, python: str, settings: WorkerSettings, loader: Loader
    ) -> None:
        self.releases: dict[bytes, Release] = {}
        self.worker: Worker | None = None
        self.halted: str | None = None
        self._stats = stats
        self._python = python
        self._settings = settings
        self._loader = loader
        self._clock = asyncio.get_running_loop().time
        self.budget = RestartBudget(self._clock)
        self.lanes = Lanes(self.releases, stats, run_timeout_s=settings.run_timeout_s)
        self._workers: asyncio.TaskGroup | None = None
        self._keeper: asyncio.Task[bool] | None = None
        self._change = asyncio.Event()
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained_at: dict[bytes, float] = {}

    def wake(self) -> None:
        """There is something to run, to load or to unload, or nothing any more."""
        self._change.set()
        self._drained.set()
        self.lanes.wake()

    def offer(self, release: Release) -> None:
        """A request waits for this release."""
        if release.is_evicted:
            self._change.set()
        else:
            self.lanes.offer(release)

    async def run(self) -> None:
        """Have a worker run whenever there is something to serve, for ever."""
        lost = False
        async with asyncio.TaskGroup() as self._workers:
            while True:
                while not self.releases:
                    self._change.clear()
                    await self._change.wait()
                if lost and (wait_s := self.budget.wait_s()):
                    self.halt(f"the worker died too often; it is started again in {wait_s:.0f} s")
                    await asyncio.sleep(wait_s)
                if self.worker is None:  # or else a second one has taken over meanwhile
                    if lost:
                        self.budget.spend()
                        self._stats.worker_restarts += 1
                    self._keeper = self._workers.create_task(self._keep(), name="engine.worker")
                lost = await self._last_keeper()

    async def _last_keeper(self) -> bool:
        """Wait until no worker runs. Returns whether the last one was lost."""
        lost, ended = False, None
        while self._keeper is not None and self._keeper is not ended:
            ended = self._keeper
            # Not `await ended`: who is cancelled would cancel it twice, in the middle of its tidying up.
            await asyncio.wait([ended])
            lost = ended.result()
        return lost

    async def _keep(self) -> bool:
        """Run a worker with everything that is in use. Returns whether it was lost."""
        try:
            async with self._open_worker(self._settings) as worker:
                for release in list(self.releases.values()):
                    if release.broken is None and not release.is_evicted:
                        await self._loader.load(worker, release)
                await self._serve(worker)
        except WorkerLostError as exc:
            log.warning("inference worker lost", reason=str(exc))
            return True
        return False

    async def _keep_beside(self, entry: Release, ready: asyncio.Future[None]) -> bool:
        """The same with a second worker, which takes over once it has loaded everything.

        Args:
            entry: the release that it is started for.
            ready: done when it has taken over, or failed with why it has not.
        """
        settings = replace(self._settings, loading_nice=_NICER)
        try:
            async with self._open_worker(settings) as worker:
                await self._loader.load_all(worker, entry, self.releases)
                if ready.cancelled():
                    return False
                ready.set_result(None)
                await self._serve(worker)
        except (CallRefusedError, WorkerLostError) as exc:
            if not ready.done():
                ready.set_exception(exc)
                return False
            log.warning("inference worker lost", reason=str(exc))
            return True
        except asyncio.CancelledError:
            if not ready.done():
                ready.set_exception(WorkerLostError("the engine is stopping"))
            raise
        return False

    async def _serve(self, worker: Worker) -> None:
        """Batches go to this worker from now on, until nothing is left to serve or another one takes over.

        Raises:
            WorkerLostError: with every unanswered request back in its queue.
        """
        self.worker, self.halted = worker, None
        self._keeper = asyncio.current_task()
        self.lanes.use(worker)
        self._change.set()  # the one before is to see it
        self._tell_changed()
        try:
            await self._load_and_unload(worker)
            if self.worker is not worker:
                await self.lanes.drained(worker)
            elif worker.lost is not None:
                raise WorkerLostError(worker.lost)
        finally:
            if self.worker is worker:
                self.worker = None
                self.lanes.use(None)

    def _open_worker(self, settings: WorkerSettings) -> AbstractAsyncContextManager[Worker]:
        if settings.kind == "thread":
            return ThreadWorker.open(settings, on_lost=self.wake)
        return ProcessWorker.open(python=self._python, settings=settings, on_lost=self.wake)

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

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

    async def drain(self, release: Release) -> None:
        """It takes no requests any more: once those accepted are answered it gives its memory back."""
        while release.waiting:
            self._drained.clear()
            await self._drained.wait()
        if not await self.evict(release):
            release.is_evicted = True  # no worker has it: the next one is not to load it either

    async def install_beside(self, release: Release) -> bool:
        """Have a second worker load a release of `releases`, and all others, and take over without a gap.

        Returns whether it did; if not, everything is as it was.

        Raises:
            ModelRefusedError: it does not load.
        """
        if self._workers is None or self.worker is None or self._settings.kind != "process":
            return False
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        keeping = self._keep_beside(release, ready)
        keeper = self._workers.create_task(keeping, name="engine.worker-beside")
        try:
            await ready
        except CallRefusedError as exc:
            raise ModelRefusedError(str(exc)) from exc
        except WorkerLostError as exc:
            log.warning("no second worker took over", reason=str(exc))
            return False
        except asyncio.CancelledError:
            if not ready.done() or ready.cancelled():
                keeper.cancel()
            raise
        return True

    async def install(self, release: Release) -> None:
        """Bring a release of `releases` into the worker that runs, which may have to start for it.

        Raises:
            ModelRefusedError: it does not load.
            WorkerLostError: no worker runs, or it died of something.
        """
        for _ in range(_INSTALL_ATTEMPTS):
            worker = await self._running_worker()
            with contextlib.suppress(WorkerLostError):
                await self._loader.load(worker, release)
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

    # ------------------------------------------------------------------ while a worker runs
    async def _load_and_unload(self, worker: Worker) -> None:
        """Beside the batches: unload what is drained, load what was evicted and is asked for again."""
        while self.worker is worker and worker.lost is None and self.releases:
            self._change.clear()
            for release in [r for r in self.releases.values() if r.retired and not r.waiting]:
                if self._is_time_to_unload(release):
                    await self._unload(worker, release)
            for release_id in [known for known in worker.loaded if not self._is_in_use(known)]:
                with contextlib.suppress(WorkerLostError):
                    await worker.unload(release_id)
            asked = [r for r in self.releases.values() if r.is_evicted and r.is_wanted]
            for release in asked:
                with contextlib.suppress(WorkerLostError):
                    await self._loader.load(worker, release)
                # What does not load now, for want of memory say, may when it is asked for again.
                release.broken = None
                if self.worker is not worker:
                    release.is_evicted = True  # who took over meanwhile does not have it
                self.wake()
            if not asked and self.releases and self.worker is worker and worker.lost is None:
                await self._change.wait()

    def _is_time_to_unload(self, release: Release) -> bool:
        """That holds the batches up: it is done when nothing runs, or when it cannot wait any longer."""
        now = self._clock()
        if now >= self._drained_at.setdefault(release.id, now) + UNLOAD_WITHIN_S:
            return True
        if not self.lanes.is_busy:
            return True
        asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._change.set)
        return False

    def _is_in_use(self, release: bytes) -> bool:
        known = self.releases.get(release)
        return known is not None and not known.is_evicted

    async def _unload(self, worker: Worker, release: Release) -> None:
        del self.releases[release.id]
        self._drained_at.pop(release.id, None)
        self.lanes.forget(release)
        self.lanes.wake()
        if release.id in worker.loaded:
            with contextlib.suppress(WorkerLostError):
                await worker.unload(release.id)
