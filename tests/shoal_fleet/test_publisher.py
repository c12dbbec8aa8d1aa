"""The publisher on the embedded broker: what the broker retains, refuses, forgets and takes at most."""

import asyncio
import contextlib
import os
from contextlib import asynccontextmanager

import pytest
import structlog
from tests.support.cdn import Cdn, retained, until

from shoal_broker.bus_errors import RefusedByBrokerError
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.session import Session, SessionConfig
from shoal_contract import blobs, messages
from shoal_contract.messages import CHUNK_BYTES, ChunksMissing
from shoal_contract.topics import Topics
from shoal_fleet import chunk_sender, publisher, repairs, shelf
from shoal_fleet.chunk_sender import ChunkSender

TOPICS = Topics()
MODEL = os.urandom(300_000)


def broker_on(port: int = 0, **changes):
    return Broker.open(BrokerConfig(host="127.0.0.1", port=port, **changes))


@asynccontextmanager
async def node(port, name="n1"):
    config = SessionConfig(host="127.0.0.1", port=port, client_id=name, transport="codec")
    async with Session.open(config) as session:
        await session.wait_connected(5)
        yield session


async def ask(session, ref, indexes, name="n1"):
    await session.publish(
        TOPICS.results(name),
        messages.encode(ChunksMissing(ref.digest, list(indexes))),
        durable=False,
    )


def topics_of(ref):
    return {TOPICS.chunk(ref.digest, index) for index in range(blobs.chunk_count(ref))}


def content_of(found, ref):
    return b"".join(
        found[TOPICS.chunk(ref.digest, index)] for index in range(blobs.chunk_count(ref))
    )


async def until_retained(port, *refs):
    """What is at the broker, once it is exactly the chunks of these."""
    wanted = set().union(*(topics_of(ref) for ref in refs))
    async with asyncio.timeout(45):
        while (found := await retained(port)).keys() != wanted:
            pass
    return found


@pytest.fixture
def heard():
    with structlog.testing.capture_logs() as entries:
        yield entries


def events(heard, level):
    return [entry["event"] for entry in heard if entry["log_level"] == level]


async def test_a_blob_is_retained_while_it_is_needed_and_costs_one_copy(tmp_path):
    async with broker_on() as broker, Cdn.open(broker.port, tmp_path) as cdn:
        ref = await cdn.add(MODEL)
        assert content_of(await until_retained(broker.port, ref), ref) == MODEL
        await cdn.until_published()
        assert cdn.publisher.sent_bytes == len(MODEL) == cdn.publisher.places.retained_bytes
        cdn.need_no_more()
        assert not await until_retained(broker.port)


async def test_chunks_are_cut_to_what_the_broker_takes_in_a_packet(tmp_path):
    async with (
        broker_on(max_packet_bytes=20_000) as broker,
        Cdn.open(broker.port, tmp_path) as cdn,
    ):
        ref = await cdn.add(MODEL)
        await cdn.until_published()
        assert cdn.publisher.chunk_bytes == 19 * 1024
        found = await until_retained(broker.port, await cdn.store.ref(ref.digest))
        assert max(map(len, found.values())) == 19 * 1024


async def test_a_broker_that_takes_less_gets_the_blobs_cut_anew(tmp_path):
    async with broker_on() as broker, Cdn.open(broker.port, tmp_path) as cdn:
        whole = await cdn.add(MODEL)
        small = await cdn.add(b"small")
        await cdn.until_published()
        assert (whole.chunk_bytes, blobs.chunk_count(whole)) == (CHUNK_BYTES, 5)
    async with (
        broker_on(max_packet_bytes=20_000) as broker,
        Cdn.open(broker.port, tmp_path) as cdn,
    ):
        cdn.need(whole, small)
        cut = None
        while cut is None or cut.chunk_bytes == CHUNK_BYTES:
            await cdn.until_published()
            cut = await cdn.store.ref(whole.digest)
        await cdn.until_published()
        assert cut == blobs.describe(MODEL, chunk_bytes=19 * 1024)
        # One chunk is one chunk in either cut.
        assert await cdn.store.ref(small.digest) == small
        assert content_of(await until_retained(broker.port, cut, small), cut) == MODEL
        # The same content once more keeps the cut that it has.
        assert await cdn.store.add(MODEL) == cut


async def test_a_smaller_setting_cuts_anew_what_is_retained_and_leaves_no_old_chunk(tmp_path):
    async with broker_on() as broker:
        async with Cdn.open(broker.port, tmp_path) as cdn:
            ref = await cdn.add(MODEL)
            await cdn.until_published()
        async with Cdn.open(broker.port, tmp_path, chunk_bytes=48 * 1024) as cdn:
            cdn.need(ref)
            cut = blobs.describe(MODEL, chunk_bytes=48 * 1024)
            assert content_of(await until_retained(broker.port, cut), cut) == MODEL
            cdn.need_no_more()
            assert not await until_retained(broker.port)


