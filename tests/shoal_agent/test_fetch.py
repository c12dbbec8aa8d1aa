import asyncio
import os
from contextlib import asynccontextmanager

import pytest
from tests.support.hub import Hub

from shoal_agent import fetch
from shoal_agent.errors import UpdateError
from shoal_agent.fetch import BlobFetcher
from shoal_agent.files import ContentStore
from shoal_broker.outbox import Outbox
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract import blobs
from shoal_contract.messages import BlobRef, ChunksMissing
from shoal_contract.topics import Topics

BLOB = os.urandom(150_000)
REF = blobs.describe(BLOB)


@asynccontextmanager
async def site(tmp_path):
    async with (
        Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
        Hub.open(broker.port, "n1") as hub,
        Store.open(tmp_path / "agent.db") as store,
        Session.open(
            SessionConfig(host="127.0.0.1", port=broker.port, client_id="n1"),
            outbox=await Outbox.load(store),
        ) as session,
    ):
        await session.wait_connected(5)
        content = ContentStore(tmp_path)
        yield hub, BlobFetcher(session, Topics(), "n1", content), content


def missing(hub):
    return [message for message in hub.results if isinstance(message, ChunksMissing)]


async def test_a_blob_is_put_together_from_its_retained_chunks(tmp_path):
    async with site(tmp_path) as (hub, fetcher, content):
        await hub.publish_blob(BLOB)
        await fetcher.fetch(REF)
        assert content.path(REF.digest).read_bytes() == BLOB
        assert fetcher.received_bytes == len(BLOB)


async def test_a_damaged_chunk_is_thrown_away_and_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PATIENCE_S", 0.2)
    async with site(tmp_path) as (hub, fetcher, content):
        topic = hub.topics.chunk(REF.digest, 1)
        await hub.publish_blob(BLOB, skip={1})
        await hub.session.publish(topic, os.urandom(65_536), retain=True, durable=False)
        fetching = asyncio.create_task(fetcher.fetch(REF))
        await hub.until(lambda: bool(missing(hub)))
        assert missing(hub)[0] == ChunksMissing(REF.digest, [1])
        assert not content.has(REF.digest)
        await hub.publish_blob(BLOB, skip={0, 2})
        await fetching
        assert content.path(REF.digest).read_bytes() == BLOB


async def test_a_fetch_is_resumed_from_what_its_part_file_holds(tmp_path):
    async with site(tmp_path) as (hub, fetcher, content):
        held = bytearray(len(BLOB))
        held[:65_536] = BLOB[:65_536]
        content.part(REF.digest).write_bytes(held)
        await hub.publish_blob(BLOB, skip={0})
        await fetcher.fetch(REF)
        assert content.path(REF.digest).read_bytes() == BLOB


async def test_what_is_here_is_not_fetched(tmp_path):
    async with site(tmp_path) as (_, fetcher, content):
        content.part(REF.digest).write_bytes(BLOB)
        content.adopt(content.part(REF.digest), REF.digest)
        await fetcher.fetch(REF)
        assert fetcher.received_bytes == 0


async def test_an_empty_blob_needs_no_chunk(tmp_path):
    async with site(tmp_path) as (_, fetcher, content):
        empty = blobs.describe(b"")
        await fetcher.fetch(empty)
        assert content.path(empty.digest).read_bytes() == b""


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        (BlobRef(bytes(32), 1 << 30, 65_536, b"short"), "chunk digests"),
        (BlobRef(bytes(32), 1 << 31, 1 << 16, bytes(16 << 15)), "chunk digests|are needed"),
    ],
)
async def test_a_reference_that_cannot_be_right_is_refused(tmp_path, ref, says):
    async with site(tmp_path) as (_, fetcher, _content):
        with pytest.raises(UpdateError, match=says):
            await fetcher.fetch(ref)


async def test_a_full_disk_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_MIN_FREE_BYTES", 1 << 60)
    async with site(tmp_path) as (_, fetcher, _content):
        with pytest.raises(UpdateError, match="are needed"):
            await fetcher.fetch(REF)


async def test_right_chunks_of_a_wrong_whole_are_refused(tmp_path):
    async with site(tmp_path) as (hub, fetcher, content):
        liar = BlobRef(bytes(32), REF.size_bytes, REF.chunk_bytes, REF.chunk_digests)
        for index, chunk in blobs.cut(BLOB):
            await hub.session.publish(
                hub.topics.chunk(bytes(32), index), chunk, retain=True, durable=False
            )
        with pytest.raises(UpdateError, match="the whole is not"):
            await fetcher.fetch(liar)
        assert not content.part(bytes(32)).exists()
