"""Programs of Shoal as real processes, each with its log in a file; none outlives the block that started it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0


class Program:
    """A running program. `log` is everything that it has written."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def end(self) -> int:
        """Its exit code, once it has ended; asked politely if it runs."""
        if self.process.returncode is None:
            self.process.terminate()
        return await self.ended()

    async def ended(self) -> int:
        """Its exit code, once it has ended by itself."""
        async with asyncio.timeout(STOP_TIMEOUT_S):
            return await self.process.wait()

    async def until_said(self, words: str, *, timeout_s: float = 45) -> None:
        """Return once its log has these words."""
        async with asyncio.timeout(timeout_s):
            while words not in self.log:
                assert self.process.returncode is None, self.log
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    module: str | Path,
    *arguments: object,
    log: Path,
    ready_file: Path | None = None,
    prefix: Iterable[str] = (),
) -> AsyncIterator[Program]:
    """`python -m module arguments` (or a script), ready when its ready file says so."""
    if ready_file is not None:
        _forget(ready_file)
        arguments = (*arguments, "--ready-file", ready_file)
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            *(("-m", module) if isinstance(module, str) else (module,)),
            *map(str, arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    program = Program(process, log)
    try:
        if ready_file is not None:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not _is_there(ready_file):
                    assert process.returncode is None, program.log
                    await asyncio.sleep(0.01)
        yield program
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _forget(ready_file: Path) -> None:
    ready_file.unlink(missing_ok=True)


def _is_there(ready_file: Path) -> bool:
    return ready_file.exists()


async def output_of(module: str, *arguments: object, **environment: str) -> tuple[int, str, str]:
    """Run `python -m module arguments` to its end: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    async with asyncio.timeout(STOP_TIMEOUT_S):
        stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stdout.decode(), stderr.decode()
