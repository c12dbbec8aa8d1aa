"""Blobs on the broker: which are needed now, published once as retained chunks, cleared when nobody is left.

What is needed follows from who still has to get which release: the manifest and small files, and of the
model a delta from what the node has, or the whole file. What a node misses is published again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NoReturn

import structlog
from sqlalchemy import delete, select, update
from sqlalchemy.dialects.sqlite import insert

from shoal_broker.bus_errors import BusError
from shoal_broker.session import Session
from shoal_contract import blobs
from shoal_contract.messages import BlobRef
from shoal_contract.topics import Topics
from shoal_fleet.blob_store import BlobStore
from shoal_fleet.database import Database, PublishedRow
from shoal_fleet.deltas import Deltas
from shoal_fleet.errors import FleetError, StateError
from shoal_fleet.registry import Registry
from shoal_fleet.releases import Release, Releases

log = structlog.get_logger(__name__)

Expecting = Callable[[], Awaitable[set[tuple[str, bytes]]]]
"""Gives (node, release) for every node that is to get a release and has not got it."""

QUIET_S: Final = 0.1
RETRY_S: Final = 1.0
SIDE_BY_SIDE: Final = 8
ASKED_AT_MOST: Final = 65_536
AGAIN_AFTER_S: Final = 2.0
"""Many nodes that miss the same chunk get it with one message."""


class Publisher:
    """Keeps the retained chunks at the broker equal to what is needed.

    Attributes:
        sent_bytes: bytes of chunks handed to the broker since the start.
        resent_chunks: chunks that were published again because a node missed them.
    """

    def __init__(
        self,
        database: Database,
        session: Session,
        topics: Topics,
        *,
        store: BlobStore,
        registry: Registry,
        releases: Releases,
        deltas: Deltas,
        wake: asyncio.Event,
    ) -> None:
        self.sent_bytes = 0
        self.resent_chunks = 0
        self.sources: Sequence[Expecting] = ()
        self._database = database
        self._session = session
        self._topics = topics
        self._store = store
        self._registry = registry
        self._releases = releases
        self._deltas = deltas
        self._wake = wake
        self._asked: dict[tuple[bytes, int], None] = {}
        self._resent_at: dict[tuple[bytes, int], float] = {}
        self._forget = False

    async def ask(self, digest: bytes, indexes: Iterable[int]) -> None:
        """A node misses these chunks; those that do not exist are left out.

        Raises:
            StateError: the table of blobs cannot be read.
        """
        ref = await self._store.ref(digest)
        if ref is None:
            log.info("chunks of an unknown blob asked for", blob=digest.hex()[:12])
            return
        count = blobs.chunk_count(ref)
        for index in indexes:
            if len(self._asked) >= ASKED_AT_MOST:
                break
            if 0 <= index < count:
                self._asked[(digest, index)] = None
        self._wake.set()

    def forget(self) -> None:
        """The broker may have lost what it retained."""
        self._forget = True
        self._wake.set()

    async def run(self) -> NoReturn:
        """Publish and clear for ever; without a connection it waits."""
        while True:
            self._wake.clear()
            try:
                await self.sync()
            except (BusError, FleetError) as exc:
                log.info("chunks wait", reason=str(exc))
                await asyncio.sleep(RETRY_S)
                continue
            await self._wake.wait()
            # Changes come in bursts: one look for all of them.
            await asyncio.sleep(QUIET_S)

    async def sync(self) -> None:
        """One look: publish what is needed and not there, clear what is there and not needed.

        Raises:
            BusError: the broker is away; what was done stays done.
            StateError: a blob cannot be read; the others were published.
        """
        if self._forget:
            async with self._database.write() as session:
                # Kept as incomplete: what is needed goes out again, what is not is cleared for sure.
                await session.execute(update(PublishedRow).values(complete=False))
            self._forget = False
        needed = await self._needed()
        async with self._database.read() as session:
            rows = (await session.scalars(select(PublishedRow))).all()
        there = {row.digest: row for row in rows}
        await self._send_missing({digest for digest, row in there.items() if row.complete})
        for digest, row in there.items():
            if digest not in needed:
                await self._clear(digest, row.chunks)
        failure: StateError | None = None
        for digest, ref in needed.items():
            if digest not in there or not there[digest].complete:
                try:
                    await self._publish(ref)
                except StateError as exc:
                    failure = exc
        if failure is not None:
            raise failure

    async def _needed(self) -> dict[bytes, BlobRef]:
        needed: dict[bytes, BlobRef] = {}
        by_release: dict[bytes, set[str]] = {}
        for source in self.sources:
            for node, release in await source():
                by_release.setdefault(release, set()).add(node)
        for release, nodes in sorted(by_release.items()):
            item = await self._releases.get(release)
            for ref in await self._blobs_for(item, nodes):
                needed[ref.digest] = ref
        return needed

    async def _blobs_for(self, item: Release, nodes: set[str]) -> list[BlobRef]:
        files = await self._releases.blobs(item)
        offers = {offer.base: offer.blob for offer in await self._deltas.offers(item.model_file)}
        wanted = [await self._releases.blob(item.id)]
        wanted += [ref for ref in files if ref.digest != item.model_file]
        bases = {self._model_file(node, item.name) for node in nodes}
        wanted += [offers[base] for base in sorted(bases & offers.keys())]
        if not bases <= offers.keys() | {item.model_file}:
            wanted += [ref for ref in files if ref.digest == item.model_file]
        return wanted

    def _model_file(self, node: str, model: str) -> bytes:
        known = self._registry.nodes.get(node)
        state = None if known is None else known.model(model)
        return b"" if state is None else state.model_file

    async def _publish(self, ref: BlobRef) -> None:
        count = blobs.chunk_count(ref)
        async with self._database.write() as session:
            await session.execute(
                insert(PublishedRow)
                .values(digest=ref.digest, chunks=count, complete=False)
                .on_conflict_do_update(index_elements=["digest"], set_={"complete": False})
            )
        for start in range(0, count, SIDE_BY_SIDE):
            await self._send(ref, range(start, min(start + SIDE_BY_SIDE, count)), retain=True)
        async with self._database.write() as session:
            row = await session.get_one(PublishedRow, ref.digest)
            row.complete = True
        log.info(
            "blob published", blob=ref.digest.hex()[:12], chunks=count, size_bytes=ref.size_bytes
        )

    async def _clear(self, digest: bytes, chunks: int) -> None:
        for index in range(chunks):
            await self._session.publish(
                self._topics.chunk(digest, index), b"", retain=True, durable=False
            )
        async with self._database.write() as session:
            await session.execute(delete(PublishedRow).where(PublishedRow.digest == digest))
        log.info("blob cleared", blob=digest.hex()[:12], chunks=chunks)

    async def _send_missing(self, retained: set[bytes]) -> None:
        """What was asked for; a blob that is not retained any more is sent without being retained."""
        asked, self._asked = self._asked, {}
        now = time.monotonic()
        self._resent_at = {
            key: at for key, at in self._resent_at.items() if now - at < AGAIN_AFTER_S
        }
        by_blob: dict[bytes, list[int]] = {}
        for digest, index in asked:
            if (digest, index) not in self._resent_at:
                by_blob.setdefault(digest, []).append(index)
        for digest, indexes in by_blob.items():
            ref = await self._releases.blob(digest)
            retain = digest in retained
            try:
                for start in range(0, len(indexes), SIDE_BY_SIDE):
                    await self._send(ref, indexes[start : start + SIDE_BY_SIDE], retain=retain)
            except StateError as exc:
                log.error("chunks cannot be read", blob=digest.hex()[:12], reason=str(exc))  # noqa: TRY400 - the message says it all
                continue
            self._resent_at.update(dict.fromkeys(((digest, index) for index in indexes), now))
            self.resent_chunks += len(indexes)

    async def _send(self, ref: BlobRef, indexes: Iterable[int], *, retain: bool) -> None:
        async def send(index: int) -> None:
            chunk = await self._store.chunk(ref, index)
            await self._session.publish(
                self._topics.chunk(ref.digest, index), chunk, retain=retain, durable=False
            )
            self.sent_bytes += len(chunk)

        try:
            async with asyncio.TaskGroup() as tasks:
                for index in indexes:
                    tasks.create_task(send(index), name=f"publisher.chunk {index}")
        except* (BusError, FleetError) as group:
            failure = group.exceptions[0]
        else:
            return
        raise failure
