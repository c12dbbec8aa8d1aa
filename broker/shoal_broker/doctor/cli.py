"""The `doctor` command of `shoal-broker`: arguments to probes, findings to people and programs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from shoal_broker.bus_errors import PlaintextError, TlsFilesError
from shoal_broker.doctor.access_rules import check_access
from shoal_broker.doctor.client import Target
from shoal_broker.doctor.durability import Parties, plant, read_planted, verify
from shoal_broker.doctor.errors import DoctorError, DoctorFileError, UnreachableError
from shoal_broker.doctor.finding import Report
from shoal_broker.doctor.identities import EXAMPLE, read_identities
from shoal_broker.doctor.passwords import read_password
from shoal_broker.doctor.probes import examine
from shoal_broker.loopback import check_encrypted
from shoal_broker.tls import client_context, configured
from shoal_contract.exits import Exit

LABELS = {True: "ok  ", False: "FAIL", None: "?   "}
EPILOG = f"""examples:
  shoal-broker doctor --host broker.example.net --username probe --password-file secret.txt
  shoal-broker doctor --host broker.example.net --port 8883 --ca-file ca.crt --cert-file probe.crt --key-file probe.key
  shoal-broker doctor --plant planted.json      then kill the broker, start it, and:
  shoal-broker doctor --verify planted.json
  shoal-broker doctor --host broker.example.net --port 8883 --ca-file ca.crt --identities identities.toml
  shoal-broker doctor --host broker.example.net --port 8883 --ca-file ca.crt --identities identities.toml --plant planted.json
an identities file (paths are looked for beside it):
  {"  ".join(EXAMPLE.splitlines(keepends=True))}
? in front of a line: cannot be told from outside, and is not counted as good
exit codes: 0 nothing failed, 1 something failed, 2 usage, 3 broker not reached or identity refused
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `doctor` command; its `func` takes the parsed arguments and returns the exit code."""
    parser = subparsers.add_parser(
        "doctor",
        help="check whether a broker keeps the promises that Shoal needs",
        description="Probe a broker: one line a probe, ok or fail, and what it means.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_target_options(parser)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--plant",
        type=Path,
        metavar="FILE",
        help="leave messages that must survive a crash of the broker; FILE says which",
    )
    instead.add_argument(
        "--verify", type=Path, metavar="FILE", help="count what survived, and clean up"
    )
    parser.add_argument(
        "--identities",
        type=Path,
        metavar="FILE",
        help="try the access rules as the controller and the node described in FILE; "
        "with --plant and --verify: plant as they",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(func=run)


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Where the broker is, and who we are there: for `told_target`."""
    parser.add_argument("--host", default="127.0.0.1", help="broker address (default: %(default)s)")
    parser.add_argument("--port", type=int, default=1883, help="TCP port (default: %(default)s)")
    parser.add_argument("--username", help="user name, if the broker asks for one")
    parser.add_argument("--password-file", type=Path, help="file whose first line is the password")
    parser.add_argument(
        "--ca-file", metavar="FILE", help="speak TLS 1.3: who vouches for the broker"
    )
    parser.add_argument("--cert-file", metavar="FILE", help="our certificate, if it asks for one")
    parser.add_argument("--key-file", metavar="FILE", help="the key of that certificate")
    parser.add_argument(
        "--plaintext", action="store_true", help="speak to another machine without TLS"
    )


def run(arguments: argparse.Namespace) -> int:
    """Probe, print, and return the exit code."""
    try:
        report = _examined(arguments)
    except (DoctorFileError, TlsFilesError, PlaintextError) as exc:
        return _failed(arguments, str(exc), Exit.USAGE)
    except UnreachableError as exc:
        return _failed(arguments, f"{arguments.host}:{arguments.port}: {exc}", Exit.UNREACHABLE)
    except DoctorError as exc:
        return _failed(arguments, str(exc), Exit.FAILED)
    if arguments.json:
        probes = [asdict(finding) for finding in report.findings]
        print(json.dumps({"ok": report.ok, "probes": probes, "note": report.note}))
    else:
        for finding in report.findings:
            print(f"{LABELS[finding.ok]} {finding.probe:<20} {finding.means}")
        if report.note is not None:
            print(report.note)
    return Exit.OK if report.ok else Exit.FAILED


def _examined(arguments: argparse.Namespace) -> Report:
    check_told(arguments)
    planted = None if arguments.verify is None else read_planted(arguments.verify)
    target = Target(arguments.host, arguments.port, None, None)
    if planted is not None:
        target = replace(target, prefix=planted.prefix)
    if arguments.identities is not None:
        for option in ("username", "password_file", "cert_file", "key_file"):
            if getattr(arguments, option) is not None:
                raise DoctorFileError(
                    f"--{option.replace('_', '-')}: with --identities it stands in the file"
                )
        identities = read_identities(arguments.identities, target, ca_file=arguments.ca_file)
        parties = Parties.of_identities(identities)
        examined = partial(check_access, identities)
    else:
        target = told_target(arguments, target)
        parties = Parties.of_target(target)
        examined = partial(examine, target)
    if planted is not None:
        return verify(parties, planted, arguments.verify)
    if arguments.plant is not None:
        return plant(parties, arguments.plant)
    return examined()


def check_told(arguments: argparse.Namespace) -> None:
    """Raise PlaintextError where these options would have a password, say, leave this machine in the clear."""
    check_encrypted(
        arguments.host,
        has_tls=arguments.ca_file is not None,
        plaintext=arguments.plaintext,
        say="give --ca-file (TLS), or --plaintext",
    )


def told_target(arguments: argparse.Namespace, target: Target) -> Target:
    """The target with the identity that the options give. Raises DoctorFileError, TlsFilesError."""
    password = None
    if arguments.password_file is not None:
        password = read_password(arguments.password_file)
    tls = configured(
        ca_file=arguments.ca_file,
        cert_file=arguments.cert_file,
        key_file=arguments.key_file,
        server_name=None,
    )
    if tls is not None:
        client_context(tls)
    return replace(target, username=arguments.username, password=password, tls=tls)


def _failed(arguments: argparse.Namespace, why: str, code: Exit) -> int:
    if arguments.json:
        print(json.dumps({"ok": False, "error": why, "probes": []}))
    else:
        print(why)
    return code
