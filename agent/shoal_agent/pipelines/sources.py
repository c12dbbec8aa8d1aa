"""Where items come from: a device's channel, or any topic of the bus."""

import asyncio
import random
from collections.abc import Sequence
from typing import Final

import structlog

from shoal_agent.config import TopicTable
from shoal_agent.devices import DeviceLink, NotNowError, Sample
from shoal_agent.errors import PayloadError
from shoal_agent.pipelines.item import Item
from shoal_agent.pipelines.pipeline import Pipeline
from shoal_agent.pipelines.values import ItemReader, parse_path
from shoal_broker.session import Inbound

log = structlog.get_logger()

RETRY_S: Final = 0.5
AT_ONCE: Final = 4
_SOURCE_LENGTH: Final = 64


def connect_device(device: DeviceLink, channel: int, pipeline: Pipeline) -> None:
    """Samples of this channel go through the pipeline; the device repeats what is left unanswered."""

    async def take(sample: Sample) -> None:
        await pipeline.take(Item(device.name, sample.boot, sample.seq, sample.payload))

    device.on_sample(channel, take)


class TopicSource:
    """Messages of one filter, each for every pipeline that reads it.

    Made before the session, so that nothing which waits at the broker is taken from it in vain; what
    comes waits until the pipelines are there.
    """

    def __init__(self, topic_filter: str) -> None:
        self.topic_filter = topic_filter
        self._boot = random.SystemRandom().randrange(1 << 31)
        self._seq = 0
        self._readers: asyncio.Future[Sequence[tuple[Pipeline, TopicTable, ItemReader]]] = (
            asyncio.get_running_loop().create_future()
        )

    def open(self, pipelines: Sequence[tuple[Pipeline, TopicTable]]) -> None:
        """The pipelines are there: messages flow."""
        self._readers.set_result(
            [(pipeline, table, reader_of(table)) for pipeline, table in pipelines]
        )

    async def receive(self, message: Inbound) -> None:
        """Return when every pipeline is done with the message."""
        readers = await asyncio.shield(self._readers)
        self._seq += 1
        matched = wildcards(self.topic_filter, message.topic)
        source = "/".join(matched) or message.topic
        name = Item(source[-_SOURCE_LENGTH:], self._boot, self._seq, b"", message.topic, matched)
        async with asyncio.TaskGroup() as tasks:
            for pipeline, table, reader in readers:
                if message.retain and not table.retained:
                    continue
                tasks.create_task(
                    _through(pipeline, table, reader, name, message.payload), name="pipeline.item"
                )


async def _through(
    pipeline: Pipeline, table: TopicTable, reader: ItemReader, name: Item, payload: bytes
) -> None:
    """The message goes through, or does not fit, or nobody serves it for `wait_s`."""
    try:
        content = reader.item(payload)
    except PayloadError as exc:
        pipeline.refuse(name.topic, str(exc))
        return
    item = Item(name.source, name.boot, name.seq, content, name.topic, name.matched)
    loop = asyncio.get_running_loop()
    until = loop.time() + table.wait_s
    while True:
        try:
            await pipeline.take(item)
        except NotNowError:
            if loop.time() + RETRY_S > until:
                pipeline.stats.given_up += 1
                return
        else:
            return
        await asyncio.sleep(RETRY_S)


def reader_of(table: TopicTable) -> ItemReader:
    """How messages of this source are read.

    Raises:
        PathError: a path that is none.
    """
    return ItemReader(
        table.format, tuple(parse_path(text) for text in table.values), table.encoding
    )


def wildcards(topic_filter: str, topic: str) -> tuple[str, ...]:
    """What stands in the topic for the wildcards of the filter that it matches, in their order."""
    if topic_filter.startswith("$share/"):
        topic_filter = topic_filter.split("/", 2)[2]
    levels = topic.split("/")
    found = []
    for position, level in enumerate(topic_filter.split("/")):
        if level == "#":
            found.append("/".join(levels[position:]))
        elif level == "+":
            found.append(levels[position])
    return tuple(found)
