"""What follows from a verdict beside the reading: a device is set, a message published, a line written."""

import asyncio
import os
from pathlib import Path
from typing import Final

import msgspec
import structlog

from shoal_agent.devices import DeviceLink
from shoal_agent.errors import TooLongError
from shoal_agent.pipelines.item import Item, Verdict
from shoal_broker.bus_errors import MessageTooLargeError, TopicError
from shoal_broker.outbox import Lane
from shoal_broker.session import Session
from shoal_contract.pipelines import CommandTable, FileTable, PublishTable

log = structlog.get_logger()

_TAG_BYTES: Final = 4


class DeviceCommand:
    """SET [channel, value, seq of the item, first four bytes of the release id] at a device."""

    name = "command"

    def __init__(self, config: CommandTable, device: DeviceLink) -> None:
        self._config = config
        self._device = device
        self.text_labels = 0

    async def put(self, item: Item, verdict: Verdict) -> bool:
        """As `Sink` says; a label that can never be a value is not done."""
        value: int | str = verdict.label
        if self._config.value == "number":
            try:
                value = int(verdict.label)
            except ValueError:
                self.text_labels += 1
                return False
        try:
            await self._device.set(
                self._config.channel, value, item.seq, verdict.release[:_TAG_BYTES]
            )
        except TooLongError as exc:
            # It will never fit: the reading says it all, and the device goes on.
            log.warning("label does not fit a command", label=verdict.label[:64], reason=str(exc))
            return False
        return True


class TopicMessage:
    """The verdict on a topic, for programs that know nothing of Shoal."""

    name = "publish"

    def __init__(self, config: PublishTable, session: Session) -> None:
        self._config = config
        self._session = session

    async def put(self, item: Item, verdict: Verdict) -> bool:
        """As `Sink` says: safe in the outbox; a topic that cannot be is not done."""
        topic = self._config.topic
        # {1} is what stood in the place of the first wildcard, {2} of the second ...
        for number, level in enumerate(item.matched, 1):
            topic = topic.replace(f"{{{number}}}", level)
        payload = verdict.label.encode()
        if self._config.format == "json":
            payload = msgspec.json.encode(as_plain(item, verdict))
        try:
            await self._session.publish(
                topic,
                payload,
                qos=self._config.qos,
                retain=self._config.retain,
                lane=Lane.TELEMETRY,
                droppable=True,
                expiry_s=self._config.expiry_s,
                coalesce_key=f"verdict {topic}" if self._config.retain else None,
            )
        except (TopicError, MessageTooLargeError) as exc:
            log.warning("verdict cannot be published", topic=topic[:128], reason=str(exc))
            return False
        return True


class FileLine:
    """The verdict as a line of JSON at the end of a file, which begins anew when it is full.

    A file that cannot be written stops nothing: the reading is what must not be lost.
    """

    name = "file"

    def __init__(self, config: FileTable) -> None:
        self._path = Path(config.path)
        self._max_bytes = config.max_bytes
        self._turn = asyncio.Lock()
        self._complained = False

    async def put(self, item: Item, verdict: Verdict) -> bool:
        """As `Sink` says."""
        line = msgspec.json.encode(as_plain(item, verdict)) + b"\n"
        try:
            async with self._turn:
                await asyncio.to_thread(self._append, line)
        except OSError as exc:
            if not self._complained:
                log.error("verdicts are not written", path=str(self._path), reason=exc.strerror)  # noqa: TRY400 - the reason says it all
                self._complained = True
            return False
        self._complained = False
        return True

    def _append(self, line: bytes) -> None:
        descriptor = os.open(
            self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640
        )
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            if size and size + len(line) > self._max_bytes:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                self._append(line)
                return
            if file.write(line) != len(line):
                # A torn line would spoil the next one too.
                os.ftruncate(descriptor, size)
                raise OSError(28, "no space left for a line")


def as_plain(item: Item, verdict: Verdict) -> dict[str, object]:
    """What a program that does not know Shoal is told of a verdict."""
    return {
        "source": item.source,
        "topic": item.topic,
        **({"file": item.file} if item.file else {}),
        "label": verdict.label,
        "confidence": verdict.confidence,
        "release": verdict.release[:8].hex(),
        "by": verdict.by,
        "at_ms": verdict.at_ms,
    }
