"""What the embedded broker is to reach (docs/benchmarks.md), from the samples of broker.py. Measures nothing."""

from __future__ import annotations

from measure import Figure, Goal, Rounds

OURS = "shoal-broker"
CHUNK_PUBLISHED = "chunk, published"
CHUNK_RETAINED = "chunk, subscribing"
IDLE = "idle"
IDLE_SUBSCRIBED = "idle, subscribed"
TLS = "TLS, QoS 1"
DURABLE = "durable, QoS 1"
AGAINST_AMQTT = "3.1.1, QoS 1"

# Load, what it is called, goal in us, and times Mosquitto's (None: only told).
_CPU: tuple[tuple[str, float | None, float | None], ...] = (
    ("QoS 1", 25, 3),
    ("QoS 0", 10, None),
    ("QoS 2", None, None),
    (TLS, None, None),
    ("many publishers", None, None),
    ("fan-out, QoS 1", None, None),
    ("fan-out, QoS 0", None, None),
)


def goals(rounds: Rounds) -> tuple[Goal, ...]:
    """Every goal of the loads that were measured; no ratio with somebody who lost messages."""
    found: list[Goal] = []
    for load, limit_us, times in _CPU:
        if (figure := _of(rounds, load, OURS, "broker_us")) is not None:
            found.append(Goal(f"CPU a message, {load}", "us", figure, limit_us, decimals=1))
            found += _ratio(rounds, load, "mosquitto", "broker_us", times)
    found += _ratio(
        rounds,
        AGAINST_AMQTT,
        "amqtt",
        "per_s",
        10,
        name="throughput, 3.1.1, QoS 1",
        is_minimum=True,
    )
    found += _ratio(
        rounds, AGAINST_AMQTT, "amqtt", "broker_us", None, name="CPU a message, 3.1.1, QoS 1"
    )
    found += _ratio(rounds, "3.1.1, QoS 0", "amqtt", "per_s", None, name="throughput, 3.1.1, QoS 0")
    return (*found, *_memory(rounds), *_durable(rounds), *_chunk(rounds))


def _memory(rounds: Rounds) -> list[Goal]:
    found: list[Goal] = []
    for load, limit_kb in ((IDLE, 5), (IDLE_SUBSCRIBED, None)):
        if (figure := _of(rounds, load, OURS, "connection_kb")) is not None:
            found.append(
                Goal(f"memory of a connection, {load}", "KB", figure, limit_kb, decimals=2)
            )
        if (figure := _of(rounds, load, "mosquitto", "connection_kb")) is not None:
            found.append(Goal("... mosquitto's", "KB", figure, decimals=2))
    if (figure := _of(rounds, IDLE, OURS, "idle_percent")) is not None:
        found.append(Goal("CPU of all the idle connections", "%", figure, decimals=2))
    return found


def _durable(rounds: Rounds) -> list[Goal]:
    found: list[Goal] = []
    if (figure := _of(rounds, DURABLE, OURS, "per_s")) is not None:
        found.append(Goal("durable QoS 1, 64 in flight", "/s", figure, 5000, is_minimum=True))
    if (figure := _of(rounds, DURABLE, "mosquitto", "per_s")) is not None:
        found.append(Goal("... mosquitto's", "/s", figure))
    return found


def _chunk(rounds: Rounds) -> list[Goal]:
    found: list[Goal] = []
    for load in (CHUNK_PUBLISHED, CHUNK_RETAINED):
        if (figure := _of(rounds, load, OURS, "chunk_ms")) is not None:
            found.append(Goal(f"CPU of a {load}", "ms", figure, decimals=1))
            found += _ratio(rounds, load, "mosquitto", "chunk_ms", 3)
    return found


def notes(rounds: Rounds) -> tuple[str, ...]:
    """Ratios that nobody set a goal for."""
    return tuple(
        rounds.versus(what, figure, f"{load}: {OURS}", f"{load}: {peer}")
        for load, peer in (
            ("QoS 1", "mosquitto"),
            ("QoS 1", "codec, no broker"),
            ("QoS 0", "mosquitto"),
        )
        for figure, what in (
            ("broker_us", "CPU a message"),
            ("p50_us", "p50"),
            ("per_s", "messages/s"),
        )
        if {f"{load}: {OURS}", f"{load}: {peer}"} <= rounds.samples.keys()
    )


def _of(rounds: Rounds, load: str, broker: str, figure: str) -> Figure | None:
    """None when the load was not measured with this broker."""
    name = f"{load}: {broker}"
    return rounds.figures(name)[figure] if name in rounds.samples else None


def _ratio(
    rounds: Rounds,
    load: str,
    peer: str,
    figure: str,
    limit: float | None,
    *,
    name: str = "...",
    is_minimum: bool = False,
) -> list[Goal]:
    """Ours over the peer's; nothing where one was not measured or lost messages."""
    ours, theirs = f"{load}: {OURS}", f"{load}: {peer}"
    if not {ours, theirs} <= rounds.samples.keys() or rounds.lost(ours) or rounds.lost(theirs):
        return []
    ratio = rounds.ratios(figure, ours, theirs)
    return [Goal(f"{name} / {peer}'s", "x", ratio, limit, is_minimum=is_minimum, decimals=2)]
