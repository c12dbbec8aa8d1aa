"""`shoal-broker`: run the embedded MQTT 5 broker, keep its password file, examine other brokers.

The only module of the broker that reads arguments, prints for people and sets the process up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from shoal_broker import logs
from shoal_broker.doctor import cli as doctor
from shoal_broker.durable import write_durably
from shoal_broker.errors import BrokerError, ConfigError
from shoal_broker.render import cli as render
from shoal_broker.server import BrokerConfig
from shoal_broker.server.passwords import set_password
from shoal_contract.exits import Exit

DEFAULT_COMMAND = "run"
RUN_EXAMPLES = """\
examples:
  shoal-broker                                          this machine only, port 1883
  shoal-broker run --port 0 --ready-file /run/broker    any free port, written to a file
  shoal-broker passwd /etc/shoal/users gateway-1        then, for other machines too:
  shoal-broker run --host 0.0.0.0 --password-file /etc/shoal/users
"""
USER_EXAMPLES = """\
examples:
  shoal-broker passwd /etc/shoal/users gateway-1               asks for the password
  printf %s "$SECRET" | shoal-broker passwd /etc/shoal/users gateway-1
"""


def main() -> None:
    """The console entry."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code."""
    parser, commands = _parser()
    words = list(arguments)
    if not words or (words[0] not in commands and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, DEFAULT_COMMAND)
    parsed = parser.parse_args(words)
    try:
        return int(parsed.func(parsed))
    except ConfigError as exc:
        print(f"shoal-broker: {exc}", file=sys.stderr)
        return Exit.USAGE
    except BrokerError as exc:
        print(f"shoal-broker: {exc}", file=sys.stderr)
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


# --- shoal-broker run


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = BrokerConfig()
    parser = commands.add_parser(
        "run",
        help="run the embedded MQTT 5 broker (what happens without a command)",
        description="An MQTT 5 broker that keeps everything in memory. Ends at Ctrl-C or SIGTERM.",
        epilog=RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default=defaults.host, help="address (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=defaults.port, help="0: any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--no-auth", action="store_true", help="let anybody in; needed where others can reach us"
    )
    parser.add_argument(
        "--password-file", type=Path, metavar="FILE", help="let in who is in it (see passwd)"
    )
    parser.add_argument(
        "--max-packet-bytes",
        type=int,
        default=defaults.max_packet_bytes,
        metavar="N",
        help="refuse larger packets (default: %(default)s)",
    )
    parser.add_argument(
        "--max-connections",
        type=int,
        default=defaults.max_connections,
        metavar="N",
        help="refuse further clients (default: %(default)s)",
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


def _run(parsed: argparse.Namespace) -> int:
    config = BrokerConfig(
        host=parsed.host,
        port=parsed.port,
        no_auth=parsed.no_auth,
        password_file=parsed.password_file,
        max_packet_bytes=parsed.max_packet_bytes,
        max_connections=parsed.max_connections,
        metrics_port=parsed.metrics_port,
    )
    logs.configure(log_format=parsed.log_format)
    _allow_open_files()
    return asyncio.run(_serve(config, parsed.ready_file))


async def _serve(config: BrokerConfig, ready_file: Path | None) -> int:
    try:
        from shoal_broker.server import Broker  # noqa: PLC0415 - a board has no codec for it
    except ImportError as exc:
        raise ConfigError(f"the broker's packages are not installed here ({exc.name})") from exc

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with Broker.open(config) as broker:
        with _told(ready_file, broker.port):
            print(f"shoal-broker listening on {config.host}:{broker.port}", flush=True)
            if broker.metrics_port is not None:
                metrics = f"http://{config.metrics_host}:{broker.metrics_port}/metrics"
                print(f"metrics on {metrics}", flush=True)
            await stopped.wait()
    return Exit.OK


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


# --- shoal-broker passwd


def _add_passwd(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "passwd",
        help="add a user to a password file, or change the password",
        description="The password is asked for, or read from standard input when that is no terminal.",
        epilog=USER_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("user", metavar="USER")
    parser.set_defaults(func=_passwd)


def _passwd(parsed: argparse.Namespace) -> int:
    if sys.stdin.isatty():
        password = getpass.getpass(f"Password for {parsed.user}: ")
        if getpass.getpass("Again: ") != password:
            print("shoal-broker: the two passwords differ", file=sys.stderr)
            return Exit.FAILED
    else:
        try:
            password = sys.stdin.readline().rstrip("\r\n")
        except UnicodeDecodeError:
            print("shoal-broker: the password is not UTF-8 text", file=sys.stderr)
            return Exit.USAGE
    if not password:
        print("shoal-broker: an empty password is none", file=sys.stderr)
        return Exit.USAGE
    is_new = set_password(parsed.file, parsed.user, password)
    print(f"{parsed.user} {'added to' if is_new else 'has a new password in'} {parsed.file}")
    print("a running broker reads the file when it starts", file=sys.stderr)
    return Exit.OK


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    parser = argparse.ArgumentParser(
        prog="shoal-broker",
        description="The embedded MQTT 5 broker of Shoal, and tools for other brokers.",
        epilog=RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shoal {version('shoal')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    _add_passwd(commands)
    doctor.add_parser(commands)
    render.add_parser(commands)
    return parser, list(commands.choices)
