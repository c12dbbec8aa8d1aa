"""`shoal-agent`: reads the configuration and runs the agent until it is told to stop."""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from shoal_agent import __version__
from shoal_agent.config import load
from shoal_agent.errors import AgentError
from shoal_broker import logs
from shoal_broker.bus_errors import BusError
from shoal_contract.exits import Exit


def main() -> None:
    """The console entry."""
    options = _parser().parse_args()
    recent = logs.configure(log_format=options.log_format, verbose=options.verbose)
    try:
        config = load(options.config)
        if options.check:
            print(f"{options.config}: good, node {config.node}")
            sys.exit(Exit.OK)
        restart = asyncio.run(_run(options, recent))
    except (AgentError, BusError) as exc:
        print(f"shoal-agent: {exc}", file=sys.stderr)
        sys.exit(Exit.FAILED)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    if restart:
        os.execv(sys.executable, [sys.executable, "-m", "shoal_agent", *sys.argv[1:]])  # noqa: S606 - ourselves again


async def _run(options: argparse.Namespace, recent: logs.RecentLines) -> bool:
    # Imported here so that --help and --check answer at once on a slow board.
    from shoal_agent import app  # noqa: PLC0415
    from shoal_agent.files import write_durably  # noqa: PLC0415

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def on_ready(agent: app.Agent) -> None:
        if options.ready_file is not None:
            write_durably(options.ready_file, f"{agent.peer_port or 0}\n".encode())

    return await app.run(load(options.config), recent=recent, stop=stop, on_ready=on_ready)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal-agent",
        description="Runs models and device commands on this board.",
        epilog="example: shoal-agent --config /opt/shoal/current/agent.toml",
    )
    parser.add_argument("--config", type=Path, required=True, help="the TOML configuration file")
    parser.add_argument("--check", action="store_true", help="check the configuration and stop")
    parser.add_argument("--ready-file", type=Path, help="written when the agent runs")
    parser.add_argument("--log-format", choices=["auto", "json", "console"], default="auto")
    parser.add_argument("--verbose", action="store_true", help="log debugging facts too")
    parser.add_argument("--version", action="version", version=f"shoal-agent {__version__}")
    return parser
