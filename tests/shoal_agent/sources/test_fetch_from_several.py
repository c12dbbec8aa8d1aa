"""One blob from neighbours, the broker and a web server, whichever of them fails in the middle."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.shoal_agent.until import until
from tests.support.hub import Hub
from tests.support.programs import running
from tests.support.range_server import RangeSimulator

from shoal_agent import fetch
from shoal_agent.allowance import Allowance, Window
from shoal_agent.fetch import BlobFetcher
from shoal_agent.files import ContentStore
from shoal_agent.peers.client import PeerClient
from shoal_agent.peers.peer import Peer
from shoal_agent.peers.server import PeerServer
from shoal_agent.peers.sharing import Sharing
from shoal_agent.sources.neighbours import Neighbours
from shoal_agent.sources.web import Web
from shoal_broker.outbox import Outbox
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract import blobs
from shoal_contract.messages import ChunkReply, ChunkRequest, InferReply
from shoal_contract.topics import Topics

BLOB = os.urandom(40 * 1024)
REF = blobs.describe(BLOB, chunk_bytes=1024)
CHUNKS = 40
PROGRAM = Path(__file__).parents[2] / "support" / "fetching_agent.py"


@dataclass
class Site:
    """A board with a fetcher, a broker, one neighbour and a web server. The last two hold nothing at first.

    `given`: how many chunks the neighbour handed out; `lies_from`, `dies_from`: from which one on it is
    another's.
    """

    hub: Hub
    broker_gone: AsyncExitStack
    fetcher: BlobFetcher
    content: ContentStore
    neighbours: Neighbours
    theirs: ContentStore
    web: RangeSimulator
    given: int = 0
    lies_from: int = 1 << 30
    dies_from: int = 1 << 30
    server: PeerServer | None = None

    def give_to_neighbour(self) -> None:
        self.theirs.path(REF.digest).write_bytes(BLOB)

    def give_to_web(self) -> None:
        self.web.files[REF.digest.hex()] = BLOB

    async def answer(self, sharing: Sharing, request: ChunkRequest) -> ChunkReply:
        reply = await sharing.answer(request)
        if request.size_bytes > 1:
            self.given += 1
        if self.given >= self.dies_from:
            for writer in list(self.server._open):
                writer.transport.abort()
        if self.given >= self.lies_from:
            return ChunkReply(request.id, bytes(request.size_bytes))
        return reply

    def is_whole(self) -> bool:
        return self.content.path(REF.digest).read_bytes() == BLOB

    def came_from(self) -> dict[str, int]:
        return dict(self.fetcher.received_from)


async def no_inference(request):
    return InferReply(request.id, "x", b"", [], "no")


@asynccontextmanager
async def site(tmp_path, allowance: Allowance | None = None):
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        broker_gone = await enter(AsyncExitStack())
        broker = await broker_gone.enter_async_context(
            Broker.open(BrokerConfig(host="127.0.0.1", port=0))
        )
        hub = await enter(Hub.open(broker.port, "n1"))
        store = await enter(Store.open(tmp_path / "agent.db"))
        session = await enter(
            Session.open(
                SessionConfig(host="127.0.0.1", port=broker.port, client_id="n1"),
                outbox=await Outbox.load(store),
            )
        )
        await session.wait_connected(5)
        theirs, content = ContentStore(tmp_path / "theirs"), ContentStore(tmp_path / "ours")
        sharing = Sharing(theirs, bytes_per_s=0, is_strained=lambda: False)
        web = await enter(RangeSimulator.open())
        client = await enter(PeerClient.open(root="shoal", node="n1"))
        it: Site

        async def answer(request: ChunkRequest) -> ChunkReply:
            return await it.answer(sharing, request)

        server = await enter(
            PeerServer.open("127.0.0.1", 0, no_inference, root="shoal", node="n2", share=answer)
        )
        peer = Peer("n2", "127.0.0.1", server.port, shares=True)
        neighbours = Neighbours(client, lambda: [peer])
        fetcher = BlobFetcher(
            session,
            Topics(),
            "n1",
            content,
            allowance,
            before=[neighbours],
            after=[Web([web.address], None)],
        )
        it = Site(hub, broker_gone, fetcher, content, neighbours, theirs, web, server=server)
        yield it


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(fetch, "PATIENCE_S", 0.1)
    monkeypatch.setattr(fetch, "QUIET_S", 0.3)
    monkeypatch.setattr(fetch, "CUT_OFF_S", 0.2)


async def publish(hub, indexes):
    for index, chunk in blobs.cut(BLOB, chunk_bytes=1024):
        if index in indexes:
            topic = hub.topics.chunk(REF.digest, index)
            await hub.session.publish(topic, chunk, retain=True, durable=False)


async def test_a_neighbour_that_holds_the_blob_spares_the_broker(tmp_path):
    async with site(tmp_path) as it:
        await publish(it.hub, range(CHUNKS))
        it.give_to_neighbour()
        await it.fetcher.fetch(REF)
        assert it.is_whole()
        assert it.came_from() == {"peers": len(BLOB)}


async def test_without_a_neighbour_that_has_it_the_broker_gives_it(tmp_path):
    async with site(tmp_path) as it:
        await publish(it.hub, range(CHUNKS))
        it.give_to_web()
        await it.fetcher.fetch(REF)
        assert it.is_whole()
        came_from = it.came_from()
        assert came_from.pop("broker") in range(len(BLOB), 2 * len(BLOB) + 1), "some come twice"
        assert came_from == {}


async def test_what_the_broker_does_not_send_comes_from_the_web(tmp_path):
    async with site(tmp_path) as it:
        await publish(it.hub, range(10))
        it.give_to_web()
        await it.fetcher.fetch(REF)
        assert it.is_whole()
        came_from = it.came_from()
        # The broker says what it retains again when the agent listens to all of them.
        assert came_from.pop("broker") in range(10 * 1024, 20 * 1024 + 1)
        assert came_from == {"https": 30 * 1024}


async def test_a_web_server_alone_is_enough_when_the_broker_is_gone(tmp_path):
    async with site(tmp_path) as it:
        it.give_to_web()
        async with asyncio.timeout(20):
            fetching = asyncio.create_task(it.fetcher.fetch(REF))
            await it.broker_gone.aclose()
            await fetching
        assert it.is_whole()
        assert it.came_from() == {"https": len(BLOB)}


async def test_a_neighbour_that_dies_in_the_middle_costs_no_chunk_that_came(tmp_path):
    async with site(tmp_path) as it:
        it.dies_from = 15
        it.give_to_neighbour()
        await publish(it.hub, range(CHUNKS))
        await it.fetcher.fetch(REF)
        assert it.is_whole()
        came = it.came_from()
        assert came["peers"] >= 13 * 1024
        assert sum(came.values()) == len(BLOB)


async def test_a_neighbour_that_begins_to_lie_is_left_and_nothing_of_it_is_kept(tmp_path):
    async with site(tmp_path) as it:
        it.lies_from = 15
        it.give_to_neighbour()
        await publish(it.hub, range(CHUNKS))
        await it.fetcher.fetch(REF)
        assert it.is_whole()
        assert it.neighbours.liars >= 1
        assert sum(it.came_from().values()) == len(BLOB)


@pytest.mark.parametrize("manner", ["ignores-range", "garbage", "wrong-bytes", "truncates"])
async def test_a_web_server_that_begins_to_misbehave_is_left_for_the_broker(tmp_path, manner):
    async with site(tmp_path) as it:
        it.web.manner, it.web.right_answers = manner, 12
        it.give_to_web()
        fetching = asyncio.create_task(it.fetcher.fetch(REF))
        await until(lambda: len(it.web.asked) > it.web.right_answers)
        await publish(it.hub, range(CHUNKS))
        await fetching
        assert it.is_whole()
        came = it.came_from()
        assert came["https"] >= 10 * 1024
        assert sum(came.values()) == len(BLOB)


async def test_the_cap_holds_whoever_sends(tmp_path):
    # Half of it within the second that quiet is made up for, the rest at the rate.
    async with site(tmp_path, Allowance(bytes_per_s=32 * 1024)) as it:
        it.lies_from = 12
        it.give_to_neighbour()
        await publish(it.hub, range(20))
        it.give_to_web()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await it.fetcher.fetch(REF)
        assert it.is_whole()
        assert {"peers", "broker", "https"} >= set(it.came_from())
        assert loop.time() - began_s >= (len(BLOB) - 33 * 1024) / (32 * 1024)


async def test_outside_of_the_window_no_source_is_asked_for_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("shoal_agent.allowance._LOOK_AGAIN_S", 0.02)
    of_day_s = [12 * 3600]
    allowance = Allowance(window=Window.parse("22:00-05:30"), of_day=lambda: of_day_s[0])
    async with site(tmp_path, allowance) as it:
        it.give_to_neighbour()
        it.give_to_web()
        await publish(it.hub, range(CHUNKS))
        fetching = asyncio.create_task(it.fetcher.fetch(REF))
        await until(lambda: allowance.waiting > 0)
        assert (it.given, it.web.asked, it.came_from()) == (0, [], {})
        of_day_s[0] = 23 * 3600
        await fetching
        assert it.is_whole()


async def test_after_a_kill_only_the_rest_is_fetched_from_another_source(tmp_path):
    folder = tmp_path / "killed"
    async with RangeSimulator.open() as web:
        web.files[REF.digest.hex()] = BLOB
        web.manner, web.right_answers = "stalls", 15
        (tmp_path / "ref.json").write_text(
            json.dumps([REF.digest.hex(), REF.size_bytes, 1024, REF.chunk_digests.hex()])
        )
        async with running(
            PROGRAM, folder, tmp_path / "ref.json", web.address, log=tmp_path / "log"
        ) as program:
            await until(lambda: len(web.asked) > web.right_answers, timeout_s=30)
            program.signal(signal.SIGKILL)
            await program.ended()
    (part,) = (folder / "parts").iterdir()
    (tmp_path / "ours" / "parts").mkdir(parents=True)
    part.rename(tmp_path / "ours" / "parts" / part.name)
    async with site(tmp_path) as it:
        it.give_to_neighbour()
        await it.fetcher.fetch(REF)
        assert it.is_whole()
        assert it.came_from()["peers"] <= len(BLOB) - 13 * 1024


def test_without_web_servers_no_http_is_loaded():
    code = "import sys, shoal_agent.app; sys.exit('shoal_agent.sources.ranges' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)
