"""The simulated microcontroller's end of a line: a pty or a TCP port, good or bad."""

import asyncio
import contextlib
import os
import random
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

from shoal_contract.frames import FrameReader

READ_BYTES = 4096
MAX_BUFFER_BYTES = 4096


class Device(Protocol):
    """What hangs on a line."""

    def attach(self, send: Callable[[bytes], None]) -> None:
        """Send through this from now on; it loses what it has no room for."""

    def detach(self) -> None:
        """Nobody is at the other end."""

    def receive(self, cutter: FrameReader, data: bytes) -> None:
        """Bytes came in."""


class BadLine:
    """A line that may be bad: drops and damages what passes, by a seeded chance."""

    def __init__(self, loss: float, corrupt: float, seed: int) -> None:
        self._loss = loss
        self._corrupt = corrupt
        self._random = random.Random(seed)  # noqa: S311 - a simulation that can be repeated

    def carry(self, data: bytes) -> bytes:
        """What arrives of these bytes."""
        if self._random.random() < self._loss:
            return b""
        if data and self._random.random() < self._corrupt:
            damaged = bytearray(data)
            damaged[self._random.randrange(len(data))] ^= self._random.randrange(1, 256)
            return bytes(damaged)
        return data


@contextmanager
def on_pty(mcu: Device, link: Path) -> Iterator[None]:
    """Own a pty and offer its other end at `link`, whoever opens and closes it.

    Raises:
        OSError: there is no pty, or the link cannot be made.
    """
    ours, theirs = os.openpty()
    # Both ends stay open here, so that a bridge that goes away is silence and not a hang-up.
    loop = asyncio.get_running_loop()
    cutter = FrameReader()

    def send(data: bytes) -> None:
        # A full buffer is a line nobody reads: what does not fit is lost, as on a UART.
        with contextlib.suppress(BlockingIOError):
            os.write(ours, data)

    def read() -> None:
        try:
            data = os.read(ours, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        mcu.receive(cutter, data)

    try:
        tty.setraw(theirs)
        os.set_blocking(ours, False)
        temporary = link.with_name(link.name + ".part")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        temporary.symlink_to(os.ttyname(theirs))
        temporary.replace(link)
        mcu.attach(send)
        loop.add_reader(ours, read)
        try:
            yield
        finally:
            loop.remove_reader(ours)
            mcu.detach()
            with contextlib.suppress(OSError):
                link.unlink()
    finally:
        os.close(ours)
        os.close(theirs)


@asynccontextmanager
async def on_tcp(mcu: Device, port: int) -> AsyncIterator[int]:
    """Listen on loopback, at the port that is given; the newest connection has the device.

    Raises:
        OSError: the port is taken.
    """
    newest: list[_Connection] = []
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(mcu, newest), "127.0.0.1", port
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in newest:
            connection.abort()


class _Connection(asyncio.Protocol):
    """One connection to the device; `newest` is a list of none or one, shared with the others."""

    _transport: asyncio.Transport

    def __init__(self, mcu: Device, newest: "list[_Connection]") -> None:
        self._mcu = mcu
        self._newest = newest
        self._cutter = FrameReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP's are
        self._transport = transport
        for older in self._newest:
            older.abort()
        # What still stands in an older one is out of turn and is not looked at any more.
        self._newest[:] = [self]
        self._mcu.attach(self._send)

    def data_received(self, data: bytes) -> None:
        if self in self._newest:
            self._mcu.receive(self._cutter, data)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self in self._newest:
            self._newest.clear()
            self._mcu.detach()

    def abort(self) -> None:
        self._transport.abort()

    def _send(self, data: bytes) -> None:
        if self._transport.get_write_buffer_size() < MAX_BUFFER_BYTES:
            self._transport.write(data)
