"""What is done to a broker in the area `broker`, and what of it is measured: one function a load.

CPU is the broker process's, wall time the generator's. Which broker gets which load is broker.py's business.
"""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import crowd
import measure
import processes
from brokers import LOAD_CORE, Broker
from crowd import Crowd
from generator import Client, echo_together
from load import IN_FLIGHT, PAYLOAD_BYTES, payload
from measure import BenchError
from mqtt_bytes import MQTT_5

TOPIC = "bench/echo"
CHUNK_BYTES = 64 << 10
CHUNK = bytes(range(256)) * (CHUNK_BYTES // 256)
CHUNK_TOPIC = "shoal/b/5d41402abc4b2a76/7"
AT_ONCE = 4
CLIENTS = 4


@dataclass(frozen=True, slots=True)
class Counts:
    """How much one sample takes."""

    echoes: int
    against_amqtt: int
    durable: int
    round_trips: int
    publishers: int
    turns: int
    subscribers: int
    messages: int
    chunks: int
    idle: int
    idle_s: float


def echo(
    broker: Broker,
    count: int,
    round_trips: int,
    *,
    qos: int,
    level: int = MQTT_5,
    tls: ssl.SSLContext | None = None,
    is_persistent: bool = False,
) -> Mapping[str, float]:
    """One client publishes to itself: one message is a PUBLISH in and one out, each settled at its QoS."""
    name = f"bench-echo-{qos}-{level}"
    with (
        processes.on_core(LOAD_CORE),
        Client.open(broker.port, name, level=level, tls=tls, is_persistent=is_persistent) as client,
    ):
        client.subscribe(TOPIC, qos)
        client.echo(TOPIC, count // 10, in_flight=IN_FLIGHT, qos=qos)
        cpu_before_s = processes.cpu_s(broker.pid)
        many = client.echo(TOPIC, count, in_flight=IN_FLIGHT, qos=qos)
        cpu_s = processes.cpu_s(broker.pid) - cpu_before_s
        single = client.echo(TOPIC, round_trips, in_flight=1, qos=qos)
    return _busy(cpu_s, many.cpu_s, many.took_s, many.delivered, broker) | {
        "p50_us": measure.percentile(single.round_trips_s, 0.5) * 1e6,
        "p99_us": measure.percentile(single.round_trips_s, 0.99) * 1e6,
        "sent": many.sent + single.sent,
        "delivered": many.delivered + single.delivered,
    }


def throughput(broker: Broker, count: int, *, qos: int, level: int = MQTT_5) -> Mapping[str, float]:
    """As `echo`, by several clients at the same time: the broker need never wait for the generator."""
    topics = [f"{TOPIC}/{number}" for number in range(CLIENTS)]
    with processes.on_core(LOAD_CORE), contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(Client.open(broker.port, f"bench-{number}", level=level))
            for number in range(CLIENTS)
        ]
        for client, topic in zip(clients, topics, strict=True):
            client.subscribe(topic, qos)
        each = count // CLIENTS
        echo_together(clients, topics, each // 10 + 1, in_flight=IN_FLIGHT, qos=qos)
        cpu_before_s = processes.cpu_s(broker.pid)
        many = echo_together(clients, topics, each, in_flight=IN_FLIGHT, qos=qos)
        cpu_s = processes.cpu_s(broker.pid) - cpu_before_s
    return _busy(cpu_s, many.cpu_s, many.took_s, many.delivered, broker) | {
        "sent": many.sent,
        "delivered": many.delivered,
    }


def many_publishers(broker: Broker, counts: Counts) -> Mapping[str, float]:
    """Many connections publish at QoS 1 to one subscriber."""
    with processes.on_core(LOAD_CORE):
        through = crowd.funnel(
            broker, TOPIC, publishers=counts.publishers, turns=counts.turns, at_once=AT_ONCE
        )
    return _busy(through.broker_cpu_s, through.cpu_s, through.took_s, through.delivered, broker) | {
        "sent": through.sent,
        "delivered": through.delivered,
    }


def fan_out(broker: Broker, counts: Counts, *, qos: int) -> Mapping[str, float]:
    """Small messages, one at a time, each to everybody; the time of one is until the last has it."""
    with _fan(broker, counts.subscribers) as (subscribers, publisher):
        subscribers.subscribe(TOPIC, qos)
        return _deliver(
            broker,
            subscribers,
            publisher,
            [(TOPIC, payload(number)) for number in range(counts.messages)],
            qos=qos,
        )


def chunk_published(broker: Broker, counts: Counts) -> Mapping[str, float]:
    """A retained chunk of a blob is published to everybody who waits for it."""
    with _fan(broker, counts.subscribers) as (subscribers, publisher):
        subscribers.subscribe(CHUNK_TOPIC, 1)
        chunks = [(CHUNK_TOPIC, CHUNK)] * counts.chunks
        figures = _deliver(broker, subscribers, publisher, chunks, qos=1, retain=True)
        publisher.publish(CHUNK_TOPIC, b"", retain=True)
        subscribers.all_receive(b"")
        return figures


def chunk_retained(broker: Broker, counts: Counts) -> Mapping[str, float]:
    """A chunk of a blob is retained, and everybody subscribes and gets it."""
    cpu_s = generator_s = took_s = 0.0
    delivered = 0
    with _fan(broker, counts.subscribers) as (subscribers, publisher):
        publisher.publish(CHUNK_TOPIC, CHUNK, retain=True)
        for _ in range(counts.chunks):
            before_s, own_before_s = processes.cpu_s(broker.pid), time.process_time()
            started_s = time.perf_counter()
            delivered += subscribers.subscribe_and_receive(CHUNK_TOPIC, CHUNK)
            took_s += time.perf_counter() - started_s
            publisher.ping()
            cpu_s += processes.cpu_s(broker.pid) - before_s
            generator_s += time.process_time() - own_before_s
            subscribers.unsubscribe(CHUNK_TOPIC)
        publisher.publish(CHUNK_TOPIC, b"", retain=True)
    return _busy(cpu_s, generator_s, took_s, delivered, broker) | {
        "chunk_ms": cpu_s / counts.chunks * 1e3,
        "sent": len(subscribers) * counts.chunks,
        "delivered": delivered,
    }


def idle(
    starting: AbstractContextManager[Broker], counts: Counts, *, subscribes: bool
) -> Mapping[str, float]:
    """By how much a fresh broker grows, connection by connection, and what it does while all are silent."""
    script = Path(__file__).with_name("idle_connections.py")
    with (
        starting as broker,
        processes.child(
            [
                processes.PYTHON,
                script,
                str(broker.port),
                str(counts.idle),
                "1" if subscribes else "0",
            ],
            core=LOAD_CORE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child,
    ):
        assert child.stdin is not None  # noqa: S101 - PIPE; for the type checker
        assert child.stdout is not None  # noqa: S101 - likewise
        # What the first connection brings is not what each takes.
        with Client.open(broker.port, "first") as first:
            first.subscribe(TOPIC, 1)
            first.echo(TOPIC, 100, in_flight=10, qos=1)
        before_bytes = processes.pss_bytes(broker.pid)
        started_s = time.perf_counter()
        child.stdin.write(b"\n")
        child.stdin.flush()
        connected = int(child.stdout.readline() or 0)
        if connected < counts.idle:
            raise BenchError(f"{broker.name}: {connected} of {counts.idle} connections were made")
        took_s = time.perf_counter() - started_s
        grown_bytes = processes.pss_bytes(broker.pid) - before_bytes
        cpu_before_s = processes.cpu_s(broker.pid)
        time.sleep(counts.idle_s)
        idle_cpu_s = processes.cpu_s(broker.pid) - cpu_before_s
        return {
            "connection_kb": grown_bytes / counts.idle / 1e3,
            "idle_percent": idle_cpu_s / counts.idle_s * 100,
            "connect_s": took_s,
            "sent": counts.idle,
            "delivered": connected,
        }


@contextlib.contextmanager
def _fan(broker: Broker, subscribers: int) -> Iterator[tuple[Crowd, Client]]:
    with (
        processes.on_core(LOAD_CORE),
        Crowd.open(broker.port, subscribers) as crowd_of_them,
        Client.open(broker.port, "bench-publisher") as publisher,
    ):
        yield crowd_of_them, publisher


def _deliver(
    broker: Broker,
    subscribers: Crowd,
    publisher: Client,
    messages: list[tuple[str, bytes]],
    *,
    qos: int,
    retain: bool = False,
) -> Mapping[str, float]:
    """Publish one after the other, each when everybody has the one before."""
    delivered = 0
    rounds_s: list[float] = []
    cpu_before_s, own_before_s = processes.cpu_s(broker.pid), time.process_time()
    for topic, message in messages:
        started_s = time.perf_counter()
        publisher.publish(topic, message, qos=qos, retain=retain)
        delivered += subscribers.all_receive(message)
        rounds_s.append(time.perf_counter() - started_s)
    publisher.ping()
    cpu_s = processes.cpu_s(broker.pid) - cpu_before_s
    own_cpu_s = time.process_time() - own_before_s
    return _busy(cpu_s, own_cpu_s, sum(rounds_s), delivered, broker) | {
        "chunk_ms": cpu_s / len(messages) * 1e3,
        "p50_us": measure.percentile(rounds_s, 0.5) * 1e6,
        "p99_us": measure.percentile(rounds_s, 0.99) * 1e6,
        "sent": len(subscribers) * len(messages),
        "delivered": delivered,
    }


def _busy(
    cpu_s: float, own_cpu_s: float, took_s: float, delivered: int, broker: Broker
) -> dict[str, float]:
    return {
        "per_s": delivered / took_s,
        "broker_us": cpu_s / max(1, delivered) * 1e6,
        "broker_busy": cpu_s / took_s * 100,
        "generator_busy": own_cpu_s / took_s * 100,
        "rss_mib": processes.rss_mib(broker.pid),
    }


def settings(counts: Counts) -> dict[str, tuple[str, ...]]:
    """What a reader has to know of each load, in lines, by part."""
    return {
        "echo": (
            (
                f"QoS 0, 1, 2, TLS: one client publishes {PAYLOAD_BYTES} bytes to itself; {counts.echoes:,}"
                f" messages, {IN_FLIGHT} in flight, then {counts.round_trips:,} with one in flight"
            ),
            (
                f"many publishers: {counts.publishers} connections, {AT_ONCE} messages each a turn,"
                f" {counts.turns} turns, QoS 1, to one subscriber"
            ),
            "codec, no broker: the floor, an echo on the codec without sessions, topics and limits",
        ),
        "amqtt": (
            (
                f"3.1.1: {CLIENTS} clients publish to themselves, {IN_FLIGHT} in flight each,"
                f" {counts.against_amqtt:,} messages in all; MQTT 3.1.1 and the same generator for all"
            ),
        ),
        "fanout": (
            (
                f"fan-out: {counts.messages} messages of {PAYLOAD_BYTES} bytes, one at a time, to"
                f" {counts.subscribers:,} subscribers; figures a delivery, p50 until the last one has it"
            ),
            (
                f"chunk: {CHUNK_BYTES >> 10} KiB retained, QoS 1, {counts.subscribers:,} subscribers,"
                f" {counts.chunks} times; published to them, or had by subscribing"
            ),
        ),
        "idle": (
            (
                f"idle: {counts.idle:,} connections of one other process, no TLS, no keep alive; growth of the"
                " broker's PSS, without the kernel's buffers; each a fresh broker"
            ),
        ),
        "durable": (
            (
                f"durable: QoS 1, {counts.durable:,} messages, {IN_FLIGHT} in flight, to a session that outlives"
                " its connection; mosquitto saves its state when something changed (autosave_on_changes, 1)"
            ),
        ),
    }
