"""Puts the bridge together: one hub a device."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import structlog

from shoal_firmware_bridge.config import BridgeConfig
from shoal_firmware_bridge.errors import BridgeError, SocketError
from shoal_firmware_bridge.hub import DeviceHub

log = structlog.get_logger()


async def run(
    config: BridgeConfig, *, stop: asyncio.Event, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Serve every device until `stop` is set.

    Raises:
        SocketError: the directory or a socket cannot be made.
    """
    directory = Path(config.socket_dir)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # noqa: ASYNC240 - once
    except OSError as exc:
        raise SocketError(f"{directory}: {exc.strerror}") from exc
    listening = [asyncio.Event() for _ in config.device]
    try:
        async with asyncio.TaskGroup() as tasks:
            hubs = [
                tasks.create_task(
                    DeviceHub(device, config.socket(device)).run(listening=event),
                    name=f"device.{device.name}",
                )
                for device, event in zip(config.device, listening, strict=True)
            ]
            for event in listening:
                await event.wait()
            log.info("bridge runs", devices=[device.name for device in config.device])
            on_ready()
            await stop.wait()
            for hub in hubs:
                hub.cancel()
    except* BridgeError as group:
        raise group.exceptions[0] from None
    finally:
        for device in config.device:
            with contextlib.suppress(OSError):
                config.socket(device).unlink()
