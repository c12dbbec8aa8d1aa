"""`shoal-bridge`: reads the configuration and runs the bridge until it is told to stop."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

from shoal_broker import logs
from shoal_contract.exits import Exit
from shoal_firmware_bridge.config import BridgeConfig, load
from shoal_firmware_bridge.errors import BridgeError, ConfigError


def main() -> None:
    """The console entry."""
    options = _parser().parse_args()
    logs.configure(log_format=options.log_format, verbose=options.verbose)
    try:
        config = load(options.config)
        if options.check:
            print(f"{options.config}: good, {len(config.device)} devices")
            return
        if options.ready_file is not None:
            # One that an earlier run left behind would be a lie.
            with contextlib.suppress(OSError):
                options.ready_file.unlink()
        asyncio.run(_run(config, options.ready_file))
    except ConfigError as exc:
        print(f"shoal-bridge: {exc}", file=sys.stderr)
        sys.exit(Exit.USAGE)
    except BridgeError as exc:
        print(f"shoal-bridge: {exc}", file=sys.stderr)
        sys.exit(Exit.FAILED)
    except KeyboardInterrupt:  # before the signals are ours
        sys.exit(Exit.INTERRUPTED)


async def _run(config: BridgeConfig, ready_file: Path | None) -> None:
    # Imported here so that --help and --check answer at once on a slow board.
    from shoal_broker.service_manager import ServiceManager  # noqa: PLC0415
    from shoal_firmware_bridge import app  # noqa: PLC0415

    stop = asyncio.Event()
    service_manager = ServiceManager.of(os.environ, pid=os.getpid())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def on_ready() -> None:
        service_manager.ready()
        if ready_file is None:
            return
        temporary = ready_file.with_name(ready_file.name + ".part")
        try:
            temporary.write_text("ready\n", encoding="utf-8")
            temporary.replace(ready_file)
        except OSError as exc:
            raise ConfigError(f"--ready-file {ready_file}: {exc.strerror}") from exc

    async with service_manager.watched():
        await app.run(config, stop=stop, on_ready=on_ready)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal-bridge",
        description="Connects the microcontrollers of this board with its agent.",
        epilog="example: shoal-bridge --config /opt/shoal/current/bridge.toml",
    )
    parser.add_argument("--config", type=Path, required=True, help="the TOML configuration file")
    parser.add_argument("--check", action="store_true", help="check the configuration and stop")
    parser.add_argument("--ready-file", type=Path, help="written when every socket listens")
    parser.add_argument("--log-format", choices=["auto", "json", "console"], default="auto")
    parser.add_argument("--verbose", action="store_true", help="log debugging facts too")
    parser.add_argument("--version", action="version", version=f"shoal-bridge {version('shoal')}")
    return parser
