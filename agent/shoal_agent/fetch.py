"""Fetches a blob from the broker's retained chunks: resumable, each chunk checked before it is kept.

A fetch goes on for as long as it is wanted: with the uplink cut it waits. Chunks that do not come or are
damaged are asked for.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from shoal_agent.errors import UpdateError
from shoal_agent.files import ContentStore
from shoal_broker.session import Inbound, Session
from shoal_contract import blobs, messages
from shoal_contract.errors import ContractError, TopicError
from shoal_contract.messages import BlobRef, ChunksMissing
from shoal_contract.topics import ChunkTopic, Topics

log = structlog.get_logger()

PATIENCE_S = 3.0
MAX_PATIENCE_S = 60.0
ASK_AT_MOST = 256
_MIN_FREE_BYTES = 16 << 20


class _Arriving:
    """The part file of one blob and which of its chunks it holds."""

    def __init__(self, ref: BlobRef, path: Path) -> None:
        self.ref = ref
        self.path = path
        self.missing = set(range(blobs.chunk_count(ref)))
        self.damaged = 0
        self.progressed = asyncio.Event()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._recover()

    def _recover(self) -> None:
        """After a restart: what the part file holds already is checked like what arrives."""
        for index in sorted(self.missing):
            chunk = os.pread(self._descriptor, self.ref.chunk_bytes, index * self.ref.chunk_bytes)
            if not chunk:
                break
            if blobs.chunk_is_good(self.ref, index, chunk):
                self.missing.discard(index)

    @property
    def received_bytes(self) -> int:
        held = blobs.chunk_count(self.ref) - len(self.missing)
        return min(held * self.ref.chunk_bytes, self.ref.size_bytes)

    def take(self, index: int, chunk: bytes) -> None:
        if index not in self.missing:
            return
        if not blobs.chunk_is_good(self.ref, index, chunk):
            self.damaged += 1
            log.warning("a damaged chunk came", blob=self.ref.digest.hex()[:12], index=index)
            return
        os.pwrite(self._descriptor, chunk, index * self.ref.chunk_bytes)
        self.missing.discard(index)
        self.progressed.set()

    def finish(self) -> None:
        os.truncate(self._descriptor, self.ref.size_bytes)
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class BlobFetcher:
    """Brings blobs into the content store.

    Attributes:
        received_bytes: bytes of chunks received since the start, for the metrics.
    """

    def __init__(self, session: Session, topics: Topics, node: str, content: ContentStore) -> None:
        self._session = session
        self._topics = topics
        self._node = node
        self._content = content
        self.received_bytes = 0

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
            arriving = _Arriving(ref, self._content.part(ref.digest))
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
        self, arriving: _Arriving, progress: Callable[[int], Awaitable[None]] | None
    ) -> None:
        if not arriving.missing:
            return
        topic_filter = self._topics.every_chunk(arriving.ref.digest)

        async def take(message: Inbound) -> None:
            try:
                address = self._topics.parse(message.topic)
            except TopicError:
                return
            if isinstance(address, ChunkTopic) and message.payload:
                self.received_bytes += len(message.payload)
                arriving.take(address.index, message.payload)

        await self._session.subscribe(topic_filter, take)
        try:
            patience_s = PATIENCE_S
            while arriving.missing:
                arriving.progressed.clear()
                try:
                    async with asyncio.timeout(patience_s):
                        await arriving.progressed.wait()
                    patience_s = PATIENCE_S
                    if progress is not None:
                        await progress(arriving.received_bytes)
                except TimeoutError:
                    await self._ask_for(arriving)
                    patience_s = min(patience_s * 2, MAX_PATIENCE_S)
        finally:
            await self._session.unsubscribe(topic_filter)

    async def _ask_for(self, arriving: _Arriving) -> None:
        wanted = sorted(arriving.missing)[:ASK_AT_MOST]
        log.info("asking for chunks", blob=arriving.ref.digest.hex()[:12], count=len(wanted))
        await self._session.publish(
            self._topics.results(self._node),
            messages.encode(ChunksMissing(arriving.ref.digest, wanted)),
            coalesce_key=f"missing {arriving.ref.digest.hex()}",
        )
