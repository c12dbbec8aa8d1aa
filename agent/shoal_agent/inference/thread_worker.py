"""A worker in a thread of the agent: no second interpreter, and no wall between the agent and a model's crash.

For boards that cannot afford the process. numpy and ONNX Runtime are imported when it is opened. A model that hangs
and does not heed the watchdog keeps its thread: the worker is then lost, and the thread is left behind.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from shoal_agent.inference.batch import Batch, Loaded, Ran
from shoal_agent.inference.errors import (
    BadInputError,
    InferenceError,
    LateBatchError,
    ModelFailedError,
    WorkerLostError,
)
from shoal_agent.inference.model_errors import InputError, LateError, ModelError
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.signature import Signature
from shoal_agent.inference.tensors import Tensor
from shoal_agent.inference.worker import CallRefusedError, Done

if TYPE_CHECKING:
    from shoal_agent.inference.release_files import Array
    from shoal_agent.inference.runner import Runner

T = TypeVar("T")

CALL_TIMEOUT_S: Final = 10.0
_SMALL_BYTES: Final = 65536
"""Outputs up to here are copied: rows of bytes are cheaper to cut off than rows of a view."""


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
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._runs: dict[Done, asyncio.TimerHandle] = {}
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

        threading.Thread(target=self._answer, args=(load, done), daemon=True).start()
        try:
            loaded = await self._wait(done, "load", timeout_s)
        except ModelError as exc:
            raise CallRefusedError(str(exc)) from exc
        self.loaded[release] = loaded.signature
        return loaded

    async def unload(self, release: bytes) -> None:
        """See `Worker.unload`."""
        self.loaded.pop(release, None)
        if self.lost is not None:
            raise WorkerLostError(self.lost)
        done: asyncio.Future[None] = self._loop.create_future()
        self._jobs.put(partial(self._answer, partial(self._runner.unload, release), done))
        await self._wait(done, "unload", CALL_TIMEOUT_S)

    def start(self, release: bytes, batch: Batch, done: Done, *, timeout_s: float) -> None:
        """See `Worker.start`."""
        if self.lost is not None:
            self._loop.call_soon(done, WorkerLostError(self.lost))
            return
        self._runs[done] = self._loop.call_later(timeout_s, self._late, "run", timeout_s)
        self._jobs.put(partial(self._run, release, batch, done))

    async def _wait(self, done: asyncio.Future[T], what: str, timeout_s: float) -> T:
        timer = self._loop.call_later(timeout_s, self._late_call, done, what, timeout_s)
        try:
            return await done
        finally:
            timer.cancel()

    def _late_call(self, done: asyncio.Future[T], what: str, timeout_s: float) -> None:
        self._late(what, timeout_s)
        _set_exception(done, WorkerLostError(self.lost))

    def _late(self, what: str, timeout_s: float) -> None:
        self._lose(f"the worker did not answer {what!r} within {timeout_s:g} s")

    def _lose(self, reason: str) -> None:
        if self.lost is not None:
            return
        self.lost = reason
        for done in list(self._runs):
            self._end(done, WorkerLostError(reason))
        self._on_lost()

    def _end(self, done: Done, outcome: Ran | InferenceError) -> None:
        timer = self._runs.pop(done, None)
        if timer is not None:
            timer.cancel()
            done(outcome)

    # ------------------------------------------------------------------ in the thread
    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _run(self, release: bytes, batch: Batch, done: Done) -> None:
        outcome: Ran | InferenceError
        try:
            inputs = [rows[0] if len(rows) == 1 else b"".join(rows) for rows in batch.chunks]
            outputs, run_us = self._runner.run(release, batch.form, batch.rows, inputs)
            outcome = Ran([_tensor(output) for output in outputs], run_us)
        except InputError as exc:
            outcome = BadInputError(str(exc))
        except LateError as exc:
            outcome = LateBatchError(str(exc))
        except (ModelError, MemoryError) as exc:
            outcome = ModelFailedError(str(exc) or "out of memory")
        except BaseException as exc:  # noqa: BLE001 - whoever waits is told; the thread goes on
            outcome = ModelFailedError(f"the worker failed: {exc!r}"[:500])
        self._post(self._end, done, outcome)

    def _answer(self, job: Callable[[], T], done: asyncio.Future[T]) -> None:
        try:
            value = job()
        except BaseException as exc:  # noqa: BLE001 - it belongs to whoever waits
            self._post(_set_exception, done, exc)
        else:
            self._post(_set_result, done, value)

    def _post(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            return  # the event loop is gone by now


def _tensor(output: "Array") -> Tensor:
    data: bytes | memoryview = output.reshape(-1).view("u1").data
    if len(data) <= _SMALL_BYTES:
        data = bytes(data)
    return Tensor(output.dtype.name, output.shape, data)


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
