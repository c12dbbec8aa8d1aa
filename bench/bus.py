"""Area `bus`: commands over the Session beside its peers, and what sessions and an agent cost.

Everything in one set of shuffled rounds; brokers, hubs, nodes and agents are processes of their own.
Contenders come from commands.py, fleet.py and idle.py, sizes from wire_sizes.py. The broker alone is
broker.py's area.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import brokers
import bus_goals
import bus_settings
import commands
import fleet
import idle
import traced
import wire_sizes
from bus_settings import Counts
from fleet import Crowd
from idle import Window
from measure import Column, Options, Rounds, Table
from shoal_broker.link import KEEPALIVE_S
from shoal_broker.liveness import PING_SHARE_OF_KEEPALIVE

# Every idle session pings once in it.
PING_EVERY_S = PING_SHARE_OF_KEEPALIVE * KEEPALIVE_S
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


FULL = Counts(4000, Crowd(10_000, PING_EVERY_S, 5000), Window(40, 5.0, 1, 300))
QUICK = Counts(400, Crowd(300, 2.0, 200), Window(15, 5.0, 1, 50))

Contenders = dict[str, Callable[[], Mapping[str, float]]]


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Measure the parts that were asked for."""
    counts = QUICK if options.is_quick else FULL
    skipped: list[str] = []
    with contextlib.ExitStack() as stack:
        if (program := brokers.mosquitto_program()) is not None:
            target = stack.enter_context(brokers.mosquitto("mosquitto", program, options.folder))
        else:
            target = stack.enter_context(brokers.shoal_broker("shoal-broker"))
            skipped.append("mosquitto: not installed (apt-get install mosquitto)")
        contenders: Contenders = {}
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
        rows=tuple(rounds.row(name, is_ours=name in bus_goals.OURS) for name in contenders),
        goals=bus_goals.goals(rounds, options, is_lossless=lambda name: not rounds.lost(name)),
        settings=bus_settings.settings(counts, target.name, options),
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


def _notes(rounds: Rounds) -> tuple[str, ...]:
    pairs = (
        (commands.DURABLE, commands.AIOMQTT_DURABLE, "per_s", "commands/s"),
        (commands.MEMORY, commands.FLOOR, "hub_us", "hub CPU"),
    )
    notes = [
        rounds.versus(what, figure, ours, peer)
        for ours, peer, figure, what in pairs
        if {ours, peer} <= rounds.samples.keys()
    ]
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


def _sizes() -> tuple[str, ...]:
    return tuple(
        f"{name}: {cbor} bytes of CBOR, {json} of JSON, {protobuf} of Protobuf"
        for name, (cbor, json, protobuf) in wire_sizes.sizes().items()
    )
