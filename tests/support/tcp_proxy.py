"""A TCP proxy on loopback that can be cut (connections reset), stalled (bytes held), slowed and healed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

CHUNK_BYTES = 65_536
SLOW_CHUNK_BYTES = 4_096


class TcpProxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:target. Build it with `TcpProxy.open`.

    `bytes_per_s`: how fast each direction is; None: as fast as it goes.
    """

    def __init__(self, target_port: int, tasks: asyncio.TaskGroup) -> None:
        self.target_port = target_port
        self.port = 0
        self.bytes_per_s: int | None = None
        self.forwarded_bytes = 0
        self._tasks = tasks
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    @classmethod
    @asynccontextmanager
    async def open(cls, target_port: int) -> AsyncIterator[Self]:
        """Listen on a free port; leaving the context cuts what is connected."""
        async with asyncio.TaskGroup() as tasks:
            proxy = cls(target_port, tasks)
            await proxy.heal()
            try:
                yield proxy
            finally:
                proxy._flowing.set()
                await proxy.cut()

    async def heal(self) -> None:
        """Take connections again and let stalled bytes flow."""
        self._flowing.set()
        if self._server is None:

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                # Of our group, which ends when they have: start_server's own tasks nobody awaits.
                self._tasks.create_task(self._accept(reader, writer), name="proxy.accept")

            self._server = await asyncio.start_server(accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        if server is not None:
            await server.wait_closed()

    def stall(self) -> None:
        """Keep connections open and hold every byte: a half-open line."""
        self._flowing.clear()

    @property
    def _piece_bytes(self) -> int:
        return CHUNK_BYTES if self.bytes_per_s is None else SLOW_CHUNK_BYTES

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        server = self._server
        try:
            await self._flowing.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            await self._end(writer, reset=True)
            return
        if self._server is not server:
            # Cut meanwhile.
            await self._end(writer, reset=True)
            await self._end(far_writer, reset=True)
            return
        self._writers.add(far_writer)
        self._tasks.create_task(self._forward(reader, far_writer), name="proxy.up")
        self._tasks.create_task(self._forward(far_reader, writer), name="proxy.down")

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(self._piece_bytes):
                await self._flowing.wait()
                self.forwarded_bytes += len(piece)
                writer.write(piece)
                await writer.drain()
                if self.bytes_per_s is not None:
                    await asyncio.sleep(len(piece) / self.bytes_per_s)
        # An abort on one side ends the other: an MQTT connection has no half.
        await self._end(writer, reset=reader.exception() is not None)

    async def _end(self, writer: asyncio.StreamWriter, *, reset: bool) -> None:
        """Return when the connection is closed: its transport goes before the loop does."""
        if reset:
            writer.transport.abort()
        else:
            writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._writers.discard(writer)
