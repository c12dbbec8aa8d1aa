"""Programs that a storm kills and starts again and again: a broker of each kind on one port, an agent."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

from tests.support.mosquitto import Mosquitto, free_port
from tests.support.programs import Program

START_TIMEOUT_S = 20.0

# /etc/mosquitto/mosquitto.conf of Debian's package, all of it; only the paths are the test's.
DEBIAN_CONF = """\
pid_file {folder}/mosquitto.pid
persistence true
persistence_location {folder}/
log_dest file {folder}/mosquitto.log
include_dir {folder}/conf.d
"""
# What the package leaves to the person who installs it: a file in conf.d.
DEBIAN_LISTENER = "listener {port} 127.0.0.1\nallow_anonymous true\n"

BROKERS = ("embedded", "mosquitto", "mosquitto-debian")


class Mortal(Protocol):
    """What can be killed."""

    def signal(self, number: int) -> None: ...

    async def ended(self) -> int: ...


P = TypeVar("P", bound=Mortal)


class Killed(Generic[P]):
    """One program under SIGKILL. Build it with `Killed.open`; `program` is the one that runs now."""

    def __init__(self, start: Callable[[], AbstractAsyncContextManager[P]]) -> None:
        self.program: P
        self.kills = 0
        self._start = start
        self._stack = AsyncExitStack()

    @classmethod
    @asynccontextmanager
    async def open(cls, start: Callable[[], AbstractAsyncContextManager[P]]) -> AsyncIterator[Self]:
        """`start` makes it run, each time anew; nothing is left of it behind the block."""
        killed = cls(start)
        await killed.start()
        try:
            yield killed
        finally:
            await killed._stack.aclose()

    async def start(self) -> None:
        """Return once it is ready."""
        self.program = await self._stack.enter_async_context(self._start())

    async def kill(self) -> None:
        """SIGKILL, and gone."""
        self.kills += 1
        self.program.signal(signal.SIGKILL)
        assert await self.program.ended() == -signal.SIGKILL
        await self._stack.aclose()


@asynccontextmanager
async def killed_broker(kind: str, folder: Path) -> AsyncIterator[tuple[Killed[Program], int]]:
    """A broker of one of BROKERS or an `embedded-durable` one, and its port: the same after every start."""
    folder.mkdir()  # noqa: ASYNC240 - before anything runs
    port = free_port()
    command = _command(kind, folder, port)

    @asynccontextmanager
    async def start() -> AsyncIterator[Program]:
        with (folder / "broker.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        program = Program(process, folder / "broker.log")
        try:
            await _until_it_listens(program, port)
            yield program
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async with Killed.open(start) as killed:
        yield killed, port


def _command(kind: str, folder: Path, port: int) -> list[str]:
    if kind == "embedded":
        return [sys.executable, "-m", "shoal_broker", "--port", str(port)]
    if kind == "embedded-durable":
        durable = ["--durable", str(folder / "durable")]
        return [sys.executable, "-m", "shoal_broker", "--port", str(port), *durable]
    mosquitto = Mosquitto.found()
    assert mosquitto is not None
    if kind == "mosquitto":
        return [mosquitto, "-p", str(port)]
    (folder / "conf.d").mkdir()
    # As root it would become the user mosquitto, who may not look into a folder of a test.
    user = "user root\n" if os.geteuid() == 0 else ""
    (folder / "conf.d" / "test.conf").write_text(DEBIAN_LISTENER.format(port=port) + user)
    config = folder / "mosquitto.conf"
    config.write_text(DEBIAN_CONF.format(folder=folder))
    return [mosquitto, "-c", str(config)]


async def _until_it_listens(program: Program, port: int) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                await writer.wait_closed()
                return
            assert program.process.returncode is None, program.log
            await asyncio.sleep(0.01)
