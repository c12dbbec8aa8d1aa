"""What the bus is to reach (docs/benchmarks.md), from the samples of bus.py. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable

import commands
import fleet
import idle
import wire_sizes
from measure import Figure, Goal, Options, Rounds

OURS = frozenset(
    {
        commands.MEMORY,
        commands.DURABLE,
        commands.SIGNED,
        commands.DURABLE_SIGNED,
        commands.COMMIT,
        fleet.MANY,
        fleet.BACK,
        idle.MEMORY_CODEC,
        idle.MEMORY_AIOMQTT,
        idle.DAY,
    }
)
# The hub's outbox, and the node's id with its answer: what a durable command waits for.
COMMITS_A_COMMAND = 2


def goals(
    rounds: Rounds, options: Options, *, is_lossless: Callable[[str], bool]
) -> tuple[Goal, ...]:
    """Every goal of the parts that were measured; no ratio with somebody who lost messages."""
    found: list[Goal] = []
    if options.wants("command"):
        found += _command(rounds, is_lossless)
    if options.wants("sessions"):
        found += _sessions(rounds, options)
    if options.wants("wire"):
        for name, is_signed, limit in (("", False, 50), (", signed", True, 130)):
            size = float(wire_sizes.command_bytes(is_signed=is_signed))
            figure = Figure(size, size, size)
            found.append(Goal(f"command on the wire, 25-byte body{name}", "bytes", figure, limit))
    if options.wants("agent"):
        found += _agent(rounds)
    return tuple(found)


def _command(rounds: Rounds, is_lossless: Callable[[str], bool]) -> list[Goal]:
    memory, durable = rounds.figures(commands.MEMORY), rounds.figures(commands.DURABLE)
    found = [Goal("acked commands", "/s", memory["per_s"], 5000, is_minimum=True)]
    for peer, times, name in ((commands.AIOMQTT, 3, "aiomqtt"), (commands.GMQTT, 1, "gmqtt")):
        if is_lossless(peer) and is_lossless(commands.MEMORY):
            ratio = rounds.ratios("per_s", commands.MEMORY, peer)
            found.append(
                Goal(f"... / {name}'s plain echo", "x", ratio, times, is_minimum=True, decimals=2)
            )
    signed, both = rounds.figures(commands.SIGNED), rounds.figures(commands.DURABLE_SIGNED)
    found += [
        Goal("acked commands, durable", "/s", durable["per_s"]),
        Goal("acked commands, signed", "/s", signed["per_s"]),
        Goal("acked commands, durable, signed", "/s", both["per_s"]),
        Goal("hub CPU a command", "us", memory["hub_us"], 60, decimals=1),
        Goal("hub CPU a command, durable", "us", durable["hub_us"], decimals=1),
        Goal("hub CPU a command, signed", "us", signed["hub_us"], decimals=1),
        Goal("hub CPU a command, durable, signed", "us", both["hub_us"], decimals=1),
    ]
    for share, limit_ms in (("p50", 1), ("p99", 10)):
        figure = Figure.of([s[f"{share}_us"] / 1e3 for s in rounds.samples[commands.MEMORY]])
        found.append(Goal(f"one in flight, {share}", "ms", figure, limit_ms, decimals=2))
    pairs = list(
        zip(rounds.samples[commands.DURABLE], rounds.samples[commands.COMMIT], strict=True)
    )
    for share, limit_ms in (("p50", 1), ("p99", 10)):
        figure = Figure.of(
            [
                (command[f"{share}_us"] - COMMITS_A_COMMAND * commit[f"{share}_us"]) / 1e3
                for command, commit in pairs
            ]
        )
        name = f"one in flight, durable, less {COMMITS_A_COMMAND} commits, {share}"
        found.append(Goal(name, "ms", figure, limit_ms, decimals=2))
    return found


def _sessions(rounds: Rounds, options: Options) -> list[Goal]:
    many, back = rounds.figures(fleet.MANY), rounds.figures(fleet.BACK)
    return [
        Goal(
            "sessions in one process",
            "",
            many["delivered"],
            None if options.is_quick else 10_000,
            is_minimum=True,
        ),
        Goal("memory of a session", "KB", many["session_kb"], 15, decimals=1),
        Goal("idle CPU of all", "%", many["idle_percent"], 2, decimals=2),
        Goal("connecting all of them", "s", many["seconds"], decimals=1),
        Goal("sessions back after a broker restart", "", back["delivered"]),
        Goal("... after", "s", back["seconds"], decimals=1),
        Goal("... broker CPU", "s", back["broker_s"], decimals=2),
    ]


def _agent(rounds: Rounds) -> list[Goal]:
    day = rounds.figures(idle.DAY)
    found = []
    if "flash_idle_mb" in day:
        naive = rounds.figures(idle.NAIVE)
        found += [
            Goal("flash written a day, idle", "MB", day["flash_idle_mb"], 20, decimals=1),
            Goal("flash written a day, 1 message/s", "MB", day["flash_answered_mb"], 200),
            Goal("... while nobody gives receipts", "MB", day["flash_unanswered_mb"]),
            Goal("... by a naive outbox", "MB", naive["flash_mb"]),
        ]
    found.append(Goal("uplink of an idle agent a day", "KB", day["uplink_kb"], 300, decimals=1))
    for name, transport, limit_mib in (
        (idle.MEMORY_CODEC, "codec", 36),
        (idle.MEMORY_AIOMQTT, "aiomqtt", 46),
    ):
        figure = rounds.figures(name)["pss_mib"]
        found.append(Goal(f"idle agent, PSS, {transport}", "MiB", figure, limit_mib, decimals=1))
    return found
