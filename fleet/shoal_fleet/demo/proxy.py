"""A TCP proxy that can be cut: what stands between one board and the broker while its uplink is down."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

_READ_BYTES = 65536


class CuttableProxy:
    """Forwards bytes to `target_port` on loopback. Cut, it refuses connections and drops what it has.

    Attributes:
        port: where it listens; the same after a cut.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, target_port: int) -> AsyncIterator[Self]:
        """Listen on a free loopback port until the context is left."""
        proxy = cls(target_port)
        await proxy.heal()
        try:
            yield proxy
        finally:
            await proxy.cut()

    async def heal(self) -> None:
        """Listen (again)."""
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Close the listening socket and every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a stream callback is a task
        self._connections.add(task)
        try:
            onward_reader, onward_writer = await asyncio.open_connection(
                "127.0.0.1", self._target_port
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_pump(reader, onward_writer), name="proxy.up")
                    tasks.create_task(_pump(onward_reader, writer), name="proxy.down")
            finally:
                onward_writer.close()
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            # Either end went away, or the line was cut: both are what a proxy is there to show.
            return
        finally:
            self._connections.discard(task)
            writer.close()


class _EndedError(OSError):
    """One direction ended, so the connection has."""


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_READ_BYTES):
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
    raise _EndedError
