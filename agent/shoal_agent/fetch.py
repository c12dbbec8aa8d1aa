"""Fetches a blob from the broker's retained chunks into the content store, and resumes where it was.

A fetch goes on for as long as it is wanted: with the uplink cut it waits. How chunks come is `collecting`,
the part file is `arriving`.
"""

import os
from collections.abc import Awaitable, Callable

import structlog

from shoal_agent.allowance import Allowance
from shoal_agent.arriving import Arriving
from shoal_agent.collecting import Collector
from shoal_agent.errors import UpdateError
from shoal_agent.files import ContentStore
from shoal_broker.session import Session
from shoal_contract import blobs, messages
from shoal_contract.errors import ContractError
from shoal_contract.messages import BlobRef, ChunksMissing
from shoal_contract.topics import Topics

log = structlog.get_logger()

PATIENCE_S = 3.0
_MIN_FREE_BYTES = 16 << 20


class BlobFetcher:
    """Brings blobs into the content store.

    Args:
        allowance: how fast, and when; None: at once.

    Attributes:
        received_bytes: bytes of chunks received since the start, for the metrics.
        asked_chunks: chunks that were asked for because they did not come.
    """

    def __init__(
        self,
        session: Session,
        topics: Topics,
        node: str,
        content: ContentStore,
        allowance: Allowance | None = None,
    ) -> None:
        self.allowance = allowance or Allowance()
        self._session = session
        self._topics = topics
        self._node = node
        self._content = content
        self.received_bytes = 0
        self.asked_chunks = 0

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

        async def ask(indexes: list[int]) -> None:
            log.info("asking for chunks", blob=ref.digest.hex()[:12], count=len(indexes))
            self.asked_chunks += len(indexes)
            await self._session.publish(
                self._topics.results(self._node),
                messages.encode(ChunksMissing(ref.digest, indexes)),
                coalesce_key=f"missing {ref.digest.hex()}",
            )

        def count(size_bytes: int) -> None:
            self.received_bytes += size_bytes

        collector = Collector(
            arriving,
            self._session,
            self._topics,
            count=count,
            ask=ask,
            progress=progress,
            patience_s=PATIENCE_S,
            allowance=self.allowance,
        )
        await collector.run()
