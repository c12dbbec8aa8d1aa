"""The controller's publisher alone on a broker: what is needed is set by the test, what nodes ask for is heard."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from shoal_broker.outbox import Outbox
from shoal_broker.session import Inbound, Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract import messages
from shoal_contract.messages import CHUNK_BYTES, BlobRef, ChunksMissing
from shoal_contract.topics import Channel, Topics
from shoal_fleet.blob_store import BlobStore
from shoal_fleet.cuts import Cuts
from shoal_fleet.database import Database
from shoal_fleet.deltas import Deltas
from shoal_fleet.issuer import Issuer
from shoal_fleet.pipelines import Pipelines
from shoal_fleet.publisher import Publisher
from shoal_fleet.registry import Registry
from shoal_fleet.releases import Releases
from shoal_fleet.tables import FleetBase
from shoal_fleet.wanted import WantedStates


class Cdn:
    """A publisher that runs. Set `needed` with `need`.

    Attributes:
        asked: every request for missing chunks that came.
    """

    def __init__(self, session: Session, store: BlobStore, publisher: Publisher) -> None:
        self.session = session
        self.store = store
        self.publisher = publisher
        self.asked: list[ChunksMissing] = []
        self.needed: dict[bytes, BlobRef] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        port: int,
        folder: Path,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        retained_bytes_max: int = 128 << 20,
    ) -> AsyncIterator[Self]:
        topics = Topics()
        wake = asyncio.Event()
        cdn: Self

        async def on_result(inbound: Inbound) -> None:
            message = messages.decode(inbound.payload)
            if isinstance(message, ChunksMissing):
                cdn.asked.append(message)
                await cdn.publisher.ask(message.blob, message.indexes)

        async def connected(_session: Session, session_present: bool) -> None:  # noqa: FBT001 - the session's signature
            await ready.wait()
            cdn.publisher.look()
            if not session_present:
                cdn.publisher.forget()
            greeted.set()

        ready, greeted = asyncio.Event(), asyncio.Event()

        async def needs() -> dict[bytes, BlobRef]:
            return {
                digest: ref
                for digest in cdn.needed
                if (ref := await cdn.store.ref(digest)) is not None
            }

        async with (
            Database.open(folder / "fleet.db", FleetBase) as database,
            Store.open(folder / "outbox.db") as outbox,
            Session.open(
                SessionConfig(
                    host="127.0.0.1",
                    port=port,
                    client_id="publisher",
                    transport="codec",
                    backoff_initial_s=0.05,
                    backoff_max_s=0.5,
                ),
                outbox=await Outbox.load(outbox),
                subscriptions={topics.every(Channel.RESULTS): on_result},
                on_connected=connected,
            ) as session,
        ):
            store = BlobStore(folder / "blobs", database)
            registry = await Registry.load(database)
            releases = Releases(database, store, scratch=folder)
            deltas = Deltas(database, store, scratch=folder)
            wanted = WantedStates(
                database,
                session,
                topics,
                registry=registry,
                releases=releases,
                deltas=deltas,
                pipelines=Pipelines(database),
                issuer=Issuer(None),
            )
            publisher = Publisher(
                database,
                session,
                topics,
                store=store,
                needs=needs,
                cuts=Cuts(
                    database, session, topics, store=store, wanted=wanted, chunk_bytes=chunk_bytes
                ),
                wake=wake,
                retained_bytes_max=retained_bytes_max,
            )
            cdn = cls(session, store, publisher)
            ready.set()
            await session.wait_connected(5)
            running = asyncio.create_task(publisher.run(), name="cdn.publisher")
            try:
                # A first connection makes it forget what it knows: not in the middle of a test.
                async with asyncio.timeout(5):
                    await greeted.wait()
                await until(lambda: not publisher._forget and bool(publisher.places.states))
                yield cdn
            finally:
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running

    async def add(self, content: bytes) -> BlobRef:
        """Store a blob and need it."""
        ref = await self.store.add(content)
        self.need(ref)
        return ref

    def need(self, *refs: BlobRef) -> None:
        """These are needed, beside what was."""
        self.needed.update((ref.digest, ref) for ref in refs)
        self.publisher.look()

    def need_no_more(self, *refs: BlobRef) -> None:
        """These are not; with none given, nothing is."""
        for digest in [ref.digest for ref in refs] or list(self.needed):
            del self.needed[digest]
        self.publisher.look()

    async def until_published(self, *, timeout_s: float = 45) -> None:
        """Return when everything that is needed and has room is retained."""
        await until(
            lambda: (
                self.publisher.places.states["retained"] == len(self.needed)
                and not self.publisher.places.states["publishing"]
            ),
            timeout_s=timeout_s,
        )


async def until(holds, *, timeout_s: float = 45) -> None:
    """Return when it holds; nobody sets an event for what is looked at here."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)


async def retained(port: int, *, timeout_s: float = 45) -> dict[str, bytes]:
    """Every chunk that a client finds which connects now, by topic."""
    topics, found = Topics(), {}
    marked = asyncio.Event()

    async def keep(inbound: Inbound) -> None:
        if inbound.retain and inbound.payload:
            found[inbound.topic] = inbound.payload

    async def mark(_inbound: Inbound) -> None:
        marked.set()

    config = SessionConfig(
        host="127.0.0.1",
        port=port,
        client_id="looker",
        session_expiry_s=0,
        transport="codec",
    )
    async with Session.open(config) as session:
        await session.wait_connected(5)
        await session.subscribe("looker/marker", mark)
        await session.subscribe(f"{topics.root}/b/+/+", keep)
        # Retained messages come before what is published behind the subscription.
        await session.publish("looker/marker", b"x", durable=False)
        async with asyncio.timeout(timeout_s):
            await marked.wait()
        # The marker's worker may overtake the other one by what is queued there.
        await until(lambda: session.stats.received == session.stats.handled)
    return found
