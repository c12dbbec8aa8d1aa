"""A worker in a thread of the agent: no second interpreter, and no wall between the agent and a model's crash.

For boards that cannot afford the process. numpy and ONNX Runtime are imported when it is opened. A model that hangs
and does not heed the watchdog keeps its thread: the worker is then lost, and the thread is left behind.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from shoal_agent.inference.batch import Batch, Loaded, Ran
from shoal_agent.inference.errors import (
    BadInputError,
    LateBatchError,
    ModelFailedError,
    WorkerLostError,
)
from shoal_agent.inference.model_errors import InputError, LateError, ModelError
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.signature import Signature
from shoal_agent.inference.tensors import Tensor
from shoal_agent.inference.worker import CallRefusedError

if TYPE_CHECKING:
    from shoal_agent.inference.runner import Runner

T = TypeVar("T")

CALL_TIMEOUT_S: Final = 10.0
_Job = tuple[Callable[[], Any], asyncio.Future[Any]]


class ThreadWorker:
    """Runs batches in one thread, loads in another beside it. `lost` says why it cannot be used any more.

    Attributes:
        loaded: the signatures of the releases that it has.
    """

    def __init__(self, runner: "Runner", on_lost: Callable[[], None]) -> None:
        self.loaded: dict[bytes, Signature] = {}
        self.lost: str | None = None
        self._runner = runner
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=self._work, name="inference", daemon=True).start()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: WorkerSettings, *, on_lost: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Self]:
        """A worker whose thread ends, after the batch that it runs, when the block is left."""
        runner = await asyncio.to_thread(_runner, settings)
        worker = cls(runner, on_lost)
        try:
            yield worker
        finally:
            worker._lose("it was stopped")
            worker._jobs.put(None)

    async def load(
        self,
        release: bytes,
        directory: Path,
        *,
        trial_bytes: int = 0,
        calibrate_rows: int = 0,
        timeout_s: float,
    ) -> Loaded:
        """See `Worker.load`; a trial has a process of its own, never this one."""
        if trial_bytes:
            raise ValueError("a trial is not held in the agent's own process")
        done: asyncio.Future[Loaded] = self._loop.create_future()

        def load() -> Loaded:
            return self._runner.load(release, directory, calibrate_rows=calibrate_rows)

        threading.Thread(target=self._settle, args=(load, done), daemon=True).start()
        try:
            loaded = await self._wait(done, "load", timeout_s)
        except ModelError as exc:
            raise CallRefusedError(str(exc)) from exc
        self.loaded[release] = loaded.signature
        return loaded

    async def unload(self, release: bytes) -> None:
        """See `Worker.unload`."""
        self.loaded.pop(release, None)
        await self._call(lambda: self._runner.unload(release), "unload", CALL_TIMEOUT_S)

    async def run(self, release: bytes, batch: Batch, *, timeout_s: float) -> Ran:
        """See `Worker.run`."""

        def run() -> Ran:
            inputs = [rows[0] if len(rows) == 1 else b"".join(rows) for rows in batch.chunks]
            outputs, run_us = self._runner.run(release, batch.form, batch.rows, inputs)
            return Ran(
                [Tensor(o.dtype.name, o.shape, o.reshape(-1).view("u1").data) for o in outputs],
                run_us,
            )

        try:
            return await self._call(run, "run", timeout_s)
        except InputError as exc:
            raise BadInputError(str(exc)) from exc
        except LateError as exc:
            raise LateBatchError(str(exc)) from exc
        except (ModelError, MemoryError) as exc:
            raise ModelFailedError(str(exc) or "out of memory") from exc

    async def _call(self, job: Callable[[], T], what: str, timeout_s: float) -> T:
        if self.lost is not None:
            raise WorkerLostError(self.lost)
        done: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((job, done))
        return await self._wait(done, what, timeout_s)

    async def _wait(self, done: asyncio.Future[T], what: str, timeout_s: float) -> T:
        # Not asyncio.timeout: this is on the way of every batch.
        timer = self._loop.call_later(timeout_s, self._late, done, what, timeout_s)
        try:
            return await done
        finally:
            timer.cancel()

    def _late(self, done: asyncio.Future[T], what: str, timeout_s: float) -> None:
        self._lose(f"the worker did not answer {what!r} within {timeout_s:g} s")
        _set_exception(done, WorkerLostError(self.lost))

    def _lose(self, reason: str) -> None:
        if self.lost is None:
            self.lost = reason
            self._on_lost()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._settle(*job)

    def _settle(self, job: Callable[[], T], done: asyncio.Future[T]) -> None:
        """Runs in a thread: what comes of the job goes to the event loop, which may be gone by then."""
        try:
            answer, value = _set_result, job()
        except BaseException as exc:  # noqa: BLE001 - it belongs to whoever waits
            answer, value = _set_exception, exc  # type: ignore[assignment]
        try:
            self._loop.call_soon_threadsafe(answer, done, value)
        except RuntimeError:
            return


def _set_result(done: asyncio.Future[T], value: T) -> None:
    if not done.done():
        done.set_result(value)


def _set_exception(done: asyncio.Future[Any], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)


def _runner(settings: WorkerSettings) -> "Runner":
    # Its BLAS starts a thread a core, for matrices that we do not multiply.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Not before it is wanted: an agent with a worker process never imports numpy.
    from shoal_agent.inference.runner import Runner  # noqa: PLC0415

    return Runner(settings)