async def test_a_kill_in_the_middle_leaves_nothing_once_nobody_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(publisher, "SLICE_CHUNKS", 2)
    async with broker_on() as broker:
        async with Cdn.open(broker.port, tmp_path) as cdn:
            await cdn.add(MODEL)
            await until(lambda: cdn.publisher.sent_bytes >= 2 * CHUNK_BYTES)
        assert await retained(broker.port)
        async with Cdn.open(broker.port, tmp_path) as cdn:
            cdn.publisher.look()
            assert not await until_retained(broker.port)


async def test_a_broker_that_came_back_empty_gets_what_is_needed_and_keeps_nothing_else(tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        running = contextlib.AsyncExitStack()
        port = (await running.enter_async_context(broker_on())).port
        cdn = await stack.enter_async_context(Cdn.open(port, tmp_path))
        ref = await cdn.add(MODEL)
        other = await cdn.add(os.urandom(100_000))
        await cdn.until_published()
        await running.aclose()
        await stack.enter_async_context(broker_on(port))
        cdn.need_no_more(other)
        assert content_of(await until_retained(port, ref), ref) == MODEL
        cdn.need_no_more()
        assert not await until_retained(port)


async def test_the_broker_never_retains_more_than_the_limit(tmp_path, heard):
    limit_bytes = 400_000
    contents = [os.urandom(size) for size in (1000, 250_000, 300_000, 140_000)]
    async with (
        broker_on() as broker,
        Cdn.open(broker.port, tmp_path, retained_bytes_max=limit_bytes) as cdn,
    ):
        small, medium, large, other = [await cdn.add(content) for content in contents]
        # Smallest first: what is left over waits, and says for whom.
        await until(lambda: cdn.publisher.places.states["retained"] == 3)
        assert sum(map(len, (await retained(broker.port)).values())) == 391_000
        assert cdn.publisher.places.states["waiting"] == 1
        (waiting,) = [entry for entry in heard if entry["event"] == "blob waits for room"]
        assert waiting["blob"] == large.digest.hex()[:12]
        assert waiting["waits_for"][0] == medium.digest.hex()[:12]
        # A node that asks for it meanwhile moves nothing.
        async with node(broker.port) as session:
            await ask(session, large, [0, 1])
            await until(lambda: bool(cdn.asked))
        cdn.need_no_more(medium, other)
        await until_retained(broker.port, small, large)
        assert cdn.publisher.requested_chunks == 0
        assert cdn.publisher.sent_bytes == sum(map(len, contents))


async def test_who_waits_gets_a_turn_though_the_others_are_needed_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "TURN_S", 0.3)
    monkeypatch.setattr(publisher, "LOOK_S", 0.05)
    async with (
        broker_on() as broker,
        Cdn.open(broker.port, tmp_path, retained_bytes_max=700_000) as cdn,
    ):
        first = await cdn.add(os.urandom(500_000))
        await cdn.until_published()
        second = await cdn.add(os.urandom(600_000))
        await until_retained(broker.port, second)
        await until_retained(broker.port, first)


async def test_a_blob_larger_than_the_limit_is_sent_to_those_who_ask(tmp_path):
    async with (
        broker_on() as broker,
        Cdn.open(broker.port, tmp_path, retained_bytes_max=100_000) as cdn,
        node(broker.port) as session,
    ):
        ref = await cdn.add(MODEL)
        await until(lambda: cdn.publisher.places.states["on_request"] == 1)
        assert cdn.publisher.sent_bytes == 0
        got = {}

        async def take(inbound):
            got[inbound.topic] = inbound.payload

        await session.subscribe(TOPICS.every_chunk(ref.digest), take)
        await ask(session, ref, [0, 2])
        await until(lambda: len(got) == 2)
        await ask(session, ref, range(5))
        await until(lambda: got.keys() == topics_of(ref))
        assert content_of(got, ref) == MODEL
        assert cdn.publisher.requested_chunks == 5
        assert not await retained(broker.port)


