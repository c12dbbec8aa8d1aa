"""Many boards' sessions, content stores and fetchers in one process, each with its own. A child of sources.py.

Usage: sources_boards.py PORT FOLDER FIRST COUNT REFS HOLDERS
REFS holds the release's blobs as JSON. HOLDERS 0: the broker alone. Else the boards of this process are
neighbours: so many fetch first, then the others, who ask them. Prints one JSON object: bytes by source, seconds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import structlog

from shoal_agent.fetch import BlobFetcher
from shoal_agent.files import ContentStore
from shoal_agent.peers import sharing
from shoal_agent.peers.client import PeerClient
from shoal_agent.peers.peer import Peer
from shoal_agent.peers.server import PeerServer
from shoal_agent.peers.sharing import Sharing
from shoal_agent.sources.neighbours import Neighbours
from shoal_agent.sources.port import ChunkSource
from shoal_broker.outbox import Outbox
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract.messages import BlobRef, InferReply, InferRequest
from shoal_contract.topics import Topics

ROOT = "shoal"


async def _no_inference(request: InferRequest) -> InferReply:
    return InferReply(request.id, "", b"", [], "no models here")


async def _board(
    stack: AsyncExitStack, port: int, folder: Path, name: str, lan: list[Peer] | None
) -> BlobFetcher:
    enter = stack.enter_async_context
    content = ContentStore(folder / name)
    store = await enter(Store.open(folder / name / "agent.db"))
    session = await enter(
        Session.open(
            SessionConfig(
                host="127.0.0.1",
                port=port,
                client_id=name,
                transport="codec",
                connect_timeout_s=60.0,
                ack_timeout_s=120.0,
            ),
            outbox=await Outbox.load(store),
        )
    )
    before: list[ChunkSource] = []
    if lan is not None:
        client = await enter(PeerClient.open(root=ROOT, node=name))
        shared = Sharing(content, bytes_per_s=4 << 20, is_strained=lambda: False)
        server = await enter(
            PeerServer.open(
                "127.0.0.1", 0, _no_inference, root=ROOT, node=name, share=shared.answer
            )
        )
        me = Peer(name, "127.0.0.1", server.port, shares=True)
        lan.append(me)
        before.append(Neighbours(client, lambda: [peer for peer in lan if peer != me]))
    await session.wait_connected(60)
    return BlobFetcher(session, Topics(ROOT), name, content, before=before)


async def _fetch(fetchers: list[BlobFetcher], refs: list[BlobRef]) -> None:
    async def all_of(fetcher: BlobFetcher) -> None:
        for ref in refs:
            await fetcher.fetch(ref)

    await asyncio.gather(*map(all_of, fetchers))


async def main() -> None:
    """See the module."""
    port, folder, first, count = int(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5])
    refs = msgspec.json.decode(Path(sys.argv[5]).read_bytes(), type=list[BlobRef])  # noqa: ASYNC240
    holders = int(sys.argv[6])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    # Of many boards in one event loop each would take the others' work for its own being late.
    sharing.LATE_S = float("inf")  # type: ignore[misc]
    lan: list[Peer] | None = [] if holders else None
    async with AsyncExitStack() as stack:
        fetchers = [
            await _board(stack, port, folder, f"board-{number}", lan)
            for number in range(first, first + count)
        ]
        began_s = time.monotonic()
        await _fetch(fetchers[:holders], refs)
        await _fetch(fetchers[holders:], refs)
        took_s = time.monotonic() - began_s
        came_from: Counter[str] = Counter()
        for fetcher in fetchers:
            came_from.update(fetcher.received_from)
    sys.stdout.write(json.dumps({"took_s": took_s, **came_from}))


if __name__ == "__main__":
    asyncio.run(main())
