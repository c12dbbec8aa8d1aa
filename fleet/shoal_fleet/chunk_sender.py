"""Hands chunks to the broker, several at a time, and counts them. It decides nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from shoal_broker.bus_errors import BusError, RefusedByBrokerError
from shoal_broker.session import Inbound, Session
from shoal_contract.messages import BlobRef
from shoal_contract.topics import Topics
from shoal_fleet.blob_store import BlobStore
from shoal_fleet.errors import FleetError

SIDE_BY_SIDE: Final = 8
LOOK_S: Final = 2.0
"""A retained message comes behind the answer to SUBSCRIBE, or not at all."""

QUOTA_EXCEEDED: Final = 0x97


class ChunkSender:
    """Chunks onto the bus.

    Attributes:
        sent_bytes: bytes of chunks handed to the broker since the start.
    """

    def __init__(self, session: Session, topics: Topics, store: BlobStore) -> None:
        self.sent_bytes = 0
        self._session = session
        self._topics = topics
        self._store = store

    async def send(self, ref: BlobRef, indexes: Iterable[int], *, retain: bool) -> None:
        """Return when the broker has them.

        Raises:
            BusError: it does not take one, or is away; the others may have been taken.
            StateError: the blob cannot be read.
        """

        async def send(index: int) -> None:
            chunk = await self._store.chunk(ref, index)
            topic = self._topics.chunk(ref.digest, index)
            # Counted when it leaves: it costs the line also when no answer comes.
            self.sent_bytes += len(chunk)
            try:
                await self._session.publish(topic, chunk, retain=retain, durable=False)
            except RefusedByBrokerError as exc:
                # A broker says so too when one session of many has no room: the others have it.
                if exc.reason_code != QUOTA_EXCEEDED:
                    raise
                if retain and not await self._is_retained(topic, chunk):
                    raise

        await _side_by_side(indexes, send)

    async def clear(self, digest: bytes, indexes: Iterable[int]) -> None:
        """Return when the broker retains none of these any more.

        Raises:
            BusError: as above.
        """

        async def clear(index: int) -> None:
            topic = self._topics.chunk(digest, index)
            try:
                await self._session.publish(topic, b"", retain=True, durable=False)
            except RefusedByBrokerError as exc:
                # Nothing is no quota's worth: it speaks of a session that could not be told.
                if exc.reason_code != QUOTA_EXCEEDED:
                    raise

        await _side_by_side(indexes, clear)

    async def _is_retained(self, topic: str, chunk: bytes) -> bool:
        found = asyncio.Event()

        async def look(message: Inbound) -> None:
            if message.payload == chunk:
                found.set()

        await self._session.subscribe(topic, look)
        try:
            async with asyncio.timeout(LOOK_S):
                await found.wait()
        except TimeoutError:
            return False
        finally:
            await self._session.unsubscribe(topic)
        return True


async def _side_by_side(indexes: Iterable[int], send: Callable[[int], Awaitable[None]]) -> None:
    waiting = iter(indexes)

    async def work() -> None:
        for index in waiting:
            await send(index)

    try:
        async with asyncio.TaskGroup() as tasks:
            for number in range(SIDE_BY_SIDE):
                tasks.create_task(work(), name=f"chunk_sender.{number}")
    except* (BusError, FleetError) as group:
        failure = group.exceptions[0]
    else:
        return
    raise failure
