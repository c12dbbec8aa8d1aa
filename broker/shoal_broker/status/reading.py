"""A broker's $SYS topics as facts, and the facts as lines for a person. Pure.

Mosquitto's names: what a broker does not tell is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a broker tells of itself; None where it tells nothing. Rates are of the last minute."""

    version: str | None = None
    uptime_s: int | None = None
    clients_connected: int | None = None
    clients_absent: int | None = None
    clients_maximum: int | None = None
    subscriptions: int | None = None
    published: int | None = None
    """Since the start, as `sent`."""
    sent: int | None = None
    published_per_s: float | None = None
    sent_per_s: float | None = None
    dropped: int | None = None
    retained_messages: int | None = None
    queued_messages: int | None = None
    queued_bytes: int | None = None
    durable: str | None = None
    bridges: dict[str, bool] = field(default_factory=dict)
    bridges_queued: dict[str, int] = field(default_factory=dict)


def status_of(topics: Mapping[str, str]) -> Status:
    """The topics in the words of Status."""
    connected_now = _whole(topics, "clients/connected", "clients/active")
    total = _whole(topics, "clients/total")
    absent = _whole(topics, "clients/disconnected", "clients/inactive")
    if absent is None and total is not None and connected_now is not None:
        absent = total - connected_now
    return Status(
        version=topics.get("version"),
        uptime_s=_whole(topics, "uptime"),
        clients_connected=connected_now,
        clients_absent=absent,
        clients_maximum=_whole(topics, "clients/maximum"),
        subscriptions=_whole(topics, "subscriptions/count"),
        published=_whole(topics, "publish/messages/received"),
        sent=_whole(topics, "publish/messages/sent"),
        published_per_s=_per_second(topics, "load/publish/received/1min"),
        sent_per_s=_per_second(topics, "load/publish/sent/1min"),
        dropped=_whole(topics, "publish/messages/dropped"),
        retained_messages=_whole(topics, "retained messages/count"),
        queued_messages=_whole(topics, "store/messages/count"),
        queued_bytes=_whole(topics, "store/messages/bytes"),
        durable=topics.get("durable"),
        bridges={name: value == "1" for name, value in _bridges(topics, "state")},
        bridges_queued={
            name: int(value) for name, value in _bridges(topics, "queued") if value.isdecimal()
        },
    )


def rows(status: Status) -> Iterator[tuple[str, str]]:
    """A line for each thing that is known."""
    facts: Iterable[tuple[str, object | None]] = (
        ("version", status.version),
        ("uptime", None if status.uptime_s is None else _duration(status.uptime_s)),
        ("clients", _clients(status)),
        ("subscriptions", status.subscriptions),
        ("messages in", _rate(status.published_per_s, status.published, status.uptime_s)),
        ("messages out", _rate(status.sent_per_s, status.sent, status.uptime_s)),
        ("dropped", status.dropped),
        ("retained", status.retained_messages),
        ("queued", _queued(status)),
        ("durable", status.durable),
    )
    for name, value in facts:
        if value is not None:
            yield name, str(value)
    for name, is_up in sorted(status.bridges.items()):
        queued = status.bridges_queued.get(name)
        waiting = "" if queued is None else f", {queued} messages wait"
        yield f"bridge {name}", ("up" if is_up else "DOWN") + waiting


def _bridges(topics: Mapping[str, str], what: str) -> Iterator[tuple[str, str]]:
    for topic, value in topics.items():
        if topic.startswith("connection/") and topic.endswith(f"/{what}"):
            yield topic.removeprefix("connection/").removesuffix(f"/{what}"), value


def _whole(topics: Mapping[str, str], *names: str) -> int | None:
    """The number that one of these begins with: mosquitto says "22 seconds"."""
    for name in names:
        first = topics.get(name, "").partition(" ")[0]
        if first.removeprefix("-").isdecimal():
            return int(first)
    return None


def _per_second(topics: Mapping[str, str], name: str) -> float | None:
    try:
        return round(float(topics[name]) / 60, 2)
    except (KeyError, ValueError):
        return None


def _clients(status: Status) -> str | None:
    if status.clients_connected is None:
        return None
    text = f"{status.clients_connected} connected"
    if status.clients_absent is not None:
        text += f", {status.clients_absent} away"
    if status.clients_maximum is not None:
        text += f", at most {status.clients_maximum} so far"
    return text


def _queued(status: Status) -> str | None:
    if status.queued_messages is None:
        return None
    if status.queued_bytes is None:
        return f"{status.queued_messages} messages"
    return f"{status.queued_messages} messages, {status.queued_bytes} bytes"


def _rate(per_s: float | None, total: int | None, uptime_s: int | None) -> str | None:
    facts = []
    if per_s is not None:
        facts.append(f"{per_s:g}/s")
    if total is not None:
        facts.append(f"{total} since the start")
        if per_s is None and uptime_s:
            facts.append(f"{total / uptime_s:.3g}/s")
    return ", ".join(facts) or None


def _duration(seconds: int) -> str:
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
