"""`/metrics`: the controller's figures for Prometheus, collected when they are asked for."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shoal_fleet.controller import Controller


async def render(controller: Controller) -> bytes:
    """The exposition text."""
    families = [
        *_fleet(controller),
        _by("shoal_commands", "Commands by state.", "state", await controller.commands.counts()),
        _by(
            "shoal_rollouts",
            "Rollouts by status.",
            "status",
            await controller.rollout_views.counts(),
        ),
        *_bus(controller),
        *_door(controller),
        *_identity(controller),
    ]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Ready(families))
    return generate_latest(registry)


class _Ready(Collector):
    """Families that were collected already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _fleet(controller: Controller) -> Iterator[Metric]:
    nodes = controller.registry.nodes.values()
    yield GaugeMetricFamily("shoal_nodes", "Nodes that were ever seen.", value=len(nodes))
    yield GaugeMetricFamily(
        "shoal_nodes_online", "Nodes that are connected.", value=sum(node.online for node in nodes)
    )
    yield GaugeMetricFamily(
        "shoal_nodes_silent",
        "Nodes that are silent for longer than they may be.",
        value=len(controller.alarms.silent),
    )
    yield CounterMetricFamily(
        "shoal_webhook_failures",
        "Alarms that the webhook did not take.",
        value=controller.alarms.webhook_failures,
    )
    stats = controller.readings.stats
    yield CounterMetricFamily("shoal_readings", "Readings stored.", value=stats.stored)
    yield CounterMetricFamily(
        "shoal_receipts",
        "Readings that nodes were told are kept here.",
        value=controller.receipts.given,
    )
    yield CounterMetricFamily(
        "shoal_readings_duplicate", "Readings that were here already.", value=stats.duplicates
    )


def _bus(controller: Controller) -> Iterator[Metric]:
    inbox, publisher = controller.inbox, controller.publisher
    stats = controller.session.stats
    yield GaugeMetricFamily(
        "shoal_broker_connected",
        "Whether the broker is reached.",
        value=float(controller.session.connected),
    )
    yield _by(
        "shoal_broker_alarms",
        "Attempts to connect that only a person can put right.",
        "alarm",
        {
            "identity_refused": stats.identity_refused,
            "broker_not_trusted": stats.broker_not_trusted,
            "tls_files_unusable": stats.tls_files_unusable,
        },
        counter=True,
    )
    yield GaugeMetricFamily(
        "shoal_outbox_waiting", "Messages that wait to leave.", value=stats.outbox_waiting
    )
    yield _by("shoal_messages", "Messages of nodes.", "channel", inbox.received, counter=True)
    yield _by(
        "shoal_messages_malformed",
        "Messages that break the contract.",
        "channel",
        inbox.malformed,
        counter=True,
    )
    yield CounterMetricFamily(
        "shoal_messages_unknown_kind",
        "Messages of a newer version.",
        value=inbox.unknown_kinds,
    )
    yield CounterMetricFamily(
        "shoal_chunk_bytes", "Bytes of chunks published.", value=publisher.sent_bytes
    )
    yield CounterMetricFamily(
        "shoal_chunks_resent",
        "Chunks published again because a node missed them.",
        value=publisher.resent_chunks,
    )
    yield CounterMetricFamily(
        "shoal_chunks_on_request",
        "Chunks sent because a node asked, of blobs that are not retained.",
        value=publisher.requested_chunks,
    )
    yield GaugeMetricFamily(
        "shoal_chunk_size_bytes",
        "What new blobs are cut to.",
        value=publisher.chunk_bytes,
    )
    yield GaugeMetricFamily(
        "shoal_retained_bytes",
        "Bytes of chunks that the broker retains.",
        value=publisher.places.retained_bytes,
    )
    yield GaugeMetricFamily(
        "shoal_retained_bytes_max",
        "How many it may retain at most.",
        value=publisher.retained_bytes_max,
    )
    yield _by("shoal_blobs", "Blobs that nodes still need.", "state", publisher.places.states)


def _door(controller: Controller) -> Iterator[Metric]:
    door, mirror = controller.door.stats, controller.door.mirror.stats
    failed = controller.door.answers.failed
    yield CounterMetricFamily(
        "shoal_door_messages", "Messages that came to the JSON door.", value=door.received
    )
    yield _by("shoal_door_refused", "Those that it refused.", "reason", door.refused, counter=True)
    yield CounterMetricFamily(
        "shoal_door_unanswered",
        "Answers that could not be handed to the bus.",
        value=failed,
    )
    yield _by(
        "shoal_door_mirrored",
        "Messages of nodes that were mirrored.",
        "channel",
        mirror.mirrored,
        counter=True,
    )
    yield CounterMetricFamily(
        "shoal_door_mirror_dropped", "Messages that were not.", value=mirror.dropped
    )


def _identity(controller: Controller) -> Iterator[Metric]:
    identity = controller.identity
    if identity is None:
        return
    inventory, stats = identity.inventory, identity.enrolment.stats
    yield GaugeMetricFamily(
        "shoal_nodes_certified", "Nodes with a certificate.", value=len(inventory.newest)
    )
    yield GaugeMetricFamily(
        "shoal_nodes_revoked", "Nodes that were revoked.", value=len(inventory.revoked)
    )
    yield GaugeMetricFamily(
        "shoal_certificates_expiring",
        "Nodes whose certificate has less than a third of its life left.",
        value=len(identity.expiry.soon),
    )
    yield GaugeMetricFamily(
        "shoal_certificates_expired",
        "Nodes whose certificate has run out.",
        value=len(identity.expiry.over),
    )
    yield _by("shoal_certificates", "Certificates issued.", "how", stats.issued, counter=True)
    yield _by(
        "shoal_enrolment_refused",
        "Requests for a certificate that were refused.",
        "why",
        stats.refused,
        counter=True,
    )
    yield CounterMetricFamily(
        "shoal_enrolment_turned_away",
        "Connections to the enrolment door that were too many.",
        value=identity.door.turned_away,
    )
    yield CounterMetricFamily(
        "shoal_revoked_list_failures",
        "Times that the list of revoked certificates could not be written.",
        value=identity.revocations.list_failures,
    )
    yield CounterMetricFamily(
        "shoal_messages_of_revoked",
        "Messages of revoked nodes, which do not count.",
        value=controller.inbox.of_revoked,
    )


def _by(
    name: str, text: str, label: str, values: dict[str, int], *, counter: bool = False
) -> Metric:
    kind = CounterMetricFamily if counter else GaugeMetricFamily
    family = kind(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
