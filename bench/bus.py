"""Area `bus`: the embedded broker beside Mosquitto, and the Session beside the clients it stands on.

Brokers and publishers are processes of their own; the load is one raw client on the codec (load.py),
the same for both brokers, and what was delivered is counted by a client that did not publish it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import brokers
import measure
import processes
from brokers import BROKER_CORE, LOAD_CORE, Broker
from load import IN_FLIGHT, PAYLOAD_BYTES, RawClient
from measure import BenchError, Column, Figure, Options, Rounds, Row, Table
from publishers import TOPIC, requests_sent

ECHO_TOPIC = "bench/echo"
QUIET_S = 3.0
OURS = "echo: shoal-broker"
MOSQUITTO = "echo: mosquitto"
FLOOR = "echo: codec, no broker"
COLUMNS = (
    Column("per_s", "messages/s"),
    Column("cpu_us", "CPU us/msg", 1),
    Column("p50_us", "p50 us"),
    Column("p99_us", "p99 us"),
    Column("rss_mib", "MiB", 1, spread=False),
    Column("delivered", "delivered", spread=False),
    Column("sent", "sent", spread=False),
)
OUR_PUBLISHERS = (
    "publish: Session, outbox on disk",
    "publish: Session, direct",
    "publish: Session/codec, outbox",
    "publish: Session/codec, direct",
)
REQUEST, REQUEST_CODEC = "request: Session", "request: Session/codec"
PEER_PUBLISHERS = ("publish: aiomqtt", "publish: paho")
_PLACES = "cores: brokers and the counter of what was delivered on one, generator and publishers on another"
PUBLISHERS = {
    "publish: Session, outbox on disk": "outbox",
    "publish: Session, direct": "direct",
    "publish: Session/codec, outbox": "outbox-codec",
    "publish: Session/codec, direct": "direct-codec",
    REQUEST: "request",
    REQUEST_CODEC: "request-codec",
    "publish: aiomqtt": "aiomqtt",
    "publish: paho": "paho",
    "publish: raw codec": "raw",
}


@dataclass(frozen=True, slots=True)
class Counts:
    """How many messages one sample takes."""

    echoes: int
    round_trips: int
    published: int


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Measure brokers and publishers in one set of shuffled rounds."""
    counts = Counts(1000, 200, 300) if options.is_quick else Counts(20_000, 2000, 3000)
    with contextlib.ExitStack() as stack:
        running = {
            OURS: stack.enter_context(brokers.shoal_broker(OURS)),
            FLOOR: stack.enter_context(brokers.floor(FLOOR)),
        }
        skipped: tuple[str, ...] = ("mosquitto: not installed (apt-get install mosquitto)",)
        if (program := brokers.mosquitto_program()) is not None:
            running[MOSQUITTO] = stack.enter_context(
                brokers.mosquitto(MOSQUITTO, program, options.folder)
            )
            skipped = ()
        target = running.get(MOSQUITTO, running[OURS])
        contenders: dict[str, Callable[[], Mapping[str, float]]] = {
            name: partial(_echo, broker, counts) for name, broker in running.items()
        }
        for name, kind in PUBLISHERS.items():
            contenders[name] = partial(_publish, kind, target.port, counts.published, options)
        rounds = Rounds(options)
        rounds.run(contenders, say=say)
    return Table(
        title="bus: MQTT 5 QoS 1 on loopback",
        columns=COLUMNS,
        rows=tuple(_row(name, rounds) for name in contenders),
        settings=_settings(counts, target),
        notes=_notes(rounds),
        skipped=skipped,
    )


