"""How the chunks of one blob come from the broker: by windows of single subscriptions, or by listening.

A window subscribes to a few chunks, only missing ones: the broker sends each once, and never more than a
window waits there for a board that has vanished. Listening subscribes to all chunks of the blob, for what
the broker does not retain. What does not come is asked for; what to do with a chunk is `arriving`'s.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from shoal_agent.allowance import Allowance
from shoal_agent.arriving import Arriving
from shoal_broker.bus_errors import BusError, RefusedByBrokerError
from shoal_broker.session import Inbound, Session
from shoal_contract import blobs
from shoal_contract.errors import TopicError
from shoal_contract.topics import ChunkTopic, Topics

log = structlog.get_logger()

MAX_PATIENCE_S: Final = 60.0
SLOW_LINE_BYTES_PER_S: Final = 4096
"""What comes in may be a chunk for as long as one takes on such a line; then it is something else."""
WINDOW: Final = 8
"""Chunks that are subscribed to at a time; hosted brokers grant ten subscriptions and more."""

ASK_AT_MOST: Final = 64

Ask = Callable[[list[int]], Awaitable[None]]
Progress = Callable[[int], Awaitable[None]]


class Collector:
    """Brings every missing chunk to `arriving`.

    Args:
        count: gets the size of every chunk that comes, right or not.
        ask: tells the controller which chunks are missed.
        patience_s: how long nothing may come before that.
        allowance: how fast, and when, chunks may be asked for.
    """

    def __init__(
        self,
        arriving: Arriving,
        session: Session,
        topics: Topics,
        *,
        count: Callable[[int], None],
        ask: Ask,
        progress: Progress | None,
        patience_s: float,
        allowance: Allowance,
    ) -> None:
        self._arriving = arriving
        self._session = session
        self._topics = topics
        self._count = count
        self._ask = ask
        self._progress = progress
        self._patience_s = patience_s
        self._allowance = allowance
        self._are_retained = False
        self._queue = deque(sorted(arriving.missing))
        self._open: set[int] = set()

    async def run(self) -> None:
        """Return when nothing is missing.

        Raises:
            BusError: the broker refuses the chunks' topics, or a request cannot be kept.
            OSError: the part file cannot be written.
        """
        digest = self._arriving.ref.digest
        if self._arriving.received_bytes:
            # An earlier process may have listened: all chunks would come again.
            await self._session.unsubscribe(self._topics.every_chunk(digest))
        failure: Exception | None = None
        try:
            await self._by_windows()
        except* (BusError, OSError) as group:
            failure = group.exceptions[0]
        if failure is not None:
            raise failure
        if self._arriving.missing:
            log.info("listening for chunks", blob=digest.hex()[:12])
            await self._listen()

    async def _by_windows(self) -> None:
        """Until nothing is missing, or nothing seems to be retained."""
        slots: list[asyncio.Task[None]] = []
        silences = 0
        async with asyncio.TaskGroup() as tasks:

            def widen() -> None:
                busy = sum(not slot.done() for slot in slots)
                slots.extend(
                    tasks.create_task(self._slot(), name="collector.slot")
                    for _ in range(min(WINDOW, 2 * WINDOW - busy))
                )

            widen()
            while self._arriving.missing and not all(slot.done() for slot in slots):
                patience_s = min(self._patience_s * 2**silences, MAX_PATIENCE_S)
                # Where we hold back ourselves, silence says nothing of the broker.
                if not await self._nothing_comes(patience_s) or self._allowance.waiting:
                    silences = 0
                    await self._tell()
                    continue
                if not self._are_retained or (silences and self._queue):
                    break
                # The same few may be missing everywhere: who asks first asks for all.
                if await self._nothing_comes(0.0, spread_s=patience_s):
                    silences += 1
                    await self._ask(sorted(self._open & self._arriving.missing)[:ASK_AT_MOST])
                    widen()
            if self._arriving.missing:
                for slot in slots:
                    slot.cancel()

    async def _slot(self) -> None:
        """One chunk after the other."""
        while self._queue:
            index = self._queue.popleft()
            if index not in self._arriving.missing:
                continue
            topic = self._topics.chunk(self._arriving.ref.digest, index)
            await self._allowance.wait(blobs.chunk_bytes_of(self._arriving.ref, index))
            if index not in self._arriving.missing:
                continue
            try:
                await self._session.subscribe(topic, self._take)
                self._open.add(index)
                await self._arriving.arrival(index)
            except RefusedByBrokerError as exc:
                # So many subscriptions and no more: the other slots go on.
                log.info("fewer chunks at a time", reason=str(exc))
                self._queue.appendleft(index)
                return
            finally:
                self._open.discard(index)
                await self._session.unsubscribe(topic)

    async def _listen(self) -> None:
        topic_filter = self._topics.every_chunk(self._arriving.ref.digest)
        await self._session.subscribe(topic_filter, self._take)
        try:
            # Of many boards that have begun together one asks, and the others hear the answer.
            patience_s, spread_s = 0.0, self._patience_s
            while self._arriving.missing:
                if await self._nothing_comes(patience_s, spread_s=spread_s):
                    await self._ask(sorted(self._arriving.missing)[:ASK_AT_MOST])
                    patience_s = min(max(self._patience_s, 2 * patience_s), MAX_PATIENCE_S)
                    spread_s = patience_s
                else:
                    # What was asked for has come, or soon will have: then the next.
                    patience_s = spread_s = self._patience_s / 3
                    await self._tell()
        finally:
            await self._session.unsubscribe(topic_filter)

    async def _take(self, message: Inbound) -> None:
        try:
            address = self._topics.parse(message.topic)
        except TopicError:
            return
        if isinstance(address, ChunkTopic) and message.payload:
            self._count(len(message.payload))
            self._are_retained = self._are_retained or message.retain
            self._arriving.take(address.index, message.payload)

    async def _tell(self) -> None:
        if self._progress is not None:
            await self._progress(self._arriving.received_bytes)

    async def _nothing_comes(self, patience_s: float, *, spread_s: float = 0.0) -> bool:
        """Whether no chunk comes for so long, and up to `spread_s` by chance, while the broker is there.

        Raises:
            OSError: a chunk came and could not be written.
        """
        arriving = self._arriving
        chunk_s = arriving.ref.chunk_bytes / SLOW_LINE_BYTES_PER_S
        longest_s = min(MAX_PATIENCE_S, patience_s + chunk_s)
        latest_s = time.monotonic() + longest_s
        wait_s = patience_s + random.uniform(0, spread_s)  # noqa: S311 - jitter
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await arriving.progressed.wait()
            except TimeoutError:
                pass
            else:
                arriving.progressed.clear()
                if arriving.failure is not None:
                    raise arriving.failure
                return False
            now_s, heard_s = time.monotonic(), self._session.last_inbound_s
            if heard_s is None:
                # Nobody could have sent it, and nobody could be asked.
                latest_s = now_s + longest_s
                wait_s = max(patience_s, self._patience_s)
            elif now_s - heard_s >= patience_s or now_s >= latest_s:
                return True
            else:
                # On a slow line a chunk takes longer than that: it may be what is just coming in.
                wait_s = patience_s - (now_s - heard_s)
