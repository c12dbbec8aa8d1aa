"""What Prometheus reads of an agent, gathered when it asks; nothing is counted twice for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal_agent.commands import Commands
from shoal_agent.config import MetricsTable
from shoal_agent.devices import DeviceLink
from shoal_agent.errors import ConfigError
from shoal_agent.fetch import BlobFetcher
from shoal_agent.inbox import Inbox
from shoal_agent.inference.engine import Engine
from shoal_agent.inference.router import Router
from shoal_agent.pipelines.pipeline import Pipeline
from shoal_agent.trust import Trust
from shoal_agent.updater.signed_releases import SignedReleases
from shoal_broker.outbox import Outbox
from shoal_broker.session import Session

if TYPE_CHECKING:
    from shoal_agent.identity.keeper import Keeper
    from shoal_agent.local_api.inside import LocalApi

_QUANTILES = (0.5, 0.95)


class AgentCollector(Collector):
    """Turns the parts' own counters into metrics. Read from the exporter's thread: numbers only."""

    def __init__(
        self,
        *,
        session: Session,
        outbox: Outbox,
        engine: Engine,
        router: Router,
        commands: Commands,
        inbox: Inbox,
        trust: Trust,
        fetcher: BlobFetcher,
        devices: dict[str, DeviceLink],
        pipelines: Callable[[], Sequence[Pipeline]],
        keeper: Keeper | None = None,
        local_api: Callable[[], LocalApi | None],
        signed: SignedReleases | None = None,
    ) -> None:
        self._session = session
        self._outbox = outbox
        self._engine = engine
        self._router = router
        self._commands = commands
        self._inbox = inbox
        self._trust = trust
        self._fetcher = fetcher
        self._devices = devices
        self._pipelines = pipelines
        self._keeper = keeper
        self._local_api = local_api
        self._signed = signed

    def collect(self) -> Iterator[Metric]:
        """Every family, with its present value."""
        stats = self._session.stats
        yield GaugeMetricFamily(
            "shoal_agent_connected", "1 with a broker connection", float(self._session.connected)
        )
        yield _counter("reconnects", "broker connections after the first", stats.reconnects)
        alarms = CounterMetricFamily(
            "shoal_agent_broker_alarms",
            "attempts to connect that only a person can put right",
            labels=["alarm"],
        )
        alarms.add_metric(["identity_refused"], stats.identity_refused)
        alarms.add_metric(["broker_not_trusted"], stats.broker_not_trusted)
        alarms.add_metric(["tls_files_unusable"], stats.tls_files_unusable)
        yield alarms
        yield from _of_outbox(self._outbox)
        yield _counter(
            "chunk_bytes", "bytes of model chunks received", self._fetcher.received_bytes
        )
        came_from = CounterMetricFamily(
            "shoal_agent_chunk_bytes_from",
            "bytes of model chunks received, by the kind of their source",
            labels=["source"],
        )
        for source, size_bytes in self._fetcher.received_from.items():
            came_from.add_metric([source], size_bytes)
        yield came_from
        yield _counter("commands", "commands received", self._commands.stats.received)
        refused = CounterMetricFamily(
            "shoal_agent_commands_refused",
            "messages to this node that no trusted key has signed for its topic",
            labels=["reason"],
        )
        for reason, count in self._trust.refused.items():
            refused.add_metric([reason], count)
        yield refused
        if self._signed is not None:
            yield _counter(
                "releases_unsigned",
                "releases that nobody signed for this node",
                self._signed.refused,
            )
            yield _counter(
                "metadata_unverified",
                "looks at the signed metadata that could not rely on it",
                self._signed.unverified,
            )
        malformed = self._inbox.stats.malformed + self._inbox.stats.unknown_kind
        yield _counter("malformed_messages", "messages that were not understood", malformed)
        yield _counter(
            "worker_restarts", "inference worker restarts", self._engine.stats.worker_restarts
        )
        served = CounterMetricFamily(
            "shoal_agent_inferences", "requests by who served them", labels=["by"]
        )
        served.add_metric(["local"], self._router.stats.served_local)
        served.add_metric(["peer"], self._router.stats.served_peer)
        served.add_metric(["upstream"], self._router.stats.served_upstream)
        served.add_metric(["nobody"], self._router.stats.refused)
        yield served
        yield from _of_engine(self._engine)
        samples = CounterMetricFamily(
            "shoal_agent_samples", "device samples answered", labels=["device"]
        )
        damaged = CounterMetricFamily(
            "shoal_agent_damaged_frames", "device frames thrown away", labels=["device"]
        )
        for name, link in self._devices.items():
            samples.add_metric([name], link.samples)
            damaged.add_metric([name], sum(dict(link.damaged).values()))
        yield samples
        yield damaged
        yield from _pipelines(self._pipelines())
        if self._keeper is not None:
            yield from _of_identity(self._keeper)
        if (api := self._local_api()) is not None:
            yield from _of_local_api(api)


def _of_outbox(outbox: Outbox) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "shoal_agent_outbox_messages", "messages that wait to leave", len(outbox)
    )
    stats = outbox.stats
    yield _counter("outbox_dropped", "telemetry dropped at the cap", stats.dropped)
    yield _counter("outbox_expired", "messages dropped for their age", stats.expired)
    yield _counter("outbox_resent", "messages sent again for want of a receipt", stats.resent)
    yield _counter("outbox_unconfirmed", "messages given up without a receipt", stats.unconfirmed)


def _of_identity(keeper: Keeper) -> Iterator[Metric]:
    facts = keeper.facts
    yield GaugeMetricFamily(
        "shoal_agent_certificate_not_after_seconds",
        "when our certificate ends, in Unix seconds; 0 without one",
        0 if facts is None else facts.not_after_ms / 1000,
    )
    yield _counter("certificates_issued", "certificates that we got", keeper.issued)
    yield GaugeMetricFamily(
        "shoal_agent_enrolment_failures",
        "attempts in a row to get a certificate that brought none",
        keeper.failures,
    )


def _of_engine(engine: Engine) -> Iterator[Metric]:
    models = GaugeMetricFamily("shoal_agent_model_serving", "1 for what serves", labels=["model"])
    for model in engine.models():
        models.add_metric([model], 1)
    yield models
    waiting_rows = GaugeMetricFamily(
        "shoal_agent_inference_waiting", "rows that wait for a model", labels=["model"]
    )
    batch = GaugeMetricFamily(
        "shoal_agent_inference_best_batch", "rows a batch of a model has", labels=["model"]
    )
    loaded = GaugeMetricFamily(
        "shoal_agent_model_loaded", "0 for what serves but is not in memory", labels=["model"]
    )
    runs_on = GaugeMetricFamily(
        "shoal_agent_model_provider",
        "1 for the execution provider of ONNX Runtime that really runs the model",
        labels=["model", "provider"],
    )
    sizes = GaugeMetricFamily(
        "shoal_agent_model_bytes",
        "memory that a model took in its trial: at most, and when it was loaded",
        labels=["model", "what"],
    )
    trial_us = GaugeMetricFamily(
        "shoal_agent_model_trial_us",
        "how long one input took in the trial (p95)",
        labels=["model"],
    )
    for facts in engine.describe():
        went = facts.admission
        sizes.add_metric([facts.model, "peak"], went.peak_bytes)
        sizes.add_metric([facts.model, "resident"], went.resident_bytes or facts.size_bytes)
        trial_us.add_metric([facts.model], went.p95_us)
        loaded.add_metric([facts.model], float(facts.state in {"serving", "draining"}))
        if facts.providers:
            runs_on.add_metric([facts.model, facts.providers[0]], 1)
        waiting_rows.add_metric([facts.model], facts.waiting)
        batch.add_metric([facts.model], facts.best_batch)
    yield loaded
    yield runs_on
    yield waiting_rows
    yield batch
    yield sizes
    yield trial_us
    latency = GaugeMetricFamily(
        "shoal_agent_inference_latency_seconds",
        "how long the newest 512 requests took, waiting included",
        labels=["quantile"],
    )
    stats = engine.stats
    for share in (0.5, 0.99):
        latency.add_metric([f"{share:g}"], stats.latency_s(share))
    yield latency
    yield _counter("inference_rows", "rows that models ran", stats.items)
    yield _counter("inference_batches", "batches that models ran", stats.batches)
    yield _counter("inference_busy_seconds", "time that models ran", stats.busy_s)
    yield _counter(
        "inference_refused", "requests refused at once for want of room or time", stats.refused
    )
    yield _counter("model_evictions", "models that gave their memory back", stats.evictions)
    yield _counter("inference_expired", "requests whose time was over", stats.expired)


def _of_local_api(api: LocalApi) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "shoal_agent_local_api_connections", "programs that are connected", api.connections
    )
    yield _counter("local_api_turned_away", "connections too many", api.stats.turned_away)
    answers = CounterMetricFamily(
        "shoal_agent_local_api_answers", "answers over HTTP and WebSocket", labels=["status"]
    )
    for status, count in dict(api.stats.answers).items():
        answers.add_metric([str(status)], count)
    yield answers


@contextmanager
def serve(config: MetricsTable, collector: Collector) -> Iterator[None]:
    """Answer GET /metrics while the context lasts.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(config.port, config.host, registry)
    except OSError as exc:
        address = f"{config.host}:{config.port}"
        raise ConfigError(f"[metrics] cannot listen on {address}: {exc.strerror}") from exc
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _pipelines(pipelines: Sequence[Pipeline]) -> Iterator[Metric]:
    """What pipelines count, by stream, and how long their steps take."""
    counted = {
        "served": "items from which everything followed",
        "waits": "items left for later",
        "bad_input": "items that do not fit the model",
        "given_up": "messages of a topic that nobody could serve in time",
        "sink_failed": "results that a device, topic or file did not take",
        "passed_over": "pictures of a camera that a newer one replaced",
        "source_restarts": "decoding processes that were started anew",
    }
    for name, about in counted.items():
        family = CounterMetricFamily(f"shoal_agent_pipeline_{name}", about, labels=["stream"])
        for pipeline in pipelines:
            value = getattr(pipeline.stats, "waiting" if name == "waits" else name)
            family.add_metric([pipeline.config.stream], value)
        yield family
    times = GaugeMetricFamily(
        "shoal_agent_pipeline_step_us",
        "how long a step took lately",
        labels=["stream", "step", "quantile"],
    )
    for pipeline in pipelines:
        for step, found in pipeline.stats.steps.quantiles(*_QUANTILES):
            for share, value in zip(_QUANTILES, found, strict=True):
                times.add_metric([pipeline.config.stream, step, str(share)], value)
    yield times


def _counter(name: str, about: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"shoal_agent_{name}", about, value)
