"""The `run` command of `shoal-broker`: arguments and a file to settings, signals to the broker."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from shoal_broker import logs
from shoal_broker.durable import write_durably
from shoal_broker.errors import BrokerError, ConfigError
from shoal_broker.server.access_rules import AccessRules, Policy
from shoal_broker.server.config import BrokerConfig, Tls
from shoal_broker.server.config_file import load, tls_files
from shoal_contract.exits import Exit

if TYPE_CHECKING:
    from shoal_broker.server.shell import Broker

log = structlog.get_logger("shoal_broker")

EXAMPLES = """\
examples:
  shoal-broker                                          this machine only, port 1883
  shoal-broker run --port 0 --ready-file /run/broker    any free port, written to a file
  shoal-broker passwd /etc/shoal/users gateway-1        then, for other machines too:
  shoal-broker run --host 0.0.0.0 --password-file /etc/shoal/users
  shoal-broker run --config /etc/shoal/broker.toml      TLS, access rules, limits: docs/broker.md
"""
_GIVEN_AS_THEY_ARE = (
    "host",
    "port",
    "password_file",
    "durable_dir",
    "max_packet_bytes",
    "max_connections",
    "metrics_port",
)
_NAMED = ("controllers", "operators", "observers", "doors")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `run` command; its `func` takes the parsed arguments and returns the exit code."""
    defaults = BrokerConfig()
    parser = commands.add_parser(
        "run",
        help="run the embedded MQTT broker (what happens without a command)",
        description="An MQTT broker. Ends at Ctrl-C or SIGTERM; at SIGHUP it reads passwords, "
        "certificates and access rules again. Options go before what the file says.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML with every setting (docs/broker.md)"
    )
    parser.add_argument("--host", help=f"address (default: {defaults.host})")
    parser.add_argument("--port", type=int, help=f"0: any free one (default: {defaults.port})")
    parser.add_argument(
        "--no-auth", action="store_true", help="let anybody in; needed where others can reach us"
    )
    parser.add_argument(
        "--password-file", type=Path, metavar="FILE", help="let in who is in it (see passwd)"
    )
    _add_tls(parser)
    _add_access(parser)
    parser.add_argument(
        "--max-packet-bytes",
        type=int,
        metavar="N",
        help=f"refuse larger packets (default: {defaults.max_packet_bytes})",
    )
    parser.add_argument(
        "--max-connections",
        type=int,
        metavar="N",
        help=f"refuse further clients (default: {defaults.max_connections})",
    )
    parser.add_argument(
        "--ws-port", type=int, metavar="P", help="speak MQTT over WebSocket, too, at /mqtt"
    )
    parser.add_argument(
        "--ws-origin",
        action="append",
        metavar="URL",
        help="let pages of this origin connect; '*': of any (default: of the same host)",
    )
    parser.add_argument(
        "--durable",
        type=Path,
        dest="durable_dir",
        metavar="DIR",
        help="keep sessions, queues and retained messages here, over kills and power cuts",
    )
    parser.add_argument(
        "--metrics-port", type=int, metavar="P", help="serve Prometheus /metrics on loopback"
    )
    parser.add_argument(
        "--log-format", choices=("auto", "json", "console"), default="auto", help="on stderr"
    )
    parser.add_argument(
        "--ready-file", type=Path, metavar="FILE", help="write the port here once it listens"
    )
    parser.set_defaults(func=_run)


def _add_tls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="speak TLS 1.3, with this certificate (PEM)"
    )
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    parser.add_argument(
        "--tls-client-ca",
        type=Path,
        metavar="FILE",
        help="let in who has a certificate of this authority: its CN is the user",
    )


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--access",
        choices=[policy.value for policy in Policy],
        help="which topics a client that is authenticated may use: those of Shoal's table and the "
        f"file's rules, those of the rules alone, or every one (default: {Policy.TABLE})",
    )
    for option, dest in zip(("controller", "operator", "observer", "door"), _NAMED, strict=True):
        parser.add_argument(
            f"--{option}",
            dest=dest,
            action="append",
            metavar="NAME",
            help=f"for the table: this user is {option}; may be repeated; the others are nodes",
        )


