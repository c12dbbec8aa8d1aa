"""Nodes in one process: real engines, workers and TCP on the loopback."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.shoal_agent.inference import tiny_release as tiny

from shoal_agent.inference.engine import Engine
from shoal_agent.inference.memory import Memory
from shoal_agent.inference.router import Router
from shoal_agent.peers.client import PeerClient
from shoal_agent.peers.peer import Peer
from shoal_agent.peers.server import PeerServer


class Known:
    """A Discovery that knows these; the real one is in one test of the router."""

    def __init__(self, *peers: Peer) -> None:
        self.peers = list(peers)

    def find(self, model: str) -> list[Peer]:
        return [peer for peer in self.peers if model in peer.models]

    def upstream(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.role == "upstream"]


@dataclass
class Node:
    name: str
    engine: Engine
    router: Router
    server: PeerServer

    def peer(self, role: str = "node") -> Peer:
        return Peer(self.name, "127.0.0.1", self.server.port, role, frozenset(self.engine.models()))


@asynccontextmanager
async def node(name: str, directory: Path | None = None, **options: object) -> AsyncIterator[Node]:
    """A node; with a directory it serves the tiny model."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        engine = await enter(
            Engine.open(
                queue_limit=int(options.pop("queue_limit", 64)),
                may_pause=bool(options.pop("may_pause", False)),
                read_memory=options.pop("read_memory", lambda: Memory(1 << 40, 0.0)),
            )
        )
        client = await enter(PeerClient.open(root="shoal", node=name))
        options = {"discovery": None, "upstream": None, **options}
        router = Router(node=name, engine=engine, client=client, **options)
        server = await enter(
            PeerServer.open("127.0.0.1", 0, router.answer, root="shoal", node=name)
        )
        if directory is not None:
            release = tiny.write(directory)
            await engine.admit(release, directory, trial=False)
            await engine.switch("tiny", release)
        yield Node(name, engine, router, server)
