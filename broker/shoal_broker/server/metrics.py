"""The broker's counters for Prometheus, served on `/metrics`. Imported only when asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shoal_broker.errors import ListenError
from shoal_broker.server.core import BrokerCore
from shoal_broker.server.counters import Dropped


class BrokerCollector(Collector):
    """Reads the core at every scrape. Runs in the server's thread: it only looks at numbers."""

    def __init__(self, core: BrokerCore) -> None:
        self._core = core

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        core = self._core
        counters, router = core.counters, core.router
        sessions = list(router.sessions.values())
        yield CounterMetricFamily(
            "shoal_broker_connections",
            "Network connections accepted",
            value=counters.connections,
        )
        yield CounterMetricFamily(
            "shoal_broker_refused", "Connections turned away", value=counters.refused
        )
        yield CounterMetricFamily(
            "shoal_broker_tls_failed",
            "Connections that ended before their TLS handshake was over",
            value=counters.tls_failed,
        )
        yield CounterMetricFamily(
            "shoal_broker_slowed_down",
            "Times that a client was not read because it sent too much",
            value=counters.slowed_down,
        )
        yield CounterMetricFamily(
            "shoal_broker_messages_in", "Messages published", value=counters.messages_in
        )
        yield CounterMetricFamily(
            "shoal_broker_messages_out", "Messages sent, with repeats", value=counters.messages_out
        )
        dropped = CounterMetricFamily(
            "shoal_broker_dropped", "Messages that did not reach a subscriber", labels=["reason"]
        )
        for reason in Dropped:
            dropped.add_metric([reason.value], counters.dropped[reason])
        yield dropped
        for name, text, value in (
            ("connected", "Network connections open now", len(core.connections)),
            ("sessions", "Sessions, of connected and absent clients", len(sessions)),
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
        ):
            yield GaugeMetricFamily(f"shoal_broker_{name}", text, value=value)


@contextmanager
def serve(core: BrokerCore, host: str, port: int) -> Iterator[int]:
    """Serve `/metrics` in a thread until the block ends; yields the port. Raises ListenError."""
    registry = CollectorRegistry()
    registry.register(BrokerCollector(core))
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
