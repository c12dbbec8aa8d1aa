"""The engine's end of one worker process: start, call, kill. Whether to start another is the dispatcher's matter."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

import msgspec

from shoal_agent.background import Background
from shoal_agent.inference import pipe
from shoal_agent.inference.batch import Batch, Loaded, Ran
from shoal_agent.inference.child import how_it_ended, kill, signal_kill, spawn
from shoal_agent.inference.errors import (
    BadInputError,
    InferenceError,
    LateBatchError,
    ModelFailedError,
    WorkerLostError,
)
from shoal_agent.inference.exchange import Exchange, Parcel
from shoal_agent.inference.line import Line
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.signature import Signature
from shoal_agent.inference.worker import CallRefusedError, Done

START_TIMEOUT_S: Final = 60.0
CALL_TIMEOUT_S: Final = 10.0
_STDERR_BYTES: Final = 2048
_END_S: Final = 1.0

_DEFAULTS: Final = WorkerSettings()
_Failure = CallRefusedError | InferenceError
_Reply = Callable[[object, _Failure | None], None]
"""Told what the worker answered, or else why there is no answer."""


class ProcessWorker:
    """A running worker process. `lost` says why it cannot be used any more.

    Attributes:
        loaded: the signatures of the releases that it has.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        exchange: Exchange,
        on_lost: Callable[[], None],
    ) -> None:
        self.loaded: dict[bytes, Signature] = {}
        self.lost: str | None = None
        self._process = process
        self._ended = asyncio.Event()
        self._exchange = exchange
        self._on_lost = on_lost
        self._complaint = b""
        self._next_call = pipe.GREETING + 1
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, _Reply] = {}
        self._line = Line(self._settle, self._line_ended)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        python: str,
        settings: WorkerSettings = _DEFAULTS,
        start_timeout_s: float = START_TIMEOUT_S,
        on_lost: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[Self]:
        """A worker that has said hello; it is killed when the block is left.

        Raises:
            WorkerLostError: it does not start.
        """
        try:
            exchange = Exchange.create()
        except OSError as exc:
            raise WorkerLostError(f"the worker gets no shared memory: {exc.strerror}") from exc
        try:
            process, ours = await spawn(python, settings, exchange.segments)
        except BaseException:
            exchange.close()
            raise
        worker = cls(process, exchange, on_lost)
        try:
            await worker._loop.create_connection(lambda: worker._line, sock=ours)
        except BaseException:
            ours.close()
            await kill(process)
            exchange.close()
            raise
        greeting: asyncio.Future[object] = worker._loop.create_future()
        worker._calls[pipe.GREETING] = functools.partial(_tell, greeting)
        try:
            async with Background.open() as background:
                background.start(worker._read_complaints(), name="worker.stderr")
                background.start(worker._mourn(), name="worker.end")
                try:
                    await worker._wait(greeting, "start", start_timeout_s)
                except CallRefusedError as exc:
                    raise worker._nonsense() from exc
                yield worker
        finally:
            worker._lose("it was stopped")
            worker._line.close()
            await kill(process)
            exchange.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def load(
        self,
        release: bytes,
        directory: Path,
        *,
        trial_bytes: int = 0,
        calibrate_rows: int = 0,
        timeout_s: float,
    ) -> Loaded:
        """See `Worker.load`."""
        value = await self._call(
            pipe.LOAD, release, str(directory), trial_bytes, calibrate_rows, timeout_s=timeout_s
        )
        try:
            loaded = msgspec.msgpack.decode(_as_bytes(value), type=Loaded)
        except msgspec.MsgspecError as exc:
            raise self._nonsense() from exc
        self.loaded[release] = loaded.signature
        return loaded

    async def unload(self, release: bytes) -> None:
        """See `Worker.unload`."""
        self.loaded.pop(release, None)
        self._exchange.give_back()
        try:
            await self._call(pipe.UNLOAD, release, timeout_s=CALL_TIMEOUT_S)
        except CallRefusedError as exc:
            raise self._nonsense() from exc

    def start(self, release: bytes, batch: Batch, done: Done, *, timeout_s: float) -> None:
        """See `Worker.start`."""
        if self.lost is not None:
            self._loop.call_soon(done, WorkerLostError(self.lost))
            return
        try:
            parcel = self._exchange.put(batch)
        except MemoryError as exc:
            self._loop.call_soon(done, ModelFailedError(str(exc)))
            return
        timer = self._loop.call_later(timeout_s, self._late, pipe.RUN, timeout_s)
        call = self._expect(functools.partial(self._ran, parcel, timer, done))
        self._line.send([call, pipe.RUN, release, parcel.number, batch.rows, parcel.form])

    def _ran(
        self,
        parcel: Parcel,
        timer: asyncio.TimerHandle,
        done: Done,
        value: object,
        failure: _Failure | None,
    ) -> None:
        """The worker answered, or is lost."""
        timer.cancel()
        outcome: Ran | InferenceError
        if failure is None:
            try:
                outcome = self._exchange.take(parcel, value)
            except ValueError:
                outcome = self._nonsense()
        elif isinstance(failure, CallRefusedError):
            outcome = ModelFailedError(str(failure))
        else:
            outcome = failure
        self._exchange.free(parcel)
        done(outcome)

    async def _call(self, operation: str, *arguments: object, timeout_s: float) -> object:
        if self.lost is not None:
            raise WorkerLostError(self.lost)
        reply: asyncio.Future[object] = self._loop.create_future()
        call = self._expect(functools.partial(_tell, reply))
        try:
            self._line.send([call, operation, *arguments])
            return await self._wait(reply, operation, timeout_s)
        finally:
            self._calls.pop(call, None)

    def _expect(self, reply: _Reply) -> int:
        call, self._next_call = self._next_call, self._next_call + 1
        self._calls[call] = reply
        return call

    async def _wait(
        self, reply: asyncio.Future[object], operation: str, timeout_s: float
    ) -> object:
        timer = self._loop.call_later(timeout_s, self._late, operation, timeout_s)
        try:
            return await reply
        finally:
            timer.cancel()

    def _late(self, operation: str, timeout_s: float) -> None:
        self._lose(f"the worker did not answer {operation!r} within {timeout_s:g} s")

    def _line_ended(self, reason: str) -> None:
        """The socket closed, or what came over it was nonsense (then with a reason)."""
        if reason:
            self._lose(f"the worker spoke nonsense: {reason}")
        self._ended.set()

    async def _mourn(self) -> None:
        """Say how it ended once it did."""
        await self._ended.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):  # the socket closes a moment before the exit
                await self._process.wait()
        await kill(self._process)
        self._lose(f"the worker {how_it_ended(self._process)}{self._last_words()}")

    def _settle(self, call: int, verdict: str, rest: list[object]) -> None:
        reply = self._calls.pop(call, None)
        if reply is None:
            return  # whoever asked has gone
        match verdict, rest:
            case pipe.OK, [value]:
                reply(value, None)
            case pipe.REFUSED, [str(reason)]:
                reply(None, CallRefusedError(reason))
            case pipe.BAD_INPUT, [str(reason)]:
                reply(None, BadInputError(reason))
            case pipe.LATE, [str(reason)]:
                reply(None, LateBatchError(reason))
            case pipe.FAILED, [str(reason)]:
                reply(None, ModelFailedError(reason))
            case _:
                reply(None, self._nonsense())

    def _nonsense(self) -> WorkerLostError:
        self._lose("the worker spoke nonsense")
        return WorkerLostError(self.lost)

    async def _read_complaints(self) -> None:
        stderr = self._process.stderr
        while stderr is not None and (text := await stderr.read(_STDERR_BYTES)):
            self._complaint = (self._complaint + text)[-_STDERR_BYTES:]

    def _last_words(self) -> str:
        lines = self._complaint.decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:200]}" if last else ""

    def _lose(self, reason: str) -> None:
        if self.lost is not None:
            return
        self.lost = reason
        signal_kill(self._process)
        calls, self._calls = self._calls, {}
        for reply in calls.values():
            reply(None, WorkerLostError(reason))
        self._on_lost()


def _tell(reply: asyncio.Future[object], value: object, failure: _Failure | None) -> None:
    if reply.done():
        return  # whoever asked has gone
    if failure is None:
        reply.set_result(value)
    else:
        reply.set_exception(failure)


def _as_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""
