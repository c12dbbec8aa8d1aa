import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from shoal_agent.files import ContentStore
from shoal_agent.peers.client import PeerClient
from shoal_agent.peers.peer import Peer
from shoal_agent.peers.server import PeerServer
from shoal_agent.peers.sharing import MOST_BYTES, Sharing
from shoal_agent.sources import neighbours as neighbours_module
from shoal_agent.sources.errors import NotHereError
from shoal_agent.sources.neighbours import Neighbours
from shoal_contract import blobs
from shoal_contract.messages import ChunkReply, ChunkRequest, InferReply, InferRequest

BLOB = os.urandom(200_000)
REF = blobs.describe(BLOB)
CHUNKS = dict(blobs.cut(BLOB))


async def no_inference(request):
    return InferReply(request.id, "x", b"", [], "no")


def holding(folder, *contents: bytes) -> ContentStore:
    store = ContentStore(folder)
    for content in contents:
        store.path(blobs.describe(content).digest).write_bytes(content)
    return store


def sharing(store: ContentStore, *, bytes_per_s: int = 0, is_strained=lambda: False) -> Sharing:
    return Sharing(store, bytes_per_s=bytes_per_s, is_strained=is_strained)


@asynccontextmanager
async def network(**shares):
    """Neighbours by name with what answers their requests for chunks; yields the source and their servers."""
    async with AsyncExitStack() as stack:
        servers = {
            name: await stack.enter_async_context(
                PeerServer.open("127.0.0.1", 0, no_inference, root="shoal", node=name, share=share)
            )
            for name, share in shares.items()
        }
        client = await stack.enter_async_context(PeerClient.open(root="shoal", node="me"))
        peers = [Peer(name, "127.0.0.1", servers[name].port, shares=True) for name in servers]
        yield Neighbours(client, lambda: peers), servers


async def test_a_neighbour_that_holds_a_blob_hands_out_every_chunk(tmp_path):
    shared = sharing(holding(tmp_path, BLOB))
    async with network(a=shared.answer) as (source, _):
        assert await source.find(REF)
        assert [await source.chunk(REF, index) for index in CHUNKS] == list(CHUNKS.values())
    assert shared.given_bytes == len(BLOB) + 1


async def test_of_several_the_one_that_has_it_is_found_and_asked_from_then_on(tmp_path):
    empty = sharing(holding(tmp_path / "a"))
    full = sharing(holding(tmp_path / "b", BLOB))
    async with network(a=empty.answer, b=full.answer) as (source, servers):
        for index, chunk in CHUNKS.items():
            assert await source.chunk(REF, index) == chunk
        assert servers["a"].stats.requests <= 1


async def test_what_is_still_arriving_is_not_handed_out(tmp_path):
    store = ContentStore(tmp_path)
    store.part(REF.digest).write_bytes(BLOB)
    async with network(a=sharing(store).answer) as (source, _):
        assert not await source.find(REF)


async def test_nobody_shares_where_nothing_is_shared():
    async with network(a=None) as (source, _):
        assert not await source.find(REF)
        with pytest.raises(NotHereError):
            await source.chunk(REF, 0)


async def test_a_neighbour_that_lies_is_found_out_said_aloud_and_left_alone(tmp_path):
    async def lie(request: ChunkRequest) -> ChunkReply:
        return ChunkReply(request.id, os.urandom(request.size_bytes))

    honest = sharing(holding(tmp_path, BLOB))
    async with network(liar=lie, honest=honest.answer) as (source, servers):
        source._giver = "liar"  # so that it is asked first
        assert await source.chunk(REF, 0) == CHUNKS[0]
        assert source.liars == 1
        asked = servers["liar"].stats.requests
        assert await source.chunk(REF, 1) == CHUNKS[1]
        assert servers["liar"].stats.requests == asked


