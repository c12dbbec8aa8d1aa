import asyncio
import errno
import os
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.shoal_agent.until import until
from tests.support.hub import Hub

from shoal_agent import collecting, fetch
from shoal_agent.allowance import Allowance
from shoal_agent.arriving import Arriving
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
LONG = os.urandom(60 * 1024)
LONG_REF = blobs.describe(LONG, chunk_bytes=1024)


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


async def publish(hub, content, ref, indexes, *, retain=True):
    chunks = dict(blobs.cut(content, chunk_bytes=ref.chunk_bytes))
    for index in indexes:
        topic = hub.topics.chunk(ref.digest, index)
        await hub.session.publish(topic, chunks[index], retain=retain, durable=False)


def asked(hub):
    return [index for message in missing(hub) for index in message.indexes]


async def test_a_fetch_that_is_resumed_has_only_the_missing_chunks_sent(tmp_path):
    async with site(tmp_path) as (hub, fetcher, content):
        held = LONG[: 40 * 1024]
        content.part(LONG_REF.digest).write_bytes(held)
        await publish(hub, LONG, LONG_REF, range(60))
        await fetcher.fetch(LONG_REF)
        assert content.path(LONG_REF.digest).read_bytes() == LONG
        assert fetcher.received_bytes == len(LONG) - len(held)
        assert fetcher.asked_chunks == 0


async def test_what_an_earlier_process_listened_to_does_not_come_all_over(tmp_path):
    async with site(tmp_path) as (hub, fetcher, content):
        session = fetcher._session
        content.part(LONG_REF.digest).write_bytes(LONG[: 59 * 1024])

        async def take(message):
            pass

        # As a process that was killed leaves it: the broker knows of it, this process does not.
        every = hub.topics.every_chunk(LONG_REF.digest)
        await session.subscribe(every, take)
        session._dispatcher.remove(every)
        await publish(hub, LONG, LONG_REF, [59])
        await fetcher.fetch(LONG_REF)
        received = session.stats.received
        await publish(hub, LONG, LONG_REF, range(10), retain=False)
        await session.subscribe("marker", take)
        await session.publish("marker", b"x", durable=False)
        await session.publish("marker", b"y", durable=False)
        assert session.stats.received - received <= 2


async def test_never_more_than_a_window_waits_at_the_broker_for_a_board(tmp_path, monkeypatch):
    async with site(tmp_path) as (hub, fetcher, content):
        filters = set()
        most = 0
        subscribe, unsubscribe = fetcher._session.subscribe, fetcher._session.unsubscribe

        async def counted(topic_filter, subscriber):
            nonlocal most
            filters.add(topic_filter)
            most = max(most, len(filters))
            await subscribe(topic_filter, subscriber)

        async def uncounted(topic_filter):
            filters.discard(topic_filter)
            await unsubscribe(topic_filter)

        monkeypatch.setattr(fetcher._session, "subscribe", counted)
        monkeypatch.setattr(fetcher._session, "unsubscribe", uncounted)
        await publish(hub, LONG, LONG_REF, range(60))
        await fetcher.fetch(LONG_REF)
        assert content.has(LONG_REF.digest)
        assert 1 < most <= collecting.WINDOW
        assert not filters


async def test_a_chunk_that_is_missing_in_the_middle_holds_up_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PATIENCE_S", 0.2)
    async with site(tmp_path) as (hub, fetcher, content):
        lost = set(range(3, 3 + collecting.WINDOW))
        await publish(hub, LONG, LONG_REF, set(range(60)) - lost)
        fetching = asyncio.create_task(fetcher.fetch(LONG_REF))
        await hub.until(lambda: bool(asked(hub)))
        assert set(asked(hub)) <= lost
        await publish(hub, LONG, LONG_REF, lost)
        await fetching
        assert content.path(LONG_REF.digest).read_bytes() == LONG
        # Nothing came twice: it never listened to everything.
        assert fetcher.received_bytes == len(LONG)


