"""`shoal-agent`: reads the configuration and runs the agent until it is told to stop."""

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from pathlib import Path

from shoal_agent import __version__, plain_imports  # noqa: F401 - before everything else of ours
from shoal_agent.config import AgentConfig, load
from shoal_agent.errors import AgentError, ConfigError
from shoal_broker import logs
from shoal_broker.bus_errors import BusError
from shoal_contract.exits import Exit


def main() -> None:
    """The console entry."""
    if sys.argv[1:2] == ["enrol"]:
        from shoal_agent.identity import cli as enrolling  # noqa: PLC0415 - not for who runs

        sys.exit(enrolling.main(sys.argv[2:]))
    if sys.argv[1:2] == ["bench"]:
        from shoal_agent.capability import cli  # noqa: PLC0415 - numpy and ONNX Runtime, for it alone

        sys.exit(cli.main(sys.argv[2:]))
    options = _parser().parse_args()
    # ONNX Runtime's telemetry has no place on a board; workers inherit this.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    recent = logs.configure(log_format=options.log_format, verbose=options.verbose)
    try:
        config = load(options.config)
    except ConfigError as exc:
        print(f"shoal-agent: {exc}", file=sys.stderr)
        sys.exit(Exit.USAGE)
    if options.check:
        print(f"{options.config}: good, node {config.node}")
        sys.exit(Exit.OK)
    try:
        _forget(options.ready_file)
        restart = asyncio.run(_run(options, config, recent))
    except (AgentError, BusError) as exc:
        print(f"shoal-agent: {exc}", file=sys.stderr)
        sys.exit(Exit.FAILED)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    if restart:
        os.execv(sys.executable, [sys.executable, "-m", "shoal_agent", *sys.argv[1:]])  # noqa: S606 - ourselves again


async def _run(options: argparse.Namespace, config: AgentConfig, recent: logs.RecentLines) -> bool:
    # Imported here so that --help and --check answer at once on a slow board.
    from shoal_agent import app  # noqa: PLC0415
    from shoal_agent.background import Background  # noqa: PLC0415
    from shoal_broker.durable import write_durably  # noqa: PLC0415
    from shoal_broker.service_manager import ServiceManager  # noqa: PLC0415

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    running: list[app.Agent] = []
    service_manager = ServiceManager.of(os.environ, pid=os.getpid())

    def on_hangup() -> None:
        # Before it runs, it is about to read the file anyway.
        for agent in running:
            reloading.start(reload(agent), name="reload")

    loop.add_signal_handler(signal.SIGHUP, on_hangup)

    def on_ready(agent: app.Agent) -> None:
        running.append(agent)
        service_manager.ready()
        _freeze()
        if options.ready_file is None:
            return
        try:
            write_durably(options.ready_file, f"{agent.peer_port or 0}\n".encode())
        except OSError as exc:
            raise ConfigError(f"--ready-file {options.ready_file}: {exc.strerror}") from exc

    async def reload(agent: app.Agent) -> None:
        try:
            new: AgentConfig | str = await asyncio.to_thread(load, options.config)
        except ConfigError as exc:
            new = str(exc)
        await agent.reload(new)

    async with Background.open() as reloading, service_manager.watched():
        return await app.run(config, recent=recent, stop=stop, on_ready=on_ready)


def _freeze() -> None:
    """What the start has made stays: a full collection looks through all of it, and holds requests up by milliseconds."""
    gc.collect()
    gc.freeze()


def _forget(ready_file: Path | None) -> None:
    """One that an earlier run left behind would be a lie."""
    if ready_file is not None:
        with contextlib.suppress(OSError):
            ready_file.unlink()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal-agent",
        description="Runs models and device commands on this board.",
        epilog="example: shoal-agent --config /opt/shoal/current/agent.toml; `shoal-agent enrol --help` says how"
        " this board gets its certificate, `shoal-agent bench --help` how a model is measured on it",
    )
    parser.add_argument("--config", type=Path, required=True, help="the TOML configuration file")
    parser.add_argument("--check", action="store_true", help="check the configuration and stop")
    parser.add_argument("--ready-file", type=Path, help="written when the agent runs")
    parser.add_argument("--log-format", choices=["auto", "json", "console"], default="auto")
    parser.add_argument("--verbose", action="store_true", help="log debugging facts too")
    parser.add_argument("--version", action="version", version=f"shoal-agent {__version__}")
    return parser
