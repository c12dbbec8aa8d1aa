"""Debian's Mosquitto as a real process on loopback, for conformance beside the embedded broker."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

START_TIMEOUT_S = 5.0


class Mosquitto:
    """A running mosquitto. `abort` kills it as `kill -9` would."""

    def __init__(self, port: int, process: asyncio.subprocess.Process) -> None:
        self.port = port
        self._process = process

    @staticmethod
    def found() -> str | None:
        """The path of the program, None when it is not installed."""
        return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, *, port: int = 0, extra: str = "") -> AsyncIterator[Self]:
        """Start it on `port` (0: a free one) with its configuration in `folder`."""
        port = port or free_port()
        config = folder / f"mosquitto-{port}.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nset_tcp_nodelay true\nlog_type none\n"
            f"{extra or 'allow_anonymous true'}\n"
        )
        program = cls.found()
        assert program is not None
        process = await asyncio.create_subprocess_exec(program, "-c", str(config))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while True:
                    with contextlib.suppress(OSError):
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                        writer.close()
                        await writer.wait_closed()
                        break
                    await asyncio.sleep(0.01)
            yield cls(port, process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def abort(self) -> None:
        """Kill it without warning."""
        self._process.kill()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
