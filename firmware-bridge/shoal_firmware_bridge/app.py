"""Puts the bridge together: one hub a device."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from shoal_firmware_bridge.config import BridgeConfig
from shoal_firmware_bridge.errors import BridgeError
from shoal_firmware_bridge.hub import DeviceHub, Patience
from shoal_firmware_bridge.sockets import owned_directory

log = structlog.get_logger()


async def run(
    config: BridgeConfig,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[], None] = lambda: None,
    patience: Patience | None = None,
) -> None:
    """Serve every device until `stop` is set.

    Raises:
        SocketError: the directory or a socket cannot be made, or they are another bridge's.
    """
    with owned_directory(Path(config.socket_dir)):
        try:
            await _serve(config, stop, on_ready, patience)
        except* BridgeError as group:
            raise _first(group) from None
    log.info("bridge stopped")


async def _serve(
    config: BridgeConfig,
    stop: asyncio.Event,
    on_ready: Callable[[], None],
    patience: Patience | None,
) -> None:
    listening = [asyncio.Event() for _ in config.device]
    async with asyncio.TaskGroup() as tasks:
        hubs = [
            tasks.create_task(
                DeviceHub(device, config.socket(device), patience).run(listening=event),
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


def _first(group: BaseExceptionGroup[BridgeError]) -> BridgeError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
