"""The doctor's plain probes: limits, retained messages, sessions, wills, sharing, properties.

Everything happens under `shoal-doctor/<random>/` and is cleaned up. They look at a broker that runs:
what it does across a crash (`durability`) and whom it lets do what (`access_rules`) is asked elsewhere.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from shoal_broker.doctor.client import WAIT_S, ProbeClient, Target, connected
from shoal_broker.doctor.errors import DoctorError
from shoal_broker.doctor.finding import Finding, Report
from shoal_broker.doctor.retained_sizes import retained_sizes
from shoal_broker.doctor.round_trip import round_trip
from shoal_broker.loopback import is_loopback

WANTED_PACKET_BYTES = 96 << 10
WANTED_RECEIVE_MAXIMUM = 16
SHARED_MESSAGES = 20


def examine(target: Target) -> Report:
    """Run every probe. Raises UnreachableError when there is nothing to probe."""
    with connected(target, "first") as client:
        findings = [transport(target), _limits(client)]
    for name, probe in PROBES.items():
        try:
            findings.append(probe(target))
        except (DoctorError, ValueError) as exc:
            findings.append(Finding(name, ok=False, means=str(exc)))
    return Report(findings)


# --- probes


def transport(target: Target) -> Finding:
    """Whether what is said to the broker is encrypted on its way. Asks nobody."""
    tls = target.tls
    facts = {
        "tls": tls is not None,
        "client_certificate": tls is not None and tls.cert_file is not None,
    }
    if tls is not None:
        who = "our certificate" if facts["client_certificate"] else "no certificate of ours"
        means = f"TLS 1.3, the broker's name and certificate verified, {who}"
        return Finding("transport", ok=True, means=means, facts=facts)
    if is_loopback(target.host):
        return Finding("transport", ok=True, means="in the clear, on this machine", facts=facts)
    means = f"in the clear to {target.host}: whoever is on the way reads, changes and answers everything"
    return Finding("transport", ok=False, means=means, facts=facts)


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
    "round trip": round_trip,
    "retained": _retained,
    "retained sizes": retained_sizes,
    "persistent session": _persistent_session,
    "last will": _last_will,
    "shared subscription": _shared,
    "request properties": _request_properties,
}
