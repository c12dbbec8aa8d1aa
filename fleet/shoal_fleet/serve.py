"""`shoal serve` as a process: configuration from file and options, signals, the end."""

import asyncio
import signal
from pathlib import Path

import msgspec

from shoal_broker import logs
from shoal_broker.bus_errors import BusError
from shoal_fleet import app
from shoal_fleet.config import BrokerTable, FleetConfig, check, load
from shoal_fleet.errors import FleetError, UsageError


def settle(
    path: Path | None, *, host: str | None, port: int | None, broker: str | None
) -> FleetConfig:
    """The configuration of the file with what the command line says instead.

    Raises:
        ConfigError: the file cannot be used.
        UsageError: `broker` is not HOST:PORT.
    """
    config = FleetConfig() if path is None else load(path)
    replace = msgspec.structs.replace
    listen = config.listen
    listen = replace(
        listen,
        host=listen.host if host is None else host,
        port=listen.port if port is None else port,
    )
    return check(replace(config, listen=listen, broker=_broker(config, broker)))


def serve(config: FleetConfig, state_dir: Path, *, ready_file: Path | None, verbose: bool) -> None:
    """Run the controller until SIGTERM or SIGINT.

    Raises:
        FleetError: it cannot run, or cannot go on.
    """
    logs.configure(log_format=config.log_format, verbose=verbose)
    try:
        asyncio.run(_serve(config, state_dir, ready_file))
    except* (FleetError, BusError) as group:
        failure = _first(group)
    else:
        return
    raise failure


async def _serve(config: FleetConfig, state_dir: Path, ready_file: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)

    def on_ready(url: str) -> None:
        if ready_file is not None:
            app.write_ready_file(ready_file, url)

    await app.run(config, state_dir, stop=stop, on_ready=on_ready)


def _broker(config: FleetConfig, text: str | None) -> BrokerTable:
    if text is None:
        return config.broker
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"--broker {text!r} is not HOST:PORT")
    return msgspec.structs.replace(config.broker, host=host.strip("[]"), port=int(port))


def _first(group: BaseExceptionGroup[FleetError | BusError]) -> FleetError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, FleetError) else FleetError(str(error))
