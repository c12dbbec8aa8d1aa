"""The broker's counters for Prometheus, served on `/metrics`. Imported only when asked for.

Collected in the server's thread while the broker goes on: it looks at numbers and copies, never at
anything that could change under it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shoal_broker.errors import ListenError
from shoal_broker.server.counters import Dropped

if TYPE_CHECKING:
    from shoal_broker.server.bridge.bridge import Bridge
    from shoal_broker.server.core import BrokerCore
    from shoal_broker.server.counters import Counters
    from shoal_broker.server.durable.committer import Committer
    from shoal_broker.server.link import Link
    from shoal_broker.server.loop_lag import LoopLag

PREFIX = "shoal_broker"
AUTHENTICATION_CODES = (0x85, 0x86, 0x87, 0x8A, 0x8C)
"""Client id not valid, bad user name or password, not authorized, banned, bad method."""

Family = GaugeMetricFamily | CounterMetricFamily


class Measured(Protocol):
    """What is read of a broker."""

    core: BrokerCore
    bridges: list[Bridge]
    loop_lag: LoopLag
    started_at_s: float

    @property
    def counters(self) -> Counters:
        """What happened since the start."""

    @property
    def committer(self) -> Committer | None:
        """What makes it durable; None when it is not."""

    @property
    def listener_names(self) -> list[str]:
        """What the metrics call the listeners."""

    @property
    def links(self) -> Iterable[Link]:
        """Network connections open now."""


class BrokerCollector(Collector):
    """Reads a broker at every scrape."""

    def __init__(self, broker: Measured) -> None:
        self._broker = broker

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        yield from self._process()
        yield from self._clients()
        yield from self._messages()
        yield from kept(self._broker.core)
        committer = self._broker.committer
        if committer is not None:
            yield SummaryMetricFamily(
                f"{PREFIX}_commit_seconds",
                "Batches of durable state written, and the time that took",
                count_value=committer.commits,
                sum_value=committer.commit_s,
            )
        if self._broker.bridges:
            yield from _bridges(self._broker.bridges)

    def _process(self) -> Iterator[Metric]:
        yield _gauge("info", "Which program this is", 1, version=version("shoal"))
        yield _gauge("start_time_seconds", "When it started", self._broker.started_at_s)
        yield _gauge(
            "event_loop_lag_seconds",
            "How late the event loop was at most, within the last minute",
            self._broker.loop_lag.largest_s,
        )

    def _clients(self) -> Iterator[Metric]:
        counters = self._broker.counters
        yield _counter("connections", "Network connections accepted", counters.connections)
        open_now = dict.fromkeys(self._broker.listener_names, 0)
        open_now |= Counter(link.listener for link in list(self._broker.links))
        yield _by(
            GaugeMetricFamily, "connected", "Network connections open now", "listener", open_now
        )
        yield _counter(
            "slowed_down",
            "Clients that were not read for a while, because they sent more than they may",
            counters.slowed_down,
        )
        yield _counter("refused", "Connections turned away", counters.refused)
        yield _by(
            CounterMetricFamily,
            "refusals",
            "The same by the reason code that was answered; none: closed without a word",
            "reason_code",
            {_code(code): count for code, count in counters.refused_by.copy().items()},
        )
        yield _counter(
            "tls_failed",
            "Connections that ended before their TLS handshake was over",
            counters.tls_failed,
        )
        yield _counter(
            "authentication_failures",
            "Refused for who they are: wrong password or certificate, or not allowed",
            sum(counters.refused_by[code] for code in AUTHENTICATION_CODES),
        )

    def _messages(self) -> Iterator[Metric]:
        counters = self._broker.counters
        for name, text in (
            ("messages_in", "Messages published"),
            ("messages_out", "Messages sent, with repeats"),
        ):
            total: int = getattr(counters, name)
            qos0: int = getattr(counters, f"{name}_qos0")
            qos2: int = getattr(counters, f"{name}_qos2")
            by_qos = {"0": qos0, "1": total - qos0 - qos2, "2": qos2}
            yield _by(CounterMetricFamily, name, text, "qos", by_qos)
        yield _counter("received_bytes", "Read from clients", counters.received_bytes)
        yield _counter("sent_bytes", "Written to clients", counters.sent_bytes)
        yield _by(
            CounterMetricFamily,
            "dropped",
            "Messages that did not reach a subscriber",
            "reason",
            {reason.value: counters.dropped[reason] for reason in Dropped},
        )


def kept(core: BrokerCore) -> Iterator[Metric]:
    """What the broker keeps of sessions and messages, and whether it can."""
    router = core.router
    sessions = list(router.sessions.values())
    connected = sum(session.connection is not None for session in sessions)
    yield _by(
        GaugeMetricFamily,
        "sessions",
        "Sessions",
        "client",
        {"connected": connected, "absent": len(sessions) - connected},
    )
    for name, text, value in (
        ("subscriptions", "Subscriptions", len(router.subscriptions)),
        ("retained_messages", "Retained messages", len(router.retained)),
        ("retained_bytes", "Retained messages as counted", router.retained.size_bytes),
        (
            "queued_messages",
            "Waiting or unacknowledged",
            sum(s.held_messages for s in sessions),
        ),
        ("queued_bytes", "The same as counted", sum(s.held_bytes for s in sessions)),
        (
            "queued_bytes_together",
            "Queued messages, each once, against the limit of all queues",
            router.ledger.queued_bytes,
        ),
        ("accepting", "0 while a durable broker cannot write", int(router.accepting)),
        (
            "longest_queue_messages",
            "The same, of the session with most of them",
            max((s.held_messages for s in sessions), default=0),
        ),
    ):
        yield _gauge(name, text, value)


def _bridges(bridges: list[Bridge]) -> Iterator[Metric]:
    up = _family(GaugeMetricFamily, "connected", "Whether the upstream broker is there")
    reconnects = _family(CounterMetricFamily, "reconnects", "Connections after the first")
    crossed = _family(CounterMetricFamily, "messages", "Messages that crossed", "direction")
    lost = _family(CounterMetricFamily, "lost", "Messages that did not cross", "reason")
    waiting = _family(GaugeMetricFamily, "queued_messages", "Waiting to go upstream")
    size = _family(GaugeMetricFamily, "queued_bytes", "The same as counted")
    oldest = _family(GaugeMetricFamily, "oldest_seconds", "Age of the oldest; with a queue file")
    for bridge in bridges:
        name, now = bridge.name, bridge.waiting
        up.add_metric([name], int(bridge.is_connected))
        reconnects.add_metric([name], bridge.upstream.stats.reconnects)
        crossed.add_metric([name, "out"], bridge.counters.messages_out)
        crossed.add_metric([name, "in"], bridge.counters.messages_in)
        for reason, count in bridge.lost.items():
            lost.add_metric([name, reason.value], count)
        waiting.add_metric([name], now.messages)
        size.add_metric([name], now.size_bytes)
        if now.oldest_s is not None:
            oldest.add_metric([name], now.oldest_s)
    yield from (up, reconnects, crossed, lost, waiting, size, oldest)


def _family(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, *labels: str
) -> Family:
    return kind(f"{PREFIX}_bridge_{name}", text, labels=["bridge", *labels])


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _gauge(name: str, text: str, value: float, **labels: str) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _by(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    label: str,
    values: Mapping[str, int],
) -> Metric:
    family = kind(f"{PREFIX}_{name}", text, labels=[label])
    for each, value in sorted(values.items()):
        family.add_metric([each], value)
    return family


def _code(reason_code: int | None) -> str:
    return "none" if reason_code is None else f"0x{reason_code:02x}"


@contextmanager
def serve(broker: Measured, host: str, port: int) -> Iterator[int]:
    """Serve `/metrics` in a thread until the block ends; yields the port. Raises ListenError."""
    registry = CollectorRegistry()
    registry.register(BrokerCollector(broker))
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as exc:
        raise ListenError(
            f"cannot serve metrics on {host}:{port}: {exc.strerror}", host=host, port=port
        ) from exc
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
