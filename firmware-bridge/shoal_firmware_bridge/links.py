"""The lines to devices: serial and TCP, as a pair of streams. Reconnecting is the caller's business."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import serialx

from shoal_firmware_bridge.config import DEFAULT_BAUD, DeviceTable
from shoal_firmware_bridge.errors import LineError

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0
STREAM_LIMIT_BYTES = 16 * 1024


@asynccontextmanager
async def open_line(
    device: DeviceTable,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """The open line to a device; a serial line is locked against other processes.

    Raises:
        LineError: it cannot be opened.
    """
    reader, writer = await _open(device)
    try:
        yield reader, writer
    finally:
        # abort: what a device that went away has not taken would keep the line open for ever
        writer.transport.abort()
        with contextlib.suppress(OSError, serialx.SerialException):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await writer.wait_closed()


async def _open(device: DeviceTable) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            if device.link == "serial":
                return await serialx.open_serial_connection(
                    device.path, baudrate=device.baud or DEFAULT_BAUD
                )
            return await asyncio.open_connection(device.host, device.port, limit=STREAM_LIMIT_BYTES)
    except TimeoutError as exc:
        raise LineError(f"no connection in {CONNECT_TIMEOUT_S:g} s") from exc
    except OSError as exc:
        raise LineError(exc.strerror or str(exc)) from exc
    except (serialx.SerialException, ValueError) as exc:
        # a setting the port does not know; a host name that is none (UnicodeError)
        raise LineError(str(exc)) from exc
