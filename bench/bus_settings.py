"""How much the area `bus` measures, and what a reader has to know of it, in lines. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass

import brokers
import idle
import wire_sizes
from brokers import LOAD_CORE
from fleet import Crowd
from idle import Window
from load import IN_FLIGHT, PAYLOAD_BYTES
from measure import Options
from shoal_broker.link import KEEPALIVE_S


@dataclass(frozen=True, slots=True)
class Counts:
    """How much one sample takes."""

    commands: int
    crowd: Crowd
    window: Window


def settings(counts: Counts, broker: str, options: Options) -> tuple[str, ...]:
    """The lines of the parts that were measured; `broker` carried the commands."""
    lines = {
        "command": _command(counts, broker),
        "sessions": _sessions(counts),
        "agent": _agent(counts),
        "wire": _wire(),
    }
    return _all() + tuple(
        line for part, found in lines.items() if options.wants(part) for line in found
    )


def _all() -> tuple[str, ...]:
    cores = "one core for everything"
    if LOAD_CORE is not None:
        cores = "cores: brokers and hubs on one, generator, nodes and sessions on another"
    return (
        "TCP_NODELAY on every end, no TLS, no authentication; CPU by getrusage and the process's CPU clock",
        cores,
        (
            f"mosquitto: {brokers.mosquitto_version()}, max_inflight_messages"
            f" {brokers.MOSQUITTO_IN_FLIGHT}, no persistence"
        ),
    )


def _command(counts: Counts, broker: str) -> tuple[str, ...]:
    return (
        (
            f"command: hub -> {broker} -> node -> {broker} -> hub, QoS 1 both ways, three processes;"
            f" {counts.commands:,} commands, {IN_FLIGHT} in flight, then p50 and p99 with one"
        ),
        "Session: codec transport, CBOR messages, ids remembered in memory; unsigned",
        "signed: the hub signs every command for the node's topic (COSE_Sign1, Ed25519), the node checks it",
        "durable: hub's outbox until the answer, node's id and answer in one commit; SQLite WAL, FULL",
        "aiomqtt + ack + outbox: the same durable path on aiomqtt with manual acknowledgement",
        f"plain echo: {PAYLOAD_BYTES} bytes sent back, nothing decoded, remembered or kept",
        "codec, no library: the floor, without a client library",
    )


def _sessions(counts: Counts) -> tuple[str, ...]:
    crowd = counts.crowd
    return (
        (
            f"sessions: {crowd.sessions:,} connections to shoal-broker, codec transport, one subscription"
            f" each, keepalive {KEEPALIVE_S} s; growth of PSS, without the kernel's buffers; idle for {crowd.idle_s:g} s"
        ),
        (
            f"restarted: {crowd.returning:,} sessions, from when the broker listens until all are connected"
            " and subscribed again; hub CPU is the sessions'"
        ),
    )


def _agent(counts: Counts) -> tuple[str, ...]:
    window = counts.window
    return (
        (
            f"a day: keepalives ({window.keepalives} watched), state reports (one every"
            f" {idle.DAY_S / idle.reports_a_day():g} s unless configured) and the rest are counted apart, and"
            f" so multiplied; flash is watched for {window.watched_s} s"
        ),
        (
            "uplink: what MQTT says both ways, counted by a proxy, one connection a day; flash: bytes written"
            " to the database by strace, checkpoints included, without what the file system adds"
        ),
        "1 message/s: 60 bytes through outbox and Session, receipts as the controller gives them, or none",
        "naive outbox: WAL, FULL, insert and delete each committed, 60 bytes",
    )


def _wire() -> tuple[str, ...]:
    longer = wire_sizes.LONGER_NODE
    return (
        (
            f"command on the wire: the PUBLISH of a {wire_sizes.BODY_BYTES}-byte body to node"
            f" {wire_sizes.NODE!r} with message expiry; to {longer!r}: {wire_sizes.command_bytes(longer)} bytes,"
            f" signed {wire_sizes.command_bytes(longer, is_signed=True)}"
        ),
        "sizes: the examples that the tests pin; Protobuf by a hand-written encoder of the same fields",
    )
