"""From one pipeline's table to the pipeline, its source and its sinks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shoal_agent.background import Background
from shoal_agent.devices import DeviceLink
from shoal_agent.inference.router import Router
from shoal_agent.pipelines.item import Sink
from shoal_agent.pipelines.ledger import Ledger
from shoal_agent.pipelines.pictures import CameraReader, FolderReader, Supervised
from shoal_agent.pipelines.pipeline import Pipeline, PipelineStats
from shoal_agent.pipelines.sinks import DeviceCommand, FileLine, TopicMessage
from shoal_agent.pipelines.sources import DeviceSource, Source, TopicReader
from shoal_agent.pipelines.subscribed import Subscribed, TopicFlow
from shoal_broker.session import Session
from shoal_contract.pipelines import PipelineTable
from shoal_contract.release import ReleaseSpec
from shoal_contract.topics import Topics


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What pipelines are connected with.

    Attributes:
        spec_of: the release of a model that serves here; None: none does.
        tasks: in which sources work.
    """

    node: str
    topics: Topics
    session: Session
    router: Router
    devices: Mapping[str, DeviceLink]
    subscribed: Subscribed
    ledger: Ledger
    tasks: Background
    spec_of: Callable[[str], ReleaseSpec | None] = lambda _: None


def build(
    table: PipelineTable,
    around: Surroundings,
    *,
    stats: PipelineStats | None = None,
    on_trouble: Callable[[], None] = lambda: None,
) -> tuple[Pipeline, Source]:
    """The pipeline and its source, not started yet. The table was checked.

    Args:
        table: what it is.
        around: what it is connected with.
        stats: of the pipeline in whose place it comes: its counters go on.
        on_trouble: told when what stands in its way changes.
    """
    pipeline = Pipeline(
        table,
        node=around.node,
        topics=around.topics,
        session=around.session,
        router=around.router,
        sinks=_sinks(table, around.session, around.devices),
        spec_of=around.spec_of,
        stats=stats,
        on_trouble=on_trouble,
    )
    return pipeline, _source(table, pipeline, around)


def _source(table: PipelineTable, pipeline: Pipeline, around: Surroundings) -> Source:
    if table.topic is not None:
        return TopicFlow(around.subscribed, TopicReader(table.topic, pipeline))
    if table.images is not None:
        files = FolderReader(table.images, pipeline, around.ledger)
        return Supervised(pipeline, around.tasks, files.opening, files.serve)
    if table.camera is not None:
        camera = CameraReader(table.camera, pipeline)
        return Supervised(pipeline, around.tasks, camera.opening, camera.serve)
    # The table was checked: it is a device, and has a channel.
    return DeviceSource(around.devices[table.device or ""], table.channel or 0, pipeline)


def _sinks(table: PipelineTable, session: Session, devices: Mapping[str, DeviceLink]) -> list[Sink]:
    sinks: list[Sink] = []
    if table.command is not None:
        # The table was checked: one of the two is there.
        name = table.command.device or table.device or ""
        sinks.append(DeviceCommand(table.command, devices[name]))
    if table.publish is not None:
        sinks.append(TopicMessage(table.publish, session))
    if table.file is not None:
        sinks.append(FileLine(table.file))
    return sinks
