"""Area `bus`: commands over the Session beside its peers, the broker beside Mosquitto, and what an agent costs.

Everything in one set of shuffled rounds; brokers, hubs, nodes and agents are processes of their own.
Contenders come from commands.py, fleet.py and idle.py, sizes from wire_sizes.py. The broker's own rows are
the load of one raw client (load.py), the same for every broker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import brokers
import bus_goals
import bus_settings
import commands
import fleet
import idle
import measure
import processes
import traced
import wire_sizes
from brokers import LOAD_CORE, Broker
from bus_settings import Counts
from fleet import Crowd
from idle import Window
from load import IN_FLIGHT, RawClient
from measure import Column, Figure, Options, Rounds, Row, Table
from shoal_broker.link import KEEPALIVE_S
from shoal_broker.liveness import PING_SHARE_OF_KEEPALIVE

# Every idle session pings once in it.
PING_EVERY_S = PING_SHARE_OF_KEEPALIVE * KEEPALIVE_S
ECHO_TOPIC = "bench/echo"
OURS = "echo: shoal-broker"
MOSQUITTO = "echo: mosquitto"
FLOOR = "echo: codec, no broker"
COLUMNS = (
    Column("per_s", "messages/s"),
    Column("hub_us", "hub us", 1),
    Column("node_us", "node us", 1),
    Column("broker_us", "broker us", 1),
    Column("p50_us", "p50 us"),
    Column("p99_us", "p99 us"),
    Column("delivered", "delivered", spread=False),
    Column("sent", "sent", spread=False),
)


FULL = Counts(20_000, 2000, 4000, Crowd(10_000, PING_EVERY_S, 5000), Window(40, 5.0, 1, 300))
QUICK = Counts(1000, 200, 400, Crowd(300, 2.0, 200), Window(15, 5.0, 1, 50))

Contenders = dict[str, Callable[[], Mapping[str, float]]]


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Measure the parts that were asked for."""
    counts = QUICK if options.is_quick else FULL
    skipped: list[str] = []
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(brokers.shoal_broker(OURS))
        running = {OURS: ours}
        if (program := brokers.mosquitto_program()) is not None:
            running[MOSQUITTO] = stack.enter_context(
                brokers.mosquitto(MOSQUITTO, program, options.folder)
            )
        else:
            skipped.append("mosquitto: not installed (apt-get install mosquitto)")
        target = running.get(MOSQUITTO, ours)
        contenders: Contenders = {}
        if options.wants("broker"):
            running[FLOOR] = stack.enter_context(brokers.floor(FLOOR))
            contenders |= {name: partial(_echo, on, counts) for name, on in running.items()}
        if options.wants("command"):
            contenders |= commands.contenders(target, counts.commands, options)
        if options.wants("sessions"):
            counts = _within_the_file_limit(counts, skipped)
            contenders |= fleet.contenders(counts.crowd)
        if options.wants("agent"):
            contenders |= idle.contenders(target, counts.window, options)
            if traced.strace_program() is None:
                skipped.append("flash: strace is not installed (apt-get install strace)")
        rounds = Rounds(options)
        rounds.run(contenders, say=say)
    return Table(
        title="bus: MQTT 5 QoS 1 on loopback",
        columns=COLUMNS,
        rows=tuple(_row(name, rounds) for name in contenders),
        goals=bus_goals.goals(rounds, options, is_lossless=lambda name: not _lost(name, rounds)),
        settings=bus_settings.settings(counts, target.name.removeprefix("echo: "), options),
        notes=_notes(rounds) + (_sizes() if options.wants("wire") else ()),
        skipped=tuple(skipped),
    )


def _within_the_file_limit(counts: Counts, skipped: list[str]) -> Counts:
    wanted = counts.crowd.sessions
    allowed = fleet.raise_file_limit(wanted)
    if allowed < wanted:
        skipped.append(f"{wanted - allowed:,} of {wanted:,} sessions: RLIMIT_NOFILE allows no more")
    crowd = replace(
        counts.crowd,
        sessions=min(wanted, allowed),
        returning=min(counts.crowd.returning, allowed),
    )
    return replace(counts, crowd=crowd)


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
        "broker_us": broker_cpu_s / max(1, many.delivered) * 1e6,
        "broker_busy": broker_cpu_s / many.took_s,
        "generator_busy": many.cpu_s / many.took_s,
        "p50_us": measure.percentile(single.round_trips_s, 0.5) * 1e6,
        "p99_us": measure.percentile(single.round_trips_s, 0.99) * 1e6,
        "rss_mib": processes.rss_mib(broker.pid),
        "sent": many.sent + single.sent,
        "delivered": many.delivered + single.delivered,
    }


def _row(name: str, rounds: Rounds) -> Row:
    figures = rounds.figures(name)
    for counter in {"sent", "delivered"} & figures.keys():
        total = rounds.total(name, counter)
        figures[counter] = Figure(total, total, total)
    is_ours = name == OURS or name in bus_goals.OURS
    return Row(name, is_ours, figures, _lost(name, rounds))


def _lost(name: str, rounds: Rounds) -> str:
    if "sent" not in rounds.samples[name][0]:
        return ""
    missing = rounds.total(name, "sent") - rounds.total(name, "delivered")
    return f"LOST {missing:.0f}" if missing else ""


def _notes(rounds: Rounds) -> tuple[str, ...]:
    figures = (("broker_us", "CPU a message"), ("p50_us", "p50"), ("per_s", "messages/s"))
    pairs = [(OURS, peer, *figure) for peer in (MOSQUITTO, FLOOR) for figure in figures]
    pairs += [
        (commands.DURABLE, commands.AIOMQTT_DURABLE, "per_s", "commands/s"),
        (commands.MEMORY, commands.FLOOR, "hub_us", "hub CPU"),
    ]
    notes = [
        _versus(rounds, what, figure, ours, peer)
        for ours, peer, figure, what in pairs
        if {ours, peer} <= rounds.samples.keys()
    ]
    for name in (OURS, MOSQUITTO, FLOOR):
        if name in rounds.samples:
            busy = rounds.figures(name)
            notes.append(
                f"{name}: broker busy {busy['broker_busy'].median:.0%} of a core, generator"
                f" {busy['generator_busy'].median:.0%}; {busy['rss_mib'].median:.1f} MiB resident"
            )
    if idle.DAY in rounds.samples:
        day = rounds.figures(idle.DAY)
        notes.append(
            f"uplink of an idle agent: a keepalive every {day['ping_every_s'].median:.1f} s, reports of"
            f" {day['report_bytes'].median:.0f} bytes; with the headers of TCP and IP"
            f" {day['uplink_ip_kb'].median:.0f} KB a day"
        )
        notes += [
            f"{name}: {rounds.figures(name)['rss_mib'].median:.1f} MiB resident, shared pages counted in full"
            for name in (idle.MEMORY_CODEC, idle.MEMORY_AIOMQTT)
        ]
    return tuple(notes)


def _versus(rounds: Rounds, what: str, figure: str, ours: str, peer: str) -> str:
    """The ratio as a line; none against, or for, who lost messages."""
    for name in (ours, peer):
        if lost := _lost(name, rounds):
            return f"{what}, {ours} / {peer}: not compared, {name} {lost}"
    return f"{what}, {ours} / {peer}: {measure.ratio_text(rounds.ratios(figure, ours, peer))}"


def _sizes() -> tuple[str, ...]:
    return tuple(
        f"{name}: {cbor} bytes of CBOR, {json} of JSON, {protobuf} of Protobuf"
        for name, (cbor, json, protobuf) in wire_sizes.sizes().items()
    )
