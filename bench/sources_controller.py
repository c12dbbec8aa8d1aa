"""The controller's real publisher on a broker, with a count of what it says on its line. For sources.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

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

PUBLISHED_WITHIN_S = 60.0
_LOOK_S = 0.02


@dataclass(slots=True)
class Controller:
    """A publisher that runs. `up_bytes`: what it has sent on its TCP connection."""

    refs: list[BlobRef]
    publisher: Publisher
    up_bytes: int = 0


@asynccontextmanager
async def publishing(port: int, folder: Path, contents: list[bytes]) -> AsyncIterator[Controller]:
    """Yields once these blobs are retained; boards' requests are heard until the block is left."""
    topics = Topics()
    needed: dict[bytes, BlobRef] = {}
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(Database.open(folder / "fleet.db", FleetBase))
        store = BlobStore(folder / "blobs", database)
        refs = [await store.add(content) for content in contents]
        needed.update((ref.digest, ref) for ref in refs)
        controller = Controller(refs, publisher=None)  # type: ignore[arg-type] - soon

        async def on_result(inbound: Inbound) -> None:
            message = messages.decode(inbound.payload)
            if isinstance(message, ChunksMissing):
                await controller.publisher.ask(message.blob, message.indexes)

        async def needs() -> dict[bytes, BlobRef]:
            return needed

        def sent(size_bytes: int) -> None:
            controller.up_bytes += size_bytes

        outbox = await enter(Store.open(folder / "outbox.db"))
        session = await enter(
            Session.open(
                SessionConfig(
                    host="127.0.0.1",
                    port=await enter(_counted(port, sent)),
                    client_id="controller",
                    transport="codec",
                ),
                outbox=await Outbox.load(outbox),
                subscriptions={topics.every(Channel.RESULTS): on_result},
            )
        )
        await session.wait_connected(30)
        wanted = WantedStates(
            database,
            session,
            topics,
            registry=await Registry.load(database),
            releases=Releases(database, store, scratch=folder),
            deltas=Deltas(database, store, scratch=folder),
            pipelines=Pipelines(database),
            issuer=Issuer(None),
        )
        publisher = controller.publisher = Publisher(
            database,
            session,
            topics,
            store=store,
            needs=needs,
            cuts=Cuts(
                database, session, topics, store=store, wanted=wanted, chunk_bytes=CHUNK_BYTES
            ),
            wake=asyncio.Event(),
            retained_bytes_max=128 << 20,
        )
        running = asyncio.create_task(publisher.run(), name="bench.publisher")
        try:
            publisher.look()
            async with asyncio.timeout(PUBLISHED_WITHIN_S):
                while publisher.places.states["retained"] < len(refs):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
            yield controller
        finally:
            running.cancel()
            await asyncio.wait({running})


@asynccontextmanager
async def _counted(port: int, sent: Callable[[int], None]) -> AsyncIterator[int]:
    """A port that leads to the broker's; `sent` gets the size of what goes up."""

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(1 << 16):
                count(len(piece))
                writer.write(piece)
                await writer.drain()
        writer.transport.abort()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, ours, sent), pump(theirs, writer, lambda _: None))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
