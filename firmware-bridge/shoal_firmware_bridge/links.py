"""The lines to devices: serial and TCP, as a pair of streams. Reconnecting is the caller's business."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import serialx

from shoal_firmware_bridge.config import DeviceTable

CONNECT_TIMEOUT_S = 5.0


class Writer(Protocol):
    """What is needed of a stream writer."""

    def write(self, data: bytes) -> object:
        """Send these bytes when there is room."""

    def close(self) -> object:
        """End the line."""


@asynccontextmanager
async def open_line(device: DeviceTable) -> AsyncIterator[tuple[asyncio.StreamReader, Writer]]:
    """The open line to a device.

    Raises:
        OSError: it cannot be opened (serial errors are OSErrors too).
    """
    writer: Writer
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        if device.link == "serial":
            reader, writer = await serialx.open_serial_connection(device.path, baudrate=device.baud)
        else:
            reader, writer = await asyncio.open_connection(device.host, device.port)
    try:
        yield reader, writer
    finally:
        with contextlib.suppress(OSError):
            writer.close()
