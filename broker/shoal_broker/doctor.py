"""`shoal-broker doctor`: does a given broker keep the promises that Shoal builds on?

Synchronous, one-shot probes with paho-mqtt on purpose: they must not share code with the session
whose behaviour they explain. Everything happens under `shoal-doctor/<random>/` and is cleaned up.
What it does not do: measure durability across a crash of the broker, or test its ACLs.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from shoal_broker.bus_errors import TlsFilesError
from shoal_broker.doctor_client import (
    WAIT_S,
    DoctorError,
    ProbeClient,
    Target,
    UnreachableError,
    connected,
)
from shoal_broker.tls import client_context, configured

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

ROUND_TRIPS = 50
# Nagle and delayed ACK together cost 40 ms or more; a LAN without them stays far below.
NAGLE_SUSPECT_MS = 35.0
WANTED_PACKET_BYTES = 96 << 10
WANTED_RECEIVE_MAXIMUM = 16
SHARED_MESSAGES = 20

EPILOG = """examples:
  shoal-broker doctor --host broker.example.net --username probe --password-file secret.txt
  shoal-broker doctor --host broker.example.net --port 8883 --ca-file ca.crt --cert-file probe.crt --key-file probe.key
exit codes: 0 every probe ok, 1 a probe failed, 2 usage, 3 broker not reached or identity refused
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one probe: `means` is what it says about a fleet on this broker."""

    probe: str
    ok: bool
    means: str
    facts: dict[str, Any] = field(default_factory=dict)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `doctor` command; its `func` takes the parsed arguments and returns the exit code."""
    parser = subparsers.add_parser(
        "doctor",
        help="check whether a broker keeps the promises that Shoal needs",
        description="Probe a broker: one line a probe, ok or fail, and what it means.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="broker address (default: %(default)s)")
    parser.add_argument("--port", type=int, default=1883, help="TCP port (default: %(default)s)")
    parser.add_argument("--username", help="user name, if the broker asks for one")
    parser.add_argument("--password-file", type=Path, help="file whose first line is the password")
    parser.add_argument(
        "--ca-file", metavar="FILE", help="speak TLS 1.3: who vouches for the broker"
    )
    parser.add_argument("--cert-file", metavar="FILE", help="our certificate, if it asks for one")
    parser.add_argument("--key-file", metavar="FILE", help="the key of that certificate")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Probe, print, and return the exit code."""
    password = None
    if arguments.password_file is not None:
        try:
            password = arguments.password_file.read_text().partition("\n")[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as exc:
            _print(f"cannot read the password file {arguments.password_file}: {exc}")
            return EXIT_USAGE
    try:
        tls = configured(
            ca_file=arguments.ca_file,
            cert_file=arguments.cert_file,
            key_file=arguments.key_file,
            server_name=None,
        )
        if tls is not None:
            client_context(tls)
    except TlsFilesError as exc:
        _print(str(exc))
        return EXIT_USAGE
    target = Target(arguments.host, arguments.port, arguments.username, password, tls)
    try:
        findings = examine(target)
    except UnreachableError as exc:
        if arguments.json:
            _print(json.dumps({"ok": False, "error": str(exc), "probes": []}))
        else:
            _print(f"{target.host}:{target.port}: {exc}")
        return EXIT_UNREACHABLE
    ok = all(finding.ok for finding in findings)
    if arguments.json:
        _print(json.dumps({"ok": ok, "probes": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            _print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.probe:<20} {finding.means}")
    return EXIT_OK if ok else EXIT_FAILED


def examine(target: Target) -> list[Finding]:
    """Run every probe. Raises UnreachableError when there is nothing to probe."""
    with connected(target, "first") as client:
        findings = [_limits(client)]
    for name, probe in PROBES.items():
        try:
            findings.append(probe(target))
        except (DoctorError, ValueError) as exc:
            findings.append(Finding(name, ok=False, means=str(exc)))
    return findings


# --- probes


def _limits(client: ProbeClient) -> Finding:
    properties = client.connack
    packet_bytes: int | None = getattr(properties, "MaximumPacketSize", None)
    in_flight: int = getattr(properties, "ReceiveMaximum", 65_535)
    qos: int = getattr(properties, "MaximumQoS", 2)
    retain = bool(getattr(properties, "RetainAvailable", 1))
    problems = []
    if packet_bytes is not None and packet_bytes < WANTED_PACKET_BYTES:
        problems.append(f"packets of at most {packet_bytes} bytes: chunks must be smaller")
    if in_flight < WANTED_RECEIVE_MAXIMUM:
        problems.append(f"only {in_flight} messages in flight: slow")
    if qos < 1:
        problems.append("no QoS 1: messages are lost")
    if not retain:
        problems.append("no retained messages: no presence, no wanted state")
    size = "packets of any size" if packet_bytes is None else f"packets up to {packet_bytes} bytes"
    means = f"{size}, {in_flight} in flight, QoS {qos}, retained messages"
    facts = {
        "maximum_packet_bytes": packet_bytes,
        "receive_maximum": in_flight,
        "maximum_qos": qos,
        "retain_available": retain,
    }
    return Finding("limits", ok=not problems, means="; ".join(problems) or means, facts=facts)


def _round_trip(target: Target) -> Finding:
    topic = target.topic("rtt")
    times_ms = []
    with connected(target, "rtt") as client:
        client.subscribe(topic)
        for n in range(ROUND_TRIPS):
            began_s = time.perf_counter()
            client.publish(topic, b"%d" % n)
            client.next_message()
            times_ms.append((time.perf_counter() - began_s) * 1000)
    p50 = statistics.median(times_ms)
    p99 = sorted(times_ms)[-1 - ROUND_TRIPS // 100]
    means = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms over {ROUND_TRIPS} messages at QoS 1"
    ok = p50 < NAGLE_SUSPECT_MS
    if not ok:
        means += ": a far broker, or one without TCP_NODELAY (mosquitto: set_tcp_nodelay true)"
    facts = {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "messages": ROUND_TRIPS}
    return Finding("round trip", ok=ok, means=means, facts=facts)


def _retained(target: Target) -> Finding:
    topic = target.topic("retained")
    with ExitStack() as stack:
        client = stack.enter_context(connected(target, "ret"))
        if not getattr(client.connack, "RetainAvailable", 1):
            raise DoctorError("the broker keeps no retained messages")
        stack.callback(client.clear_retained, topic)
        client.publish(topic, b"kept", retain=True)
        with connected(target, "ret-late") as late:
            late.subscribe(topic)
            message = late.next_message()
        if not message.retain or message.payload != b"kept":
            raise DoctorError("a retained message came back changed or without its retain flag")
        client.clear_retained(topic)
        with connected(target, "ret-last") as last:
            last.subscribe(topic)
            # A marker behind it: whatever was retained would have come before.
            last.publish(topic, b"marker")
            if last.next_message().payload != b"marker":
                raise DoctorError("a cleared retained message is still delivered")
    return Finding("retained", ok=True, means="set, read by a late subscriber, cleared")


def _persistent_session(target: Target) -> Finding:
    topic = target.topic("session")
    name = "away"
    try:
        with connected(target, name, session_expiry_s=60) as client:
            client.subscribe(topic)
        with connected(target, "stay") as sender:
            sender.publish(topic, b"while away")
        with connected(target, name, clean=False, session_expiry_s=60) as client:
            if not client.session_present:
                raise DoctorError(
                    "the broker forgets a session: what is sent while a node is away is lost"
                )
            if client.next_message().payload != b"while away":
                raise DoctorError("another message than the one sent while away came back")
    finally:
        # A clean start without expiry removes what the broker keeps for this client id.
        with connected(target, name):
            pass
    return Finding(
        "persistent session", ok=True, means="a QoS 1 message waits for a client that is away"
    )


def _last_will(target: Target) -> Finding:
    topic = target.topic("will")
    with connected(target, "will-watch") as watcher:
        watcher.subscribe(topic)
        with connected(target, "will", will_topic=topic) as doomed:
            doomed.drop()
            if watcher.next_message().payload != b"gone":
                raise DoctorError("the last will came back changed")
    return Finding("last will", ok=True, means="delivered when a connection breaks")


def _shared(target: Target) -> Finding:
    topic = target.topic("shared")
    name = target.prefix.rpartition("/")[2]
    with connected(target, "sh-1") as one, connected(target, "sh-2") as two:
        for member in (one, two):
            member.subscribe(f"$share/{name}/{topic}")
        for n in range(SHARED_MESSAGES):
            two.publish(topic, b"%d" % n)
        got = [0, 0]
        deadline_s = time.monotonic() + WAIT_S
        while sum(got) < SHARED_MESSAGES and time.monotonic() < deadline_s:
            for index, member in enumerate((one, two)):
                got[index] += member.drain()
    facts = {"members": got, "messages": SHARED_MESSAGES}
    if sum(got) != SHARED_MESSAGES:
        means = f"{sum(got)} deliveries of {SHARED_MESSAGES} messages: controllers cannot share the load"
        return Finding("shared subscription", ok=False, means=means, facts=facts)
    means = f"{SHARED_MESSAGES} messages went {got[0]} : {got[1]}, each once"
    return Finding("shared subscription", ok=True, means=means, facts=facts)


def _request_properties(target: Target) -> Finding:
    topic = target.topic("request")
    correlation = secrets.token_bytes(8)
    with connected(target, "req") as client:
        client.subscribe(topic)
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = target.topic("reply")
        properties.CorrelationData = correlation
        client.publish(topic, b"?", properties=properties)
        arrived = client.next_message().properties
        if getattr(arrived, "ResponseTopic", None) != target.topic("reply"):
            raise DoctorError("the response topic does not arrive: no requests over this broker")
        if getattr(arrived, "CorrelationData", None) != correlation:
            raise DoctorError("correlation data do not arrive: replies cannot be told apart")
    return Finding(
        "request properties", ok=True, means="response topic and correlation data pass through"
    )


PROBES: dict[str, Callable[[Target], Finding]] = {
    "round trip": _round_trip,
    "retained": _retained,
    "persistent session": _persistent_session,
    "last will": _last_will,
    "shared subscription": _shared,
    "request properties": _request_properties,
}


def _print(line: str) -> None:
    print(line)  # noqa: T201 - what the command is for
