"""Keeps a worker process running and gives it one batch after the other.

It restarts the worker within a budget, reloads what it had, and puts unanswered requests back. Who may ask
for what is the engine's matter.
"""

import asyncio
import contextlib
from typing import Final

import structlog

from shoal_agent.inference.backlog import Piece
from shoal_agent.inference.batch import Batch
from shoal_agent.inference.errors import (
    BadInputError,
    InferenceError,
    ModelFailedError,
    ModelRefusedError,
    NotServingError,
    WorkerLostError,
)
from shoal_agent.inference.fairness import Turns
from shoal_agent.inference.limits import RestartBudget
from shoal_agent.inference.process_worker import ProcessWorker
from shoal_agent.inference.served import EngineStats, Release
from shoal_agent.inference.tensors import rows
from shoal_agent.inference.trial import LOAD_TIMEOUT_S
from shoal_agent.inference.worker import CallRefusedError, Worker

log = structlog.get_logger()

RUN_TIMEOUT_S: Final = 10.0
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
        self._turns = Turns()
        self._under_way = 0
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
                async with ProcessWorker.open(python=self._python, on_lost=self.wake) as worker:
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
            release.signature = loaded.signature

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
        self._under_way = 0
        async with asyncio.TaskGroup() as lanes:
            for number in range(LANES):
                lanes.create_task(self._run_lane(worker, number), name=f"engine.lane-{number}")
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
            self._under_way += 1
            try:
                await self._run_batch(worker, release, batch)
            finally:
                self._under_way -= 1

    def _next_batch(self) -> tuple[Release | None, list[Piece]]:
        """What is to run now, of whose turn it is.

        While a batch runs, the next one goes to the worker only if it is full, and short: what is not yet
        given away may still grow, and be overtaken by something urgent.
        """
        now = self._clock()
        is_idle = self._under_way == 0
        while True:
            classes = {
                release.id: release.backlog.first_class(now)
                for release in self.releases.values()
                if (release.backlog.rows if is_idle else self._is_worth_sending_ahead(release))
            }
            if not classes:
                return None, []
            release = self.releases[self._turns.next(classes)]
            batch = release.backlog.take(self._max_batch, now)
            if batch:
                return release, batch

    def _is_worth_sending_ahead(self, release: Release) -> bool:
        return release.backlog.rows >= self._max_batch and 0 < release.batch_s <= SHORT_BATCH_S

    async def _run_batch(self, worker: Worker, release: Release, batch: list[Piece]) -> None:
        started = self._clock()
        guess_s = release.batch_s
        self._turns.charge(release.id, guess_s)
        try:
            await self._load_into(worker, release)
            ran = await worker.run(release.id, _batch_of(batch), timeout_s=RUN_TIMEOUT_S)
        except WorkerLostError as exc:
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
                    await self._run_batch(worker, release, [piece])
            return
        release.settle(batch, ran.outputs)
        took_s = self._clock() - started
        self._turns.charge(release.id, took_s - guess_s)
        release.record_batch(took_s)
        self._stats.batches += 1
        self._stats.items += sum(piece.stop - piece.start for piece in batch)

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


def _batch_of(pieces: list[Piece]) -> Batch:
    form = pieces[0].request.form
    return Batch(
        form,
        sum(piece.stop - piece.start for piece in pieces),
        [
            [rows(piece.request.inputs[n], piece.start, piece.stop) for piece in pieces]
            if form.is_batched
            else [pieces[0].request.inputs[n].data]
            for n in range(len(form.inputs))
        ],
    )
