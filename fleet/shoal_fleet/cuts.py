"""Keeps every blob cut to what the broker takes in one message. It publishes nothing.

Blobs are cut anew only to smaller chunks: a broker that takes more again changes nothing. The new cut,
the new revision of every wanted state and the chunks to be published again are one transaction.
"""

from typing import Final

import structlog
from sqlalchemy import select, update

from shoal_broker.link import Outbound
from shoal_broker.session import Session
from shoal_contract import blobs
from shoal_contract.errors import ContractError
from shoal_contract.messages import MAX_CHUNKS, BlobRef
from shoal_contract.topics import Topics
from shoal_fleet.blob_store import BlobStore
from shoal_fleet.database import Database
from shoal_fleet.errors import StateError
from shoal_fleet.tables import BlobRow, PublishedRow
from shoal_fleet.wanted import WantedStates

log = structlog.get_logger(__name__)

_ANY_DIGEST: Final = bytes(32)


class Cuts:
    """How blobs are cut.

    Args:
        chunk_bytes: the operator's limit; the broker's counts where it is smaller.
    """

    def __init__(
        self,
        database: Database,
        session: Session,
        topics: Topics,
        *,
        store: BlobStore,
        wanted: WantedStates,
        chunk_bytes: int,
    ) -> None:
        self._database = database
        self._session = session
        self._store = store
        self._wanted = wanted
        self._chunk_bytes = chunk_bytes
        # Of the longest topic that a chunk can have.
        topic = topics.chunk(_ANY_DIGEST, MAX_CHUNKS)
        self._overhead_bytes = Outbound(topic=topic, payload=b"", retain=True).packet_bytes
        self._uncuttable: set[tuple[bytes, int]] = set()
        store.chunk_bytes = chunk_bytes

    async def fit(self) -> int:
        """Cut anew what is cut too large for the broker that is connected; how many blobs that were.

        Raises:
            StateError: the database does not take it.
        """
        self._learn()
        limit_bytes = self._store.chunk_bytes
        async with self._database.read() as session:
            found = await session.scalars(
                select(BlobRow.digest).where(
                    BlobRow.chunk_bytes > limit_bytes, BlobRow.size_bytes > limit_bytes
                )
            )
            digests = [digest for digest in found if (digest, limit_bytes) not in self._uncuttable]
        refs = [
            ref
            for digest in digests
            if (ref := await self._cut_anew(digest, limit_bytes)) is not None
        ]
        if not refs:
            return 0
        async with self._database.write() as change:
            for ref in refs:
                await change.execute(
                    update(BlobRow)
                    .where(BlobRow.digest == ref.digest)
                    .values(chunk_bytes=ref.chunk_bytes, chunk_digests=ref.chunk_digests)
                )
                # Smaller chunks are more chunks: those of the old cut are overwritten, or cleared with them.
                await change.execute(
                    update(PublishedRow)
                    .where(PublishedRow.digest == ref.digest)
                    .values(chunks=blobs.chunk_count(ref), complete=False)
                )
            await self._wanted.say_all_anew(change)
        self._store.replace(refs)
        self._wanted.changed()
        log.warning("blobs cut anew", blobs=len(refs), chunk_bytes=limit_bytes)
        return len(refs)

    def _learn(self) -> None:
        greeting = self._session.greeting
        if greeting is None:
            return
        limit_bytes = greeting.maximum_packet_bytes
        room_bytes = None if limit_bytes is None else limit_bytes - self._overhead_bytes
        fitting_bytes = blobs.fitting_chunk_bytes(self._chunk_bytes, room_bytes)
        if fitting_bytes != self._store.chunk_bytes:
            log.info("chunk size", chunk_bytes=fitting_bytes, broker_takes_bytes=limit_bytes)
            self._store.chunk_bytes = fitting_bytes

    async def _cut_anew(self, digest: bytes, chunk_bytes: int) -> BlobRef | None:
        try:
            ref = await self._store.cut_anew(digest, chunk_bytes)
            blobs.chunk_count(ref)
        except (StateError, ContractError) as exc:
            self._uncuttable.add((digest, chunk_bytes))
            log.error("blob cannot be cut anew", blob=digest.hex()[:12], reason=str(exc))  # noqa: TRY400 - the message says it all
            return None
        return ref
