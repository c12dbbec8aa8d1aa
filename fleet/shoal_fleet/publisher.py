"""Blobs on the broker: published once as retained chunks, cleared when nobody is left.

What is needed says `needs`, who gets a place says `shelf`, how blobs are cut says `cuts`. What a node
misses is published again; what the broker does not retain goes out when it is asked for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NoReturn

import structlog
from sqlalchemy import delete, select, update

from shoal_broker.bus_errors import (
    BusError,
    LinkError,
    MessageTooLargeError,
    NotConnectedError,
    RefusedByBrokerError,
)
from shoal_broker.session import Session
from shoal_contract import blobs
from shoal_contract.messages import BlobRef
from shoal_contract.topics import Topics
from shoal_fleet import shelf
from shoal_fleet.blob_store import BlobStore
from shoal_fleet.chunk_sender import SIDE_BY_SIDE, ChunkSender
from shoal_fleet.cuts import Cuts
from shoal_fleet.database import Database
from shoal_fleet.errors import FleetError, StateError
from shoal_fleet.places import Places
from shoal_fleet.refusals import Refusals
from shoal_fleet.repairs import Repairs
from shoal_fleet.shelf import Plan
from shoal_fleet.tables import PublishedRow
from shoal_fleet.upsert import insert_into

log = structlog.get_logger(__name__)

QUIET_S: Final = 0.1
RETRY_S: Final = 1.0
LOOK_S: Final = 5.0
"""Who waits for a place, or for the broker to relent, is looked at this often."""

SLICE_CHUNKS: Final = 64
"""So many go out between two looks: a small blob or a repair overtakes a large one."""


class Publisher:
    """Keeps the retained chunks at the broker equal to what is needed, as far as there is room.

    Attributes:
        resent_chunks: retained chunks that were published again because a node missed them.
        requested_chunks: chunks that were sent on request, without being retained.
        places: who has a place at the broker, and who waits.
    """

    def __init__(
        self,
        database: Database,
        session: Session,
        topics: Topics,
        *,
        store: BlobStore,
        needs: Callable[[], Awaitable[dict[bytes, BlobRef]]],
        cuts: Cuts,
        wake: asyncio.Event,
        retained_bytes_max: int,
    ) -> None:
        self.resent_chunks = 0
        self.requested_chunks = 0
        self.retained_bytes_max = retained_bytes_max
        self.places = Places()
        self._database = database
        self._session = session
        self._store = store
        self._needs = needs
        self._cuts = cuts
        self._wake = wake
        self._sender = ChunkSender(session, topics, store)
        self._repairs = Repairs()
        self._refusals = Refusals()
        self._forget = False

    @property
    def sent_bytes(self) -> int:
        """Bytes of chunks handed to the broker since the start."""
        return self._sender.sent_bytes

    @property
    def chunk_bytes(self) -> int:
        """What new blobs are cut to."""
        return self._store.chunk_bytes

    async def ask(self, digest: bytes, indexes: Iterable[int]) -> None:
        """A node misses these chunks; those that do not exist are left out.

        Raises:
            StateError: the table of blobs cannot be read.
        """
        ref = await self._store.ref(digest)
        if ref is None:
            log.info("chunks of an unknown blob asked for", blob=_short(digest))
            return
        self._repairs.ask(digest, indexes, count=blobs.chunk_count(ref))
        self._wake.set()

    def look(self) -> None:
        """The connection is a new one: what the broker takes may have changed."""
        self._wake.set()

    def forget(self) -> None:
        """The broker may have lost what it retained, or may be another one."""
        self._forget = True
        self._wake.set()

    async def run(self) -> NoReturn:
        """Publish and clear for ever; without a connection it waits."""
        while True:
            self._wake.clear()
            try:
                is_unfinished = await self.sync()
            except (BusError, FleetError) as exc:
                log.info("chunks wait", reason=str(exc))
                await asyncio.sleep(RETRY_S)
                continue
            if is_unfinished:
                continue
            look_again = self.places.anybody_waits or self._refusals
            try:
                async with asyncio.timeout(LOOK_S if look_again else None):
                    await self._wake.wait()
            except TimeoutError:
                continue
            # Changes come in bursts: one look for all of them.
            await asyncio.sleep(QUIET_S)

    async def sync(self) -> bool:
        """One look: clear what is not needed, send what was asked for, publish a slice of what is needed.

        Returns:
            Whether something was done or is left: one more look then finds how things stand.

        Raises:
            BusError: the broker is away; what was done stays done.
            StateError: the database or the store cannot be used.
        """
        await self._cuts.fit()
        if self._forget:
            await self._forget_all()
        if (greeting := self._session.greeting) is not None:
            self._refusals.greeted(retain_available=greeting.retain_available)
        needed = await self._needs()
        sizes = {digest: ref.size_bytes for digest, ref in needed.items()}
        there = await self._there()
        now_s = time.monotonic()
        held = self.places.held(
            {digest: (row, await self._store.ref(digest)) for digest, row in there.items()}, now_s
        )
        # What the broker does not let go of takes its room, and nobody counts on it.
        stuck = {digest for digest in held if not self._refusals.may_clear(digest, now_s)}
        stuck_bytes = sum(held.pop(digest).size_bytes for digest in stuck)
        refused = self._refusals.of(needed, now_s) | (stuck & needed.keys())
        plan = shelf.plan(
            sizes,
            held,
            waited_s=self.places.waited_s(now_s),
            limit_bytes=max(0, self.retained_bytes_max - stuck_bytes),
            refused=refused,
        )
        self.places.settle(plan, sizes, refused, now_s)
        for digest in plan.clear:
            if not await self._clear(digest, there.pop(digest).chunks):
                return True
        more = await self._send_asked(plan, there)
        return await self._publish_slice(plan, needed, there) or more or bool(plan.clear)

    async def _forget_all(self) -> None:
        # First: another connection may be made meanwhile.
        self._forget = False
        try:
            async with self._database.write() as change:
                # Kept as incomplete: what is needed goes out again, what is not is cleared for sure.
                await change.execute(update(PublishedRow).values(complete=False))
        except StateError:
            self._forget = True
            raise
        self.places.forget()
        self._refusals.forget()

    async def _there(self) -> dict[bytes, PublishedRow]:
        async with self._database.read() as session:
            return {row.digest: row for row in await session.scalars(select(PublishedRow))}

    async def _clear(self, digest: bytes, chunks: int) -> bool:
        try:
            await self._sender.clear(digest, range(chunks))
        except RefusedByBrokerError as exc:
            self._refusals.refuse_clearing(digest, str(exc), time.monotonic())
            return False
        async with self._database.write() as change:
            await change.execute(delete(PublishedRow).where(PublishedRow.digest == digest))
        self.places.vacate(digest)
        log.info("blob cleared", blob=_short(digest), chunks=chunks)
        return True

    async def _send_asked(self, plan: Plan, there: dict[bytes, PublishedRow]) -> bool:
        """Chunks that nodes miss, one window a blob; whether there are more."""
        now_s = time.monotonic()
        more = False
        for digest in self._repairs.blobs(now_s):
            indexes = self._repairs.of(digest, at_most=SLICE_CHUNKS)
            more = more or len(indexes) == SLICE_CHUNKS
            ref = await self._store.ref(digest)
            if ref is None or digest in plan.wait:
                # It comes in its turn, to everybody.
                self._repairs.drop(digest, indexes)
                continue
            retain = digest in plan.retain
            if retain and not (digest in there and there[digest].complete):
                gone = self.places.gone(ref)
                self._repairs.drop(digest, [index for index in indexes if index >= gone])
                indexes = [index for index in indexes if index < gone]
            try:
                await self._sender.send(ref, indexes, retain=retain)
            except (StateError, RefusedByBrokerError, MessageTooLargeError) as exc:
                # A broker says so of one session that has no room, too: the others got it.
                log.warning("chunks cannot be sent again", blob=_short(digest), reason=str(exc))
            self._repairs.sent(digest, indexes, now_s)
            if retain:
                self.resent_chunks += len(indexes)
            else:
                self.requested_chunks += len(indexes)
        return more

    async def _publish_slice(
        self, plan: Plan, needed: dict[bytes, BlobRef], there: dict[bytes, PublishedRow]
    ) -> bool:
        """The next chunks of what is to be retained and is not yet; whether there were any."""
        room = SLICE_CHUNKS
        for digest in plan.retain:
            if digest in there and there[digest].complete:
                continue
            if room <= 0:
                break
            ref = needed[digest]
            start = self.places.gone(ref)
            end = min(start + room, blobs.chunk_count(ref))
            room -= max(1, end - start)
            await self._publish(ref, start, end)
        return room < SLICE_CHUNKS

    async def _publish(self, ref: BlobRef, start: int, end: int) -> None:
        """Have these chunks retained; a blob that the broker does not take is left alone."""
        digest, count = ref.digest, blobs.chunk_count(ref)
        if not start:
            async with self._database.write() as change:
                await change.execute(
                    insert_into(change, PublishedRow)
                    .values(digest=digest, chunks=count, complete=False)
                    .on_conflict_do_nothing()
                )
        try:
            for first in range(start, end, SIDE_BY_SIDE):
                last = min(first + SIDE_BY_SIDE, end)
                await self._sender.send(ref, range(first, last), retain=True)
                self.places.went(ref, last)
                self._refusals.progressed(digest)
        except NotConnectedError:
            raise
        except (StateError, RefusedByBrokerError, MessageTooLargeError) as exc:
            # The connection may be a new one, to a broker that takes less.
            if not (isinstance(exc, MessageTooLargeError) and await self._cuts.fit()):
                self._refusals.refuse(digest, str(exc), time.monotonic())
            return
        except LinkError as exc:
            self._refusals.lost(digest, str(exc), time.monotonic())
            raise
        if end == count:
            async with self._database.write() as change:
                row = await change.get_one(PublishedRow, digest)
                row.complete = True
            log.info("blob published", blob=_short(digest), chunks=count, size_bytes=ref.size_bytes)


def _short(digest: bytes) -> str:
    return digest.hex()[:12]
