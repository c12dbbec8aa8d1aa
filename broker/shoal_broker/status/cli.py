"""The `status` command of `shoal-broker`: a broker's $SYS topics, as any client may read them.

Mosquitto has the same topics, so it works there as well.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from shoal_broker.bus_errors import PlaintextError, TlsFilesError
from shoal_broker.doctor.cli import add_target_options, check_told, told_target
from shoal_broker.doctor.client import Target, connected
from shoal_broker.doctor.errors import DoctorError, DoctorFileError, UnreachableError
from shoal_broker.status.reading import rows, status_of
from shoal_contract.exits import Exit

ROOT = "$SYS/broker/"
QUIET_S = 0.5
"""Retained messages come at once: no further one within this time, and that was all."""
WITHIN_S = 5.0
MAX_TOPICS = 10_000
MAX_TEXT_CHARACTERS = 200
EXAMPLES = """\
examples:
  shoal-broker status
  shoal-broker status --host broker.example.net --port 8883 --ca-file ca.crt --cert-file me.crt --key-file me.key
  shoal-broker status --json
exit codes: 0 the broker told, 1 it tells us nothing ($SYS/# must be readable), 2 usage, 3 not reached
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `status` command; its `func` takes the parsed arguments and returns the exit code."""
    parser = subparsers.add_parser(
        "status",
        help="ask a running broker how it is doing",
        description="Read what a broker tells about itself in $SYS; Mosquitto's, too.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_target_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask, print, and return the exit code."""
    where = f"{arguments.host}:{arguments.port}"
    try:
        check_told(arguments)
        topics = read(told_target(arguments, Target(arguments.host, arguments.port, None, None)))
    except (DoctorFileError, TlsFilesError, PlaintextError) as exc:
        return _failed(arguments, str(exc), Exit.USAGE)
    except UnreachableError as exc:
        return _failed(arguments, f"{where}: {exc}", Exit.UNREACHABLE)
    except DoctorError as exc:
        return _failed(arguments, f"{where}: {exc}", Exit.FAILED)
    if not topics:
        told = f"{where}: the broker tells us nothing: may this client read $SYS/#?"
        return _failed(arguments, told, Exit.FAILED)
    status = status_of(topics)
    if arguments.json:
        print(json.dumps({"ok": True, "status": asdict(status), "topics": topics}))
    else:
        print(f"{'broker':<16} {where}")
        for name, value in rows(status):
            print(f"{name:<16} {value}")
    return Exit.OK


def read(target: Target) -> dict[str, str]:
    """What is retained below $SYS/broker/, by the rest of the topic. Raises DoctorError."""
    with connected(target, "status") as client:
        client.subscribe(f"{ROOT}#")
        topics: dict[str, str] = {}
        for message in client.collect(quiet_s=QUIET_S, within_s=WITHIN_S):
            if len(topics) >= MAX_TOPICS:
                break
            name = message.topic.removeprefix(ROOT)
            topics[name] = bytes(message.payload).decode(errors="replace")[:MAX_TEXT_CHARACTERS]
        return topics


def _failed(arguments: argparse.Namespace, why: str, code: Exit) -> int:
    if arguments.json:
        print(json.dumps({"ok": False, "error": why}))
    else:
        print(why)
    return code