@pytest.mark.parametrize("size_bytes", [0, 1, 90_000])
async def test_a_chunk_of_another_length_is_a_lie(size_bytes):
    async def lie(request: ChunkRequest) -> ChunkReply:
        return ChunkReply(request.id, bytes(size_bytes))

    async with network(liar=lie) as (source, _):
        with pytest.raises(NotHereError):
            await source.chunk(REF, 0)
        assert source.liars == 1


async def test_a_neighbour_that_is_gone_is_not_asked_again_for_a_while(tmp_path):
    shared = sharing(holding(tmp_path, BLOB))
    clock = [1000.0]
    async with network(a=shared.answer) as (source, _):
        at = source._nearby()[0]
    async with PeerClient.open(root="shoal", node="me") as client:
        source = Neighbours(client, lambda: [at], clock=lambda: clock[0])
        assert not await source.find(REF)
        async with PeerServer.open(
            "127.0.0.1", at.port, no_inference, root="shoal", node="a", share=shared.answer
        ):
            assert not await source.find(REF)
            clock[0] += neighbours_module.UNREACHABLE_S
            assert await source.find(REF)


async def test_who_hands_out_chunks_keeps_its_own_rate(tmp_path):
    shared = sharing(holding(tmp_path, BLOB), bytes_per_s=len(CHUNKS[0]))
    request = ChunkRequest(bytes(8), REF.digest, 0, len(CHUNKS[0]))
    assert [(await shared.answer(request)).reason for _ in range(3)] == ["", "busy", "busy"]
    assert shared.declined == 2


async def test_a_node_whose_own_work_waits_hands_out_nothing(tmp_path):
    shared = sharing(holding(tmp_path, BLOB), is_strained=lambda: True)
    assert (await shared.answer(ChunkRequest(bytes(8), REF.digest, 0, 9))).reason == "busy"


async def test_a_node_whose_event_loop_is_late_hands_out_nothing_for_a_while(tmp_path):
    clock = [0.0]
    shared = Sharing(
        holding(tmp_path, BLOB), bytes_per_s=0, is_strained=lambda: False, clock=lambda: clock[0]
    )
    request = ChunkRequest(bytes(8), REF.digest, 0, 9)

    def late() -> None:
        clock[0] += 0.05

    asyncio.get_running_loop().call_soon(late)
    assert (await shared.answer(request)).reason == "busy"
    assert (await shared.answer(request)).reason == "busy"
    clock[0] += 2.0
    assert (await shared.answer(request)).data == BLOB[:9]


@pytest.mark.parametrize(
    ("offset_bytes", "size_bytes"),
    [(len(BLOB), 1), (len(BLOB) - 1, 2), (1 << 31, 1), (0, MOST_BYTES + 1)],
)
async def test_what_lies_outside_of_a_blob_is_not_read(tmp_path, offset_bytes, size_bytes):
    shared = sharing(holding(tmp_path, BLOB))
    reply = await shared.answer(ChunkRequest(bytes(8), REF.digest, offset_bytes, size_bytes))
    assert reply == ChunkReply(bytes(8), b"", "no such chunk")


async def test_chunks_and_inference_share_a_connection(tmp_path):
    shared = sharing(holding(tmp_path, BLOB))
    async with network(a=shared.answer) as (source, servers):
        peer = source._nearby()[0]
        chunk, reply = await asyncio.gather(
            source.chunk(REF, 0), source._client.ask(peer, InferRequest(bytes(8), "m", []), 5)
        )
        assert (chunk, reply.reason) == (CHUNKS[0], "no")
        assert servers["a"].stats.connections == 1


async def test_a_chunk_that_is_too_long_for_a_message_is_somebody_elses_matter(tmp_path):
    content = os.urandom(96 * 1024)
    ref = blobs.describe(content, chunk_bytes=96 * 1024)
    async with network(a=sharing(holding(tmp_path, content)).answer) as (source, _):
        with pytest.raises(NotHereError):
            await source.chunk(ref, 0)
        assert source.liars == 0
