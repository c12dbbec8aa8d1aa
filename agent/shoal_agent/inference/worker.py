"""The engine's end of one worker process: start, call, kill. Whether to start another is the engine's matter."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from shoal_agent.background import Background
from shoal_agent.inference import pipe
from shoal_agent.inference.errors import WorkerLostError
from shoal_contract.errors import DecodeError
from shoal_contract.messages import Answer

START_TIMEOUT_S: Final = 60.0
CALL_TIMEOUT_S: Final = 10.0
_STDERR_BYTES: Final = 2048
_END_S: Final = 1.0

Result = Answer | str
"""An item's answer, or why it has none."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the worker says of a release that it loaded; latencies only after a trial, else 0."""

    item_bytes: int
    load_us: int
    p50_us: int
    p95_us: int
    golden_count: int


class CallRefusedError(Exception):
    """The worker is well but says no; the message is its reason."""


class Worker:
    """A running worker process. `lost` says why it cannot be used any more.

    Attributes:
        loaded: the releases that it has.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_lost: Callable[[], None],
    ) -> None:
        self.loaded: set[bytes] = set()
        self.lost: str | None = None
        self._process = process
        self._reader = reader
        self._writer = writer
        self._on_lost = on_lost
        self._complaint = b""
        self._next_call = pipe.GREETING + 1
        self._calls: dict[int, asyncio.Future[object]] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        python: str,
        threads: int = 1,
        start_timeout_s: float = START_TIMEOUT_S,
        on_lost: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[Self]:
        """A worker that has said hello; it is killed when the block is left.

        Raises:
            WorkerLostError: it does not start.
        """
        process, ours = await _spawn(python, threads)
        try:
            reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        except BaseException:
            ours.close()
            await _kill(process)
            raise
        worker = cls(process, reader, writer, on_lost)
        greeting = worker._expect(pipe.GREETING)
        try:
            async with Background.open() as background:
                background.start(worker._read_complaints(), name="worker.stderr")
                background.start(worker._read_forever(), name="worker.replies")
                try:
                    await worker._wait(greeting, "start", start_timeout_s)
                except CallRefusedError as exc:
                    raise worker._nonsense() from exc
                yield worker
        finally:
            worker._lose("it was stopped")
            writer.close()
            await _kill(process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def load(
        self, release: bytes, directory: Path, *, trial_bytes: int = 0, timeout_s: float
    ) -> Loaded:
        """Load and check a release directory.

        Args:
            release: how `run` names it.
            directory: holds release.toml, model and golden file.
            trial_bytes: more than 0: measure it, and let the process grow by at most so much.
            timeout_s: after it, the worker is killed.

        Raises:
            CallRefusedError: the release breaks a promise.
            WorkerLostError: the worker died of it, or took too long.
        """
        value = await self._call(
            pipe.LOAD, release, str(directory), trial_bytes, timeout_s=timeout_s
        )
        match value:
            case [int(), int(), int(), int(), int()]:
                self.loaded.add(release)
                return Loaded(*value)
        raise self._nonsense()

    async def unload(self, release: bytes) -> None:
        """Forget a release and give its memory back."""
        self.loaded.discard(release)
        try:
            await self._call(pipe.UNLOAD, release, timeout_s=CALL_TIMEOUT_S)
        except CallRefusedError as exc:
            raise self._nonsense() from exc

    async def run(
        self, release: bytes, items: Sequence[bytes], *, timeout_s: float = CALL_TIMEOUT_S
    ) -> list[Result]:
        """One result an item, in order.

        Raises:
            CallRefusedError: the release is not loaded.
            WorkerLostError: the worker died, hung or spoke nonsense.
        """
        value = await self._call(pipe.RUN, release, list(items), timeout_s=timeout_s)
        if not isinstance(value, list) or len(value) != len(items):
            raise self._nonsense()
        return [self._result(item) for item in value]

    def _result(self, item: object) -> Result:
        match item:
            case [str(label), float(confidence)]:
                return Answer(label, confidence)
            case str(reason):
                return reason
        raise self._nonsense()

    async def _call(self, operation: str, *arguments: object, timeout_s: float) -> object:
        if self.lost is not None:
            raise WorkerLostError(self.lost)
        call, self._next_call = self._next_call, self._next_call + 1
        reply = self._expect(call)
        try:
            self._writer.write(pipe.pack([call, operation, *arguments]))
            return await self._wait(reply, operation, timeout_s)
        finally:
            self._calls.pop(call, None)

    def _expect(self, call: int) -> asyncio.Future[object]:
        reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._calls[call] = reply
        return reply

    async def _wait(
        self, reply: asyncio.Future[object], operation: str, timeout_s: float
    ) -> object:
        try:
            async with asyncio.timeout(timeout_s):
                return await reply
        except TimeoutError as exc:
            self._lose(f"the worker did not answer {operation!r} within {timeout_s:g} s")
            raise WorkerLostError(self.lost) from exc

    async def _read_forever(self) -> None:
        try:
            while True:
                prefix = await self._reader.readexactly(pipe.PREFIX.size)
                body = await self._reader.readexactly(pipe.body_bytes(prefix))
                call, verdict, rest = pipe.unpack(body)
                self._settle(call, verdict, rest)
        except (OSError, asyncio.IncompleteReadError):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):  # the socket closes a moment before the exit
                    await self._process.wait()
            await _kill(self._process)
            self._lose(f"the worker {_how_it_ended(self._process)}{self._last_words()}")
        except DecodeError as exc:
            self._lose(f"the worker spoke nonsense: {exc}")

    def _settle(self, call: int, verdict: str, rest: list[object]) -> None:
        reply = self._calls.pop(call, None)
        if reply is None or reply.done():
            return  # whoever asked has gone
        match verdict, rest:
            case pipe.OK, [value]:
                reply.set_result(value)
            case pipe.REFUSED, [str(reason)]:
                reply.set_exception(CallRefusedError(reason))
            case _:
                reply.set_exception(self._nonsense())

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
        _signal_kill(self._process)
        for reply in self._calls.values():
            if not reply.done():
                reply.set_exception(WorkerLostError(reason))
        self._calls.clear()
        self._on_lost()


async def _spawn(python: str, threads: int) -> tuple[asyncio.subprocess.Process, socket.socket]:
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    arguments = (str(fd), str(threads), str(os.getpid()))
    try:
        process = await asyncio.create_subprocess_exec(
            # -P: a numpy.py in the working directory is not ours.
            python, "-P", "-m", "shoal_agent.inference.worker_main", *arguments,
            pass_fds=(fd,),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as exc:
        ours.close()
        raise WorkerLostError(f"the worker cannot be started: {exc.strerror}") from exc
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


async def _kill(process: asyncio.subprocess.Process) -> None:
    _signal_kill(process)
    await process.wait()


def _signal_kill(process: asyncio.subprocess.Process) -> None:
    # Not process.kill(): that collects a process that has just ended, and its exit code is lost.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _how_it_ended(process: asyncio.subprocess.Process) -> str:
    code: Any = process.returncode
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
