"""The engine's end of one worker process: start, call, kill. Whether to start another is the dispatcher's matter."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

import msgspec

from shoal_agent.background import Background
from shoal_agent.inference import pipe
from shoal_agent.inference.batch import Batch, Loaded, Place, Ran, layout
from shoal_agent.inference.child import how_it_ended, kill, signal_kill, spawn
from shoal_agent.inference.errors import (
    BadInputError,
    InferenceError,
    LateBatchError,
    ModelFailedError,
    WorkerLostError,
)
from shoal_agent.inference.line import Line
from shoal_agent.inference.segment import Segment
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.signature import Form, Signature
from shoal_agent.inference.tensors import Tensor
from shoal_agent.inference.worker import CallRefusedError, Done

START_TIMEOUT_S: Final = 60.0
CALL_TIMEOUT_S: Final = 10.0
_STDERR_BYTES: Final = 2048
_END_S: Final = 1.0

_DEFAULTS: Final = WorkerSettings()
LARGE_SEGMENT_BYTES: Final = 8 * 1024 * 1024
"""What a larger one holds goes back to the kernel after each batch."""
SEGMENTS: Final = 2
"""Batches under way: while one runs, the next one already lies there."""

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
        segments: list[Segment],
        on_lost: Callable[[], None],
    ) -> None:
        self.loaded: dict[bytes, Signature] = {}
        self.lost: str | None = None
        self._process = process
        self._ended = asyncio.Event()
        self._segments = segments
        self._free = list(range(len(segments)))
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
        segments = _segments()
        try:
            process, ours = await spawn(python, settings, segments)
        except BaseException:
            _close(segments)
            raise
        worker = cls(process, segments, on_lost)
        try:
            await worker._loop.create_connection(lambda: worker._line, sock=ours)
        except BaseException:
            ours.close()
            await kill(process)
            _close(segments)
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
            _close(segments)

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
        for number in self._free:  # the others hold a batch
            self._segments[number].give_back()
        try:
            await self._call(pipe.UNLOAD, release, timeout_s=CALL_TIMEOUT_S)
        except CallRefusedError as exc:
            raise self._nonsense() from exc

    def start(self, release: bytes, batch: Batch, done: Done, *, timeout_s: float) -> None:
        """See `Worker.start`."""
        if self.lost is not None:
            self._loop.call_soon(done, WorkerLostError(self.lost))
            return
        form, rows = batch.form, batch.rows
        number = self._free.pop()
        segment = self._segments[number]
        try:
            places, end = layout(form.shapes(rows))
            _fill(segment, places, end, batch.chunks)
        except MemoryError as exc:
            self._free.append(number)
            self._loop.call_soon(done, ModelFailedError(str(exc)))
            return
        timer = self._loop.call_later(timeout_s, self._late, pipe.RUN, timeout_s)
        call = self._expect(functools.partial(self._ran, number, end, form, timer, done))
        self._line.send([call, pipe.RUN, release, number, rows, _packed(form)])

    def _ran(
        self,
        number: int,
        start: int,
        form: Form,
        timer: asyncio.TimerHandle,
        done: Done,
        value: object,
        failure: _Failure | None,
    ) -> None:
        """The worker answered, or is lost."""
        timer.cancel()
        segment = self._segments[number]
        outcome: Ran | InferenceError
        if failure is None:
            try:
                outcome = self._read(segment, start, form, value)
            except WorkerLostError as exc:
                outcome = exc
        elif isinstance(failure, CallRefusedError):
            outcome = ModelFailedError(str(failure))
        else:
            outcome = failure
        if segment.size_bytes > LARGE_SEGMENT_BYTES:
            segment.give_back()
        self._free.append(number)
        done(outcome)

    def _read(self, segment: Segment, start: int, form: Form, value: object) -> Ran:
        """The outputs that the worker says it wrote behind the inputs."""
        match value:
            case [int(run_us), list(described)] if len(described) == len(form.outputs):
                pass
            case _:
                raise self._nonsense()
        try:
            shapes = [(dtype, tuple(shape)) for dtype, shape in described]
            places, end = layout(shapes, start)
            shared = memoryview(segment.at_least(end))
        except (TypeError, ValueError, KeyError, MemoryError) as exc:
            raise self._nonsense() from exc
        outputs = [
            Tensor(dtype, shape, bytes(shared[place.offset : place.offset + place.size_bytes]))
            for (dtype, shape), place in zip(shapes, places, strict=True)
        ]
        return Ran(outputs, run_us)

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


def _segments() -> list[Segment]:
    try:
        return [Segment.create() for _ in range(SEGMENTS)]
    except OSError as exc:
        raise WorkerLostError(f"the worker gets no shared memory: {exc.strerror}") from exc


def _close(segments: list[Segment]) -> None:
    for segment in segments:
        segment.close()


def _fill(
    segment: Segment,
    places: Sequence[Place],
    end: int,
    chunks: Sequence[Sequence[bytes | memoryview]],
) -> None:
    shared = segment.at_least(end)
    for place, rows in zip(places, chunks, strict=True):
        offset = place.offset
        for data in rows:
            shared[offset : offset + len(data)] = data
            offset += len(data)


@functools.lru_cache(maxsize=pipe.MAX_FORMS)
def _packed(form: Form) -> bytes:
    return msgspec.msgpack.encode(form)


def _as_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""