def settings(parsed: argparse.Namespace) -> BrokerConfig:
    """What the file and the options say together. Raises ConfigError."""
    found = BrokerConfig() if parsed.config is None else load(parsed.config)
    changes: dict[str, object] = {
        name: getattr(parsed, name)
        for name in _GIVEN_AS_THEY_ARE
        if getattr(parsed, name) is not None
    }
    if parsed.ws_port is not None:
        changes["websocket_port"] = parsed.ws_port
        changes["websocket_origins"] = tuple(parsed.ws_origin or ())
    elif parsed.ws_origin:
        raise ConfigError("--ws-origin is for --ws-port")
    if parsed.no_auth:
        changes["no_auth"] = True
    tls = _tls(parsed, found.tls)
    if tls is not None:
        changes["tls"] = tls
    changes["access"] = _access(parsed, found.access)
    return msgspec.structs.replace(found, **changes)


def _tls(parsed: argparse.Namespace, found: Tls | None) -> Tls | None:
    given: dict[str, Path | None] = {} if found is None else msgspec.structs.asdict(found)
    given |= {
        name: path
        for name, path in (
            ("cert_file", parsed.tls_cert),
            ("key_file", parsed.tls_key),
            ("client_ca_file", parsed.tls_client_ca),
        )
        if path is not None
    }
    return tls_files(**given)


def _access(parsed: argparse.Namespace, found: AccessRules) -> AccessRules:
    changes: dict[str, object] = {
        name: tuple(getattr(parsed, name)) for name in _NAMED if getattr(parsed, name) is not None
    }
    if parsed.access is not None:
        changes["policy"] = Policy(parsed.access)
    return msgspec.structs.replace(found, **changes)


def _run(parsed: argparse.Namespace) -> int:
    config = settings(parsed)
    logs.configure(log_format=parsed.log_format)
    _allow_open_files()
    return asyncio.run(_serve(config, parsed.ready_file, lambda: settings(parsed).access))


async def _serve(
    config: BrokerConfig, ready_file: Path | None, access_now: Callable[[], AccessRules]
) -> int:
    try:
        from shoal_broker.server import Broker  # noqa: PLC0415 - a board has no codec for it
    except ImportError as exc:
        raise ConfigError(f"the broker's packages are not installed here ({exc.name})") from exc

    stopped, hung_up = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    async with Broker.open(config) as broker:
        with _told(ready_file, broker.port):
            for listener, port in zip(config.listeners, broker.ports, strict=True):
                words = " over WebSocket" if listener.websocket else ""
                words += " with TLS" if listener.tls is not None else ""
                print(f"shoal-broker listening on {listener.host}:{port}{words}", flush=True)
            if broker.metrics_port is not None:
                metrics = f"http://{config.metrics_host}:{broker.metrics_port}/metrics"
                print(f"metrics on {metrics}", flush=True)
            async with asyncio.TaskGroup() as tasks:
                again = tasks.create_task(
                    _read_again_forever(broker, hung_up, access_now), name="broker.read-again"
                )
                await stopped.wait()
                again.cancel()
    return Exit.OK


async def _read_again_forever(
    broker: Broker, asked: asyncio.Event, access_now: Callable[[], AccessRules]
) -> None:
    """Each time it is asked for: what was good stays in force when what is read is not."""
    while True:
        await asked.wait()
        asked.clear()
        try:
            await broker.read_again(await asyncio.to_thread(access_now))
        except BrokerError as exc:
            why = str(exc)
            log.error("files unusable, the earlier ones stay", error=why)  # noqa: TRY400 - one line
        else:
            log.info("files read again")


def _allow_open_files() -> None:
    """A connection is a file, and the usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _told(ready_file: Path | None, port: int) -> Iterator[None]:
    """The port stands in the file while we listen: who did not write it does not remove it."""
    if ready_file is None:
        yield
        return
    try:
        write_durably(ready_file, f"{port}\n".encode())
    except OSError as exc:
        raise BrokerError(f"cannot write {ready_file}: {exc.strerror}") from exc
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            ready_file.unlink()
