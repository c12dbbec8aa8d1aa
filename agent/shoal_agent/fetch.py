"""Fetches a blob into the content store, from the broker, neighbours and web servers, and resumes where it was.

A fetch goes on for as long as it is wanted: with everything cut it waits. How the broker's chunks come is
`collecting`, how the others' come `sources`; the part file, which takes them all, is `arriving`.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import structlog

from shoal_agent.allowance import Allowance
from shoal_agent.arriving import Arriving
from shoal_agent.collecting import Collector
from shoal_agent.errors import UpdateError
from shoal_agent.files import ContentStore
from shoal_agent.sources.port import ChunkSource, pull
from shoal_broker.bus_errors import BusError, StoreError
from shoal_broker.session import Session
from shoal_contract import blobs, messages
from shoal_contract.errors import ContractError
from shoal_contract.messages import BlobRef, ChunksMissing
from shoal_contract.topics import Topics

log = structlog.get_logger()

BROKER = "broker"
PATIENCE_S = 3.0
QUIET_S = 20.0
"""Where there are other sources, the broker is left when no chunk has come for so long; twice that the next time."""
MAX_QUIET_S = 300.0
CUT_OFF_S = 5.0
"""And after so long when there is no connection to it."""
_MIN_FREE_BYTES = 16 << 20


class BlobFetcher:
    """Brings blobs into the content store.

    Args:
        allowance: how fast, and when; None: at once.
        before: sources that are asked before the broker.
        after: sources that are asked when the broker sends nothing.

    Attributes:
        received_from: bytes of chunks received since the start, by the name of the source, for the metrics.
        asked_chunks: chunks that were asked for because they did not come.
    """

    def __init__(
        self,
        session: Session,
        topics: Topics,
        node: str,
        content: ContentStore,
        allowance: Allowance | None = None,
        *,
        before: Sequence[ChunkSource] = (),
        after: Sequence[ChunkSource] = (),
    ) -> None:
        self.allowance = allowance or Allowance()
        self._session = session
        self._topics = topics
        self._node = node
        self._content = content
        self._before = before
        self._after = after
        self.received_from: Counter[str] = Counter()
        self.asked_chunks = 0

    @property
    def received_bytes(self) -> int:
        """Bytes of chunks received since the start."""
        return self.received_from.total()

    async def fetch(
        self, ref: BlobRef, *, progress: Callable[[int], Awaitable[None]] | None = None
    ) -> None:
        """Return when the blob is in the store, verified and durable.

        Raises:
            UpdateError: the reference contradicts itself, the disk is full, or all chunks are right
                and the whole is not.
        """
        if self._content.has(ref.digest):
            return
        try:
            blobs.chunk_count(ref)
        except ContractError as exc:
            raise UpdateError(str(exc)) from exc
        try:
            self._require_space(ref)
            arriving = Arriving(ref, self._content.part(ref.digest))
            try:
                await self._collect(arriving, progress)
                arriving.finish()
            finally:
                arriving.close()
            adopted = self._content.adopt(arriving.path, ref.digest)
        except OSError as exc:
            raise UpdateError(f"cannot store a blob: {exc.strerror}") from exc
        if not adopted:
            raise UpdateError("every chunk of a blob is right but the whole is not")

    def _require_space(self, ref: BlobRef) -> None:
        stats = os.statvfs(self._content.parts)
        free = stats.f_bavail * stats.f_frsize
        if free < ref.size_bytes + _MIN_FREE_BYTES:
            raise UpdateError(f"{free} bytes are free on the disk; {ref.size_bytes} are needed")

    async def _collect(
        self, arriving: Arriving, progress: Callable[[int], Awaitable[None]] | None
    ) -> None:
        if not arriving.missing:
            return
        ref = arriving.ref
        if arriving.received_bytes:
            log.info(
                "fetch resumed",
                blob=ref.digest.hex()[:12],
                held_bytes=arriving.received_bytes,
                missing=len(arriving.missing),
            )
        came_before = self.received_from.copy()
        quiet_s = QUIET_S
        while arriving.missing:
            await self._pull(self._before, arriving, progress)
            if arriving.missing:
                await self._from_broker(arriving, progress, quiet_s)
                quiet_s = min(2 * quiet_s, MAX_QUIET_S)
            await self._pull(self._after, arriving, progress)
        log.info(
            "blob is here",
            blob=ref.digest.hex()[:12],
            size_bytes=ref.size_bytes,
            came_from=dict(self.received_from - came_before),
        )

    async def _pull(
        self,
        sources: Sequence[ChunkSource],
        arriving: Arriving,
        progress: Callable[[int], Awaitable[None]] | None,
    ) -> None:
        for source in sources:
            if not arriving.missing:
                return
            await pull(
                source,
                arriving,
                allowance=self.allowance,
                count=self._counter(source.name),
                progress=progress,
            )

    def _counter(self, source: str) -> Callable[[int], None]:
        def count(size_bytes: int) -> None:
            self.received_from[source] += size_bytes

        return count

    async def _from_broker(
        self,
        arriving: Arriving,
        progress: Callable[[int], Awaitable[None]] | None,
        quiet_s: float,
    ) -> None:
        """Until nothing is missing, or no chunk has come for so long and another source has some."""
        ref = arriving.ref

        async def ask(indexes: list[int]) -> None:
            log.info("asking for chunks", blob=ref.digest.hex()[:12], count=len(indexes))
            self.asked_chunks += len(indexes)
            await self._session.publish(
                self._topics.results(self._node),
                messages.encode(ChunksMissing(ref.digest, indexes)),
                coalesce_key=f"missing {ref.digest.hex()}",
            )

        collector = Collector(
            arriving,
            self._session,
            self._topics,
            count=self._counter(BROKER),
            ask=ask,
            progress=progress,
            patience_s=PATIENCE_S,
            allowance=self.allowance,
        )
        if not (self._before or self._after):
            await collector.run()
            return
        collecting = asyncio.create_task(collector.run(), name="fetch.broker")
        try:
            await self._while_chunks_come(collecting, arriving, quiet_s)
        finally:
            collecting.cancel()
            await asyncio.wait({collecting})
        if not collecting.cancelled() and (failure := collecting.exception()) is not None:
            if not isinstance(failure, BusError) or isinstance(failure, StoreError):
                raise failure
            if not await self._others_have(ref):
                raise failure
            log.warning("the broker gives no chunks", reason=str(failure))
        if arriving.missing:
            log.info("source left", source=BROKER, blob=ref.digest.hex()[:12], reason="it is quiet")

    async def _while_chunks_come(
        self, collecting: asyncio.Task[None], arriving: Arriving, quiet_s: float
    ) -> None:
        missing, since_s = len(arriving.missing), time.monotonic()
        while not collecting.done():
            patience_s = quiet_s if self._session.connected else min(quiet_s, CUT_OFF_S)
            await asyncio.wait({collecting}, timeout=patience_s / 4)
            now_s = time.monotonic()
            # Where we hold back ourselves, silence says nothing of the broker.
            if len(arriving.missing) != missing or self.allowance.waiting:
                missing, since_s = len(arriving.missing), now_s
            elif now_s - since_s >= patience_s:
                if await self._others_have(arriving.ref):
                    return
                quiet_s, since_s = min(2 * quiet_s, MAX_QUIET_S), time.monotonic()

    async def _others_have(self, ref: BlobRef) -> bool:
        for source in (*self._before, *self._after):
            if await source.find(ref):
                return True
        return False
