"""Where items come from without a decoder: a device's channel, or any topic of the bus."""

import asyncio
import random
import time
from dataclasses import replace
from typing import Final, Protocol

import structlog

from shoal_agent.devices import DeviceLink, NotNowError, Sample
from shoal_agent.errors import PayloadError
from shoal_agent.pipelines.item import Item
from shoal_agent.pipelines.pipeline import Pipeline
from shoal_agent.pipelines.values import ItemReader
from shoal_broker.session import Inbound
from shoal_contract.json_path import parse_path
from shoal_contract.pipelines import TopicTable

log = structlog.get_logger()

RETRY_S: Final = 0.5
AT_ONCE: Final = 4
SOURCE_LENGTH: Final = 64


class Source(Protocol):
    """Brings items to one pipeline."""

    def start(self) -> None:
        """From now on items flow."""
        ...

    def stop(self) -> None:
        """Nothing more is taken; what is under way goes on."""
        ...

    async def ended(self) -> None:
        """Return when another one may read the same place: at once, unless two would read it twice."""
        ...


class DeviceSource:
    """Samples of a device's channel; the device repeats what is left unanswered."""

    def __init__(self, device: DeviceLink, channel: int, pipeline: Pipeline) -> None:
        self._device = device
        self._channel = channel
        self._pipeline = pipeline

    def start(self) -> None:
        """See `Source`."""
        self._device.on_sample(self._channel, self._take)

    def stop(self) -> None:
        """See `Source`."""
        self._device.no_sample(self._channel, self._take)

    async def ended(self) -> None:
        """See `Source`."""

    async def _take(self, sample: Sample) -> None:
        await self._pipeline.take(Item(self._device.name, sample.boot, sample.seq, sample.payload))


class TopicReader:
    """What one pipeline reads of a filter's messages."""

    def __init__(self, table: TopicTable, pipeline: Pipeline) -> None:
        self.table = table
        self._pipeline = pipeline
        self._reader = ItemReader(
            table.format, tuple(parse_path(text) for text in table.values), table.encoding
        )

    async def take(self, name: Item, payload: bytes) -> None:
        """The message goes through, or does not fit, or nobody serves it for `wait_s`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.table.wait_s
        while True:
            try:
                await self._pipeline.take(self._item(name, payload))
            except PayloadError as exc:
                self._pipeline.refuse(name.topic, str(exc))
                return
            except NotNowError:
                if loop.time() + RETRY_S > until:
                    self._pipeline.stats.given_up += 1
                    return
            else:
                return
            await asyncio.sleep(RETRY_S)

    def _item(self, name: Item, payload: bytes) -> Item:
        fit = self._pipeline.fit()
        is_text = self.table.encoding == "text"
        if fit is None and (self.table.convert or is_text):
            # Into what it has to be converted, or what the input of texts is called, only the release says.
            self._pipeline.stats.waiting += 1
            raise NotNowError
        started = time.perf_counter_ns()
        content = self._reader.item(payload, () if fit is None else fit.conversions)
        self._pipeline.stats.steps.record("read", started)
        item = Item(name.source, name.boot, name.seq, content, name.topic, name.matched)
        if fit is None or fit.tensor is None:
            return item
        return replace(item, tensor=(fit.tensor, "uint8", (1, len(content))))


class TopicSource:
    """Messages of one filter, each for every pipeline that reads it.

    Made before the session, so that nothing which waits at the broker is taken from it in vain; what
    comes waits until the pipelines are there.
    """

    def __init__(self, topic_filter: str, *, is_open: bool = False) -> None:
        self.topic_filter = topic_filter
        self.readers: list[TopicReader] = []
        self._boot = random.SystemRandom().randrange(1 << 31)
        self._seq = 0
        self._is_open = asyncio.Event()
        if is_open:
            self._is_open.set()

    def open(self) -> None:
        """The pipelines are there: messages flow."""
        self._is_open.set()

    async def receive(self, message: Inbound) -> None:
        """Return when every pipeline is done with the message."""
        await self._is_open.wait()
        self._seq += 1
        matched = wildcards(self.topic_filter, message.topic)
        source = "/".join(matched) or message.topic
        name = Item(source[-SOURCE_LENGTH:], self._boot, self._seq, b"", message.topic, matched)
        async with asyncio.TaskGroup() as tasks:
            for reader in self.readers:
                if not message.retain or reader.table.retained:
                    tasks.create_task(reader.take(name, message.payload), name="pipeline.item")


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
