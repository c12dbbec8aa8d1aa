"""The agent's end of one process that decodes pictures: start, ask, kill. What is asked is the source's matter.

The process is a fresh one for each source, with limits of its own: what a file or a camera breaks, it breaks alone.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

from shoal_agent.background import Background
from shoal_agent.errors import DecoderError
from shoal_agent.inference.child import how_it_ended, kill
from shoal_agent.pipelines import picture_pipe as pipe
from shoal_contract.errors import DecodeError

START_TIMEOUT_S: Final = 30.0
_STDERR_BYTES: Final = 2048
_END_S: Final = 1.0


class Decoder:
    """A running process. Build it with `Decoder.open`; it is killed when the block is left.

    Attributes:
        gone: files that it was told of and that are not there any more.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.gone: list[str] = []
        self._process = process
        self._complaint = b""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, opening: pipe.Opening, *, python: str = sys.executable
    ) -> AsyncIterator[Self]:
        """A process that is ready to read what the opening says.

        Raises:
            DecoderError: it does not start, or cannot read that.
        """
        module = "images_child" if isinstance(opening, pipe.OpenFolder) else "camera_child"
        try:
            process = await asyncio.create_subprocess_exec(
                # -P: a PIL.py in the working directory is not ours.
                python, "-P", "-m", f"shoal_agent.pipelines.{module}", str(os.getpid()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as exc:
            raise DecoderError(f"no process for pictures can be started: {exc.strerror}") from exc
        decoder = cls(process)
        try:
            async with Background.open() as background:
                background.start(decoder._read_complaints(), name="decoder.stderr")
                match await decoder._ask(opening, timeout_s=START_TIMEOUT_S):
                    case pipe.Ready(gone):
                        decoder.gone = gone
                    case pipe.Failed(reason):
                        raise DecoderError(reason)
                    case _:
                        raise DecoderError("the process for pictures speaks nonsense")
                yield decoder
        finally:
            await kill(process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def ask(self, question: pipe.Question, *, timeout_s: float) -> pipe.Answer:
        """Its answer; after an error it is of no use any more.

        Raises:
            DecoderError: it ended, or does not answer in time, or says that nothing more will come.
        """
        answer = await self._ask(question, timeout_s=timeout_s)
        if isinstance(answer, pipe.Failed):
            raise DecoderError(answer.reason)
        return answer

    async def _ask(self, message: pipe.Opening | pipe.Question, *, timeout_s: float) -> pipe.Answer:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101 - both were asked for
        assert stdout is not None  # noqa: S101
        try:
            async with asyncio.timeout(timeout_s):
                stdin.write(pipe.pack(message))
                await stdin.drain()
                length = pipe.body_bytes(await stdout.readexactly(pipe.PREFIX.size))
                return pipe.answer(await stdout.readexactly(length))
        except TimeoutError as exc:
            raise DecoderError(f"no answer within {timeout_s:g} s") from exc
        except DecodeError as exc:
            raise DecoderError("the process for pictures speaks nonsense") from exc
        except (OSError, asyncio.IncompleteReadError) as exc:
            raise DecoderError(await self._how_it_ended()) from exc

    async def _how_it_ended(self) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):  # the pipe closes a moment before the exit
                await self._process.wait()
        await kill(self._process)
        lines = self._complaint.decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        said = f": {last[:200]}" if last else ""
        return f"the process for pictures {how_it_ended(self._process)}{said}"

    async def _read_complaints(self) -> None:
        stderr = self._process.stderr
        while stderr is not None and (text := await stderr.read(_STDERR_BYTES)):
            self._complaint = (self._complaint + text)[-_STDERR_BYTES:]