async def test_a_blob_that_is_not_retained_comes_by_listening_and_asking(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PATIENCE_S", 0.1)
    async with site(tmp_path) as (hub, fetcher, content):
        fetching = asyncio.create_task(fetcher.fetch(LONG_REF))
        answered = 0
        while not fetching.done():
            hub.changed.clear()
            for message in missing(hub)[answered:]:
                assert len(message.indexes) <= collecting.ASK_AT_MOST
                answered += 1
                await publish(hub, LONG, LONG_REF, message.indexes, retain=False)
            changed = asyncio.create_task(hub.changed.wait())
            await asyncio.wait({changed, fetching}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        await fetching
        assert content.path(LONG_REF.digest).read_bytes() == LONG


async def test_on_a_slow_line_bytes_that_come_in_count_as_patience(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PATIENCE_S", 1.0)
    async with site(tmp_path) as (hub, fetcher, _content):

        async def take(message):
            pass

        # What else comes on the line, in the place of a chunk that takes long.
        await fetcher._session.subscribe("other", take)
        fetching = asyncio.create_task(fetcher.fetch(REF))
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 2.2
        while loop.time() < until_s:
            await hub.session.publish("other", b"x", durable=False)
            await asyncio.sleep(0.01)
        assert not fetcher.asked_chunks
        await hub.until(lambda: bool(missing(hub)))
        fetching.cancel()
        await asyncio.wait({fetching})


async def test_what_comes_in_for_longer_than_a_chunk_takes_is_no_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PATIENCE_S", 0.1)
    # On such a line a chunk takes half a second.
    monkeypatch.setattr(collecting, "SLOW_LINE_BYTES_PER_S", 2 * REF.chunk_bytes)
    async with site(tmp_path) as (hub, fetcher, _content):
        said = asyncio.Event()

        async def take(message):
            said.set()

        await fetcher._session.subscribe("other", take)
        fetching = asyncio.create_task(fetcher.fetch(REF))
        # A board with a device hears something all the time.
        while not missing(hub):
            said.clear()
            await hub.session.publish("other", b"x", durable=False)
            await said.wait()
        fetching.cancel()
        await asyncio.wait({fetching})


async def test_a_blob_cut_anew_in_the_middle_of_a_fetch_goes_on_from_what_is_verified(tmp_path):
    old, new = blobs.describe(BLOB), blobs.describe(BLOB, chunk_bytes=48 * 1024)
    async with site(tmp_path) as (hub, fetcher, content):
        await publish(hub, BLOB, old, [0, 1])
        fetching = asyncio.create_task(fetcher.fetch(old))
        await until(lambda: fetcher.received_bytes >= 2 * 65_536)
        # The new cut lands on the topics of the old one, before the wanted state says so.
        await publish(hub, BLOB, new, range(4))
        await until(lambda: fetcher.received_bytes >= 2 * 65_536 + 48 * 1024)
        assert not fetching.done()
        fetching.cancel()
        await asyncio.wait({fetching})
        before = fetcher.received_bytes
        await fetcher.fetch(new)
        assert content.path(REF.digest).read_bytes() == BLOB
        # 131,072 bytes were there: two chunks of 49,152 and no third.
        assert fetcher.received_bytes - before == len(BLOB) - 2 * 49_152


@given(
    old=st.integers(1024, 9000),
    new=st.integers(1024, 9000),
    held=st.sets(st.integers(0, 40)),
    damage=st.integers(0, 39_999),
)
def test_a_part_file_of_any_cut_keeps_what_can_be_verified_and_nothing_else(
    tmp_path_factory, old, new, held, damage
):
    content = bytes(LONG[:40_000])
    path = tmp_path_factory.mktemp("part") / "part"
    first = Arriving(blobs.describe(content, chunk_bytes=old), path)
    chunks = dict(blobs.cut(content, chunk_bytes=old))
    for index in held & chunks.keys():
        first.take(index, chunks[index])
    first.close()
    if path.stat().st_size > damage:
        with path.open("r+b") as file:
            file.seek(damage)
            file.write(bytes([content[damage] ^ 1]))
    here = path.read_bytes()
    second = Arriving(blobs.describe(content, chunk_bytes=new), path)
    for index, chunk in blobs.cut(content, chunk_bytes=new):
        start = index * new
        assert (index not in second.missing) == (here[start : start + len(chunk)] == chunk)
        second.take(index, chunk)
    assert not second.missing
    second.finish()
    second.close()
    assert path.read_bytes() == content


async def test_a_disk_that_takes_no_chunk_ends_the_fetch_and_says_why(tmp_path, monkeypatch):
    async with site(tmp_path) as (hub, fetcher, _content):

        def full(*_arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "pwrite", full)
        await hub.publish_blob(BLOB)
        with pytest.raises(UpdateError, match="No space left"):
            await fetcher.fetch(REF)


async def test_a_fetch_keeps_to_its_bandwidth_and_takes_no_silence_of_its_own_for_the_brokers(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(fetch, "PATIENCE_S", 0.05)
    async with site(tmp_path) as (hub, fetcher, content):
        fetcher.allowance = Allowance(len(LONG) * 2)
        for index, chunk in blobs.cut(LONG, chunk_bytes=1024):
            await hub.session.publish(
                hub.topics.chunk(LONG_REF.digest, index), chunk, retain=True, durable=False
            )
        began_s = asyncio.get_running_loop().time()
        await fetcher.fetch(LONG_REF)
        took_s = asyncio.get_running_loop().time() - began_s
        assert content.path(LONG_REF.digest).read_bytes() == LONG
        # Half a second of bytes: the first of them at once.
        assert took_s > 0.3
        assert fetcher.asked_chunks == 0