def _echo(broker: Broker, counts: Counts) -> Mapping[str, float]:
    """One message echoed is a QoS 1 PUBLISH in and one out, both acknowledged."""
    with processes.on_core(LOAD_CORE), RawClient.open(broker.port, "bench-echo") as client:
        client.subscribe(ECHO_TOPIC)
        client.echo(ECHO_TOPIC, counts.echoes // 10, in_flight=IN_FLIGHT)
        cpu_before_s = processes.cpu_s(broker.pid)
        many = client.echo(ECHO_TOPIC, counts.echoes, in_flight=IN_FLIGHT)
        broker_cpu_s = processes.cpu_s(broker.pid) - cpu_before_s
        single = client.echo(ECHO_TOPIC, counts.round_trips, in_flight=1)
    return {
        "per_s": many.delivered / many.took_s,
        "cpu_us": broker_cpu_s / max(1, many.delivered) * 1e6,
        "broker_busy": broker_cpu_s / many.took_s,
        "generator_busy": many.cpu_s / many.took_s,
        "p50_us": measure.percentile(single.round_trips_s, 0.5) * 1e6,
        "p99_us": measure.percentile(single.round_trips_s, 0.99) * 1e6,
        "rss_mib": processes.rss_mib(broker.pid),
        "sent": many.sent + single.sent,
        "delivered": many.delivered + single.delivered,
    }


def _publish(kind: str, port: int, count: int, options: Options) -> Mapping[str, float]:
    script = Path(__file__).with_name("publishers.py")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder))
        counter = stack.enter_context(RawClient.open(port, "bench-counter"))
        arguments: list[str | Path] = [
            processes.PYTHON,
            script,
            kind,
            str(port),
            str(count),
            folder,
        ]
        child = stack.enter_context(
            processes.child(
                arguments, core=LOAD_CORE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
        stack.enter_context(processes.on_core(BROKER_CORE))
        counter.subscribe(TOPIC)
        assert child.stdin is not None  # noqa: S101 - PIPE; for the type checker
        assert child.stdout is not None  # noqa: S101
        if child.stdout.readline() != b"ready\n":
            raise BenchError(f"the publisher {kind!r} did not connect")
        child.stdin.write(b"go\n")
        child.stdin.flush()
        if kind.startswith("request"):
            delivered = counter.answer(requests_sent(count), quiet_s=QUIET_S)
        else:
            delivered = counter.collect(count, quiet_s=QUIET_S)
        took = json.loads(child.stdout.readline() or "{}")
    if not took:
        raise BenchError(f"the publisher {kind!r} did not finish")
    return {
        "per_s": took["measured"] / took["took_s"],
        "cpu_us": took["cpu_s"] / took["measured"] * 1e6,
        "sent": took["sent"],
        "delivered": delivered,
    } | {name: took[name] for name in ("p50_us", "p99_us") if name in took}


def _row(name: str, rounds: Rounds) -> Row:
    figures = rounds.figures(name)
    for counter in ("sent", "delivered"):
        total = rounds.total(name, counter)
        figures[counter] = Figure(total, total, total)
    is_ours = name in (OURS, REQUEST, REQUEST_CODEC, *OUR_PUBLISHERS)
    return Row(name, is_ours, figures, _lost(name, rounds))


def _lost(name: str, rounds: Rounds) -> str:
    missing = rounds.total(name, "sent") - rounds.total(name, "delivered")
    return f"LOST {missing:.0f}" if missing else ""


def _notes(rounds: Rounds) -> tuple[str, ...]:
    notes = []
    for peer in (MOSQUITTO, FLOOR):
        if peer not in rounds.samples:
            continue
        notes += [
            _versus(rounds, what, figure, OURS, peer)
            for figure, what in (
                ("cpu_us", "CPU a message"),
                ("p50_us", "p50"),
                ("per_s", "messages/s"),
            )
        ]
    notes += [
        _versus(rounds, "CPU a message", "cpu_us", ours, peer)
        for ours in OUR_PUBLISHERS
        for peer in PEER_PUBLISHERS
    ]
    notes.append(_versus(rounds, "CPU a request", "cpu_us", REQUEST_CODEC, REQUEST))
    for name in (OURS, MOSQUITTO, FLOOR):
        if name in rounds.samples:
            figures = rounds.figures(name)
            notes.append(
                f"{name}: broker busy {figures['broker_busy'].median:.0%} of a core,"
                f" generator {figures['generator_busy'].median:.0%}"
            )
    return tuple(notes)


def _versus(rounds: Rounds, what: str, figure: str, ours: str, peer: str) -> str:
    """The ratio as a line; none against, or for, who lost messages."""
    for name in (ours, peer):
        if lost := _lost(name, rounds):
            return f"{what}, {ours} / {peer}: not compared, {name} {lost}"
    return f"{what}, {ours} / {peer}: {measure.ratio_text(rounds.ratios(figure, ours, peer))}"


def _settings(counts: Counts, target: Broker) -> tuple[str, ...]:
    return (
        f"payload {PAYLOAD_BYTES} bytes, QoS 1, TCP_NODELAY on every end, no TLS, no authentication",
        (
            f"echo: one client publishes to itself; {counts.echoes:,} messages, {IN_FLIGHT} in flight, then"
            f" {counts.round_trips:,} with one in flight; CPU and RSS are the broker's"
        ),
        (
            f"publish: {counts.published:,} messages to {target.name[6:]}, at most {IN_FLIGHT}"
            " unacknowledged, until the last PUBACK; CPU is the publisher's"
        ),
        (
            f"request: {counts.published:,} requests to {target.name[6:]} and a reply to each, QoS 1 both"
            f" ways, {IN_FLIGHT} in flight, then p50 and p99 with one; CPU is the requester's"
        ),
        _PLACES if LOAD_CORE is not None else "one core for everything",
        "Session: on its aiomqtt transport; Session/codec: on the codec transport",
        "floor: the codec without a broker, and without a client library",
        "outbox on disk: SQLite WAL, synchronous=FULL; nothing else here survives a power cut",
        f"mosquitto: {brokers.mosquitto_version()}, max_inflight_messages {IN_FLIGHT}, no persistence",
    )