@pytest.mark.parametrize("limit", ["max_retained_bytes", "max_retained_messages"])
async def test_a_broker_that_refuses_retained_chunks_is_one_alarm_and_nodes_are_served(
    tmp_path, heard, monkeypatch, limit
):
    monkeypatch.setattr(chunk_sender, "LOOK_S", 0.1)
    room = {"max_retained_bytes": 200_000, "max_retained_messages": 3}[limit]
    async with (
        broker_on(**{limit: room}) as broker,
        Cdn.open(broker.port, tmp_path) as cdn,
        node(broker.port) as session,
    ):
        refs = [await cdn.add(os.urandom(300_000)) for _ in range(2)]
        await until(lambda: cdn.publisher.places.states["refused"] == 2)
        assert events(heard, "error") == ["broker does not take a blob's chunks"]
        assert not await until_retained(broker.port)
        sent_bytes = cdn.publisher.sent_bytes
        got = {}

        async def take(inbound):
            # What is cleared is told, too.
            if inbound.payload:
                got[inbound.topic] = inbound.payload

        await session.subscribe(TOPICS.every_chunk(refs[0].digest), take)
        await ask(session, refs[0], range(5))
        await until(lambda: got.keys() == topics_of(refs[0]))
        # Nothing was tried over and over.
        assert cdn.publisher.sent_bytes - sent_bytes == 300_000


async def test_one_absent_session_without_room_does_not_keep_the_blob_from_the_others(tmp_path):
    async with broker_on(max_queued_bytes=400_000) as broker:
        ref = blobs.describe(MODEL)
        async with node(broker.port, "gone") as session:

            async def take(inbound):
                pass

            await session.subscribe(TOPICS.every_chunk(ref.digest), take)
            await session.subscribe("filler", take)
        async with node(broker.port) as session:
            for _ in range(5):
                await session.publish("filler", bytes(CHUNK_BYTES), durable=False)
        async with Cdn.open(broker.port, tmp_path) as cdn:
            await cdn.add(MODEL)
            assert content_of(await until_retained(broker.port, ref), ref) == MODEL
            await cdn.until_published()
            cdn.need_no_more()
            assert not await until_retained(broker.port)


async def test_a_chunk_that_300_nodes_miss_is_published_once(tmp_path, monkeypatch):
    monkeypatch.setattr(repairs, "AGAIN_AFTER_S", 60.0)
    async with (
        broker_on() as broker,
        Cdn.open(broker.port, tmp_path) as cdn,
        node(broker.port) as session,
    ):
        ref = await cdn.add(MODEL)
        await cdn.until_published()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(300):
                tasks.create_task(ask(session, ref, [3]))
        await until(lambda: len(cdn.asked) == 300)
        await until(lambda: cdn.publisher.resent_chunks > 0 and not len(cdn.publisher._repairs))
        assert cdn.publisher.resent_chunks == 1
        assert cdn.publisher.sent_bytes == len(MODEL) + CHUNK_BYTES


async def test_a_blob_whose_file_is_damaged_holds_up_no_other(tmp_path, heard):
    async with broker_on() as broker, Cdn.open(broker.port, tmp_path) as cdn:
        broken = await cdn.store.add(b"x" * 1000)
        cdn.store.path(broken.digest).write_bytes(b"y" * 1000)
        good = await cdn.store.add(MODEL)
        cdn.need(broken, good)
        await until_retained(broker.port, good)
        assert "no longer what its name says" in str(heard)
        assert events(heard, "error") == ["broker does not take a blob's chunks"]


async def test_what_the_broker_does_not_let_go_of_takes_room_and_is_said_once(
    tmp_path, heard, monkeypatch
):
    first, second = os.urandom(250_000), os.urandom(200_000)

    async def refused(self, digest, indexes):
        raise RefusedByBrokerError("not authorised", reason_code=0x87)

    async with (
        broker_on() as broker,
        Cdn.open(broker.port, tmp_path, retained_bytes_max=400_000) as cdn,
    ):
        stuck = await cdn.add(first)
        await cdn.until_published()
        with monkeypatch.context() as patch:
            patch.setattr(ChunkSender, "clear", refused)
            cdn.need_no_more(stuck)
            other = await cdn.add(second)
            await until(lambda: cdn.publisher.places.states["on_request"] == 1)
        assert events(heard, "error") == ["broker does not clear a blob"]
        assert (await retained(broker.port)).keys() == topics_of(stuck)
        cdn.publisher.forget()
        await until_retained(broker.port, other)


async def test_a_broker_that_is_reached_again_and_takes_less_is_no_refusal(tmp_path, heard):
    async with contextlib.AsyncExitStack() as stack:
        running = contextlib.AsyncExitStack()
        port = (await running.enter_async_context(broker_on())).port
        cdn = await stack.enter_async_context(Cdn.open(port, tmp_path))
        ref = await cdn.add(MODEL)
        await cdn.until_published()
        await running.aclose()
        await stack.enter_async_context(broker_on(port, max_packet_bytes=20_000))
        cut = blobs.describe(MODEL, chunk_bytes=19 * 1024)
        assert content_of(await until_retained(port, cut), cut) == MODEL
        assert (await cdn.store.ref(ref.digest)) == cut
        assert not events(heard, "error")
