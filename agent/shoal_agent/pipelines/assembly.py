"""From the configuration's [[pipeline]] tables to pipelines with their sources and sinks."""

from collections.abc import Mapping, Sequence

from shoal_agent.config import PipelineTable, TopicTable
from shoal_agent.devices import DeviceLink
from shoal_agent.inference.router import Router
from shoal_agent.pipelines.item import Sink
from shoal_agent.pipelines.pipeline import Pipeline
from shoal_agent.pipelines.sinks import DeviceCommand, FileLine, TopicMessage
from shoal_agent.pipelines.sources import TopicSource, connect_device
from shoal_broker.session import Session
from shoal_contract.topics import Topics


def topic_sources(tables: Sequence[PipelineTable]) -> dict[str, TopicSource]:
    """A source for each filter that is read; to be subscribed to when the session opens."""
    filters = dict.fromkeys(table.topic.filter for table in tables if table.topic is not None)
    return {topic_filter: TopicSource(topic_filter) for topic_filter in filters}


def connect(
    tables: Sequence[PipelineTable],
    *,
    node: str,
    topics: Topics,
    session: Session,
    router: Router,
    devices: Mapping[str, DeviceLink],
    sources: Mapping[str, TopicSource],
) -> list[Pipeline]:
    """The pipelines, each connected with its source: from now on items flow."""
    pipelines = []
    readers: dict[str, list[tuple[Pipeline, TopicTable]]] = {name: [] for name in sources}
    for table in tables:
        pipeline = Pipeline(
            table,
            node=node,
            topics=topics,
            session=session,
            router=router,
            sinks=_sinks(table, session, devices),
        )
        pipelines.append(pipeline)
        if table.topic is not None:
            readers[table.topic.filter].append((pipeline, table.topic))
        elif table.device is not None and table.channel is not None:
            connect_device(devices[table.device], table.channel, pipeline)
    for topic_filter, source in sources.items():
        source.open(readers[topic_filter])
    return pipelines


def _sinks(table: PipelineTable, session: Session, devices: Mapping[str, DeviceLink]) -> list[Sink]:
    sinks: list[Sink] = []
    if table.command is not None:
        # The configuration was checked: one of the two is there.
        name = table.command.device or table.device or ""
        sinks.append(DeviceCommand(table.command, devices[name]))
    if table.publish is not None:
        sinks.append(TopicMessage(table.publish, session))
    if table.file is not None:
        sinks.append(FileLine(table.file))
    return sinks
