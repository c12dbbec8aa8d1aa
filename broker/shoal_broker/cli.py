"""`shoal-broker`: run the embedded MQTT 5 broker, keep its password file, examine other brokers.

The only module of the broker that reads arguments, prints for people and sets the process up.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from shoal_broker.doctor import cli as doctor
from shoal_broker.errors import BrokerError, ConfigError
from shoal_broker.render import cli as render
from shoal_broker.server import cli as run_command
from shoal_broker.server.passwords import set_password
from shoal_broker.status import cli as status
from shoal_contract.exits import Exit

DEFAULT_COMMAND = "run"
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
    print("a running broker reads the file when it starts, and at SIGHUP", file=sys.stderr)
    return Exit.OK


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    parser = argparse.ArgumentParser(
        prog="shoal-broker",
        description="The embedded MQTT 5 broker of Shoal, and tools for other brokers.",
        epilog=run_command.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shoal {version('shoal')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run_command.add_parser(commands)
    _add_passwd(commands)
    doctor.add_parser(commands)
    render.add_parser(commands)
    status.add_parser(commands)
    return parser, list(commands.choices)
