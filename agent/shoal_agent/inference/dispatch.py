"""Keeps a worker process running and gives it one batch after the other.

It restarts the worker within a budget, reloads what it had, and puts unanswered requests back. Who may ask
for what is the engine's matter.
"""

import asyncio
import contextlib
from typing import Final

import structlog

from shoal_agent.inference.backlog import Entry
from shoal_agent.inference.errors import (
    InferenceError,
    ModelRefusedError,
    NotServingError,
    WorkerLostError,
)
from shoal_agent.inference.limits import RestartBudget
from shoal_agent.inference.served import EngineStats, Release
from shoal_agent.inference.trial import LOAD_TIMEOUT_S
from shoal_agent.inference.worker import CallRefusedError, Worker

log = structlog.get_logger()

RUN_TIMEOUT_S: Final = 10.0
_INSTALL_ATTEMPTS: Final = 3
_LOAD_CRASHES: Final = 3
"""A release that the worker did not survive so often in a row is left out of the next one."""


class Dispatcher:
    """Runs what waits in the releases' queues.

    Args:
        stats: counted into.
        max_batch: items that run at once.
        python: the interpreter of the worker.

    Attributes:
        releases: what is loaded, by id; the engine adds, retired ones disappear when they are drained.
        worker: the one that runs, if one does.
        halted: why nothing can run at the moment.
    """

    def __init__(self, stats: EngineStats, *, max_batch: int, python: str) -> None:
        self.releases: dict[bytes, Release] = {}
        self.worker: Worker | None = None
        self.halted: str | None = None
        self._stats = stats
        self._max_batch = max_batch
        self._python = python
        self._clock = asyncio.get_running_loop().time
        self.budget = RestartBudget(self._clock)
        self._turn = 0
        self._work = asyncio.Event()
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """There is something to run, to load or to unload."""
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
                async with Worker.open(python=self._python, on_lost=self.wake) as worker:
                    await self._reload(worker)
                    self.worker, self.halted = worker, None
                    self._tell_changed()
                    await self._dispatch(worker)
            except WorkerLostError as exc:
                lost = True
                log.warning("inference worker lost", reason=str(exc))
            finally:
                self.worker = None

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _reload(self, worker: Worker) -> None:
        """Give a new worker everything that serves or is admitted."""
        for release in list(self.releases.values()):
            if release.broken is None:
                await self._load_into(worker, release)

    async def _load_into(self, worker: Worker, release: Release) -> None:
        if release.id in worker.loaded:
            return
        try:
            loaded = await worker.load(release.id, release.directory, timeout_s=LOAD_TIMEOUT_S)
        except CallRefusedError as exc:
            self._give_up(release, str(exc))
        except WorkerLostError as exc:
            release.load_crashes += 1
            if release.load_crashes >= _LOAD_CRASHES:
                self._give_up(release, f"loading it ends the worker: {exc}")
            raise
        else:
            release.load_crashes = 0
            release.item_bytes = loaded.item_bytes

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
        while True:
            self._work.clear()
            if worker.lost is not None:
                raise WorkerLostError(worker.lost)
            await self._unload_drained(worker)
            if not self.releases:
                return
            release, batch = self._next_batch()
            if batch:
                await self._run_batch(worker, release, batch)
            else:
                await self._work.wait()

    def _next_batch(self) -> tuple[Release, list[Entry]]:
        """The next release in turn that has something waiting, so that no model starves another."""
        releases = list(self.releases.values())
        for step in range(1, len(releases) + 1):
            turn = (self._turn + step) % len(releases)
            batch = releases[turn].backlog.take(self._max_batch, self._clock())
            if batch:
                self._turn = turn
                return releases[turn], batch
        return releases[0], []

    async def _run_batch(self, worker: Worker, release: Release, batch: list[Entry]) -> None:
        started = self._clock()
        try:
            await self._load_into(worker, release)
            results = await worker.run(
                release.id, [entry.item for entry in batch], timeout_s=RUN_TIMEOUT_S
            )
        except WorkerLostError as exc:
            release.put_back(batch, exc)
            raise
        except CallRefusedError as exc:
            for entry in batch:
                release.fail(entry.request, InferenceError(str(exc)))
            return
        release.settle(batch, results)
        release.record_batch(self._clock() - started)
        self._stats.batches += 1
        self._stats.items += len(batch)

    async def _unload_drained(self, worker: Worker) -> None:
        drained = [r for r in self.releases.values() if r.retired and not r.waiters]
        for release in drained:
            del self.releases[release.id]
            if release.id in worker.loaded:
                await worker.unload(release.id)
