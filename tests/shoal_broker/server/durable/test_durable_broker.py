"""A durable broker on real sockets and a real file: what is answered when, and what is there afterwards."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import asynccontextmanager

import pytest
from tests.shoal_broker.server.desk import NEVER
from tests.shoal_broker.server.test_shell import Raw, raw, until

from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    QoS,
    SubAckPacket,
    SubscribePacket,
    TopicFilter,
)
from shoal_broker.errors import DurabilityError, ListenError
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.durable import committer
from shoal_broker.server.link import ANSWERS, DISK


def durable(directory, **options):
    return Broker.open(BrokerConfig(port=0, durable_dir=directory, **options))


def store_of(broker):
    return broker._gate._committer._store


@asynccontextmanager
async def standing_disk(broker):
    """Nothing is written inside the block."""
    turn = threading.Event()
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stand(_connection) -> None:
        loop.call_soon_threadsafe(reached.set)
        turn.wait()

    standing = asyncio.create_task(store_of(broker).read(stand))
    await reached.wait()
    try:
        yield
    finally:
        turn.set()
        await standing


async def absent_reader(broker, client_id="away", max_qos=QoS.AT_LEAST_ONCE):
    async with raw(broker) as reader:
        await reader.connect(client_id, session_expiry_interval=NEVER)
        reader.send(SubscribePacket(1, [TopicFilter("t/#", max_qos=max_qos)]))
        await reader.next(SubAckPacket)
    await until(lambda: not broker.core.router.sessions[client_id].connected)


async def payloads(client: Raw, count: int) -> list[bytes]:
    received = []
    for _ in range(count):
        message = await client.next(PublishPacket)
        received.append(message.payload)
        client.send(PubAckPacket(message.packet_id))
    return received


# --- what is answered when


async def test_puback_waits_for_the_disk_and_a_ping_does_not(tmp_path):
    async with durable(tmp_path) as broker:
        await absent_reader(broker)
        async with raw(broker) as publisher:
            await publisher.connect("p")
            async with standing_disk(broker):
                publisher.send(
                    PublishPacket("t/1", b"m", qos=QoS.AT_LEAST_ONCE, packet_id=1), PingReqPacket()
                )
                await publisher.next(PingRespPacket)
                assert len(broker.core.router.sessions["away"].queue) == 1
            assert int((await publisher.next(PubAckPacket)).reason_code) == 0


async def test_an_answer_that_promises_nothing_new_does_not_wait(tmp_path):
    async with durable(tmp_path) as broker, raw(broker) as publisher:
        await publisher.connect("p")
        async with standing_disk(broker):
            assert await publisher.publish("nobody/wants/this") == 0x10


async def test_suback_and_the_connack_of_a_session_to_keep_wait_for_the_disk(tmp_path):
    async with durable(tmp_path) as broker, raw(broker) as client:
        async with standing_disk(broker):
            client.send(
                ConnectPacket("c", session_expiry_interval=NEVER),
                SubscribePacket(1, [TopicFilter("t/#")]),
                PingReqPacket(),
            )
            await client.next(PingRespPacket)
        await client.next(ConnAckPacket)
        await client.next(SubAckPacket)


async def test_what_connected_clients_acknowledge_at_once_needs_no_disk(tmp_path):
    async with durable(tmp_path) as broker, raw(broker) as reader, raw(broker) as publisher:
        await reader.connect("r", session_expiry_interval=NEVER)
        await reader.subscribe("t/#")
        await publisher.connect("p")
        broker._gate._committer._linger_s = 60.0
        async with standing_disk(broker):
            for number in range(1, 20):
                publisher.send(PublishPacket("t/1", b"m", qos=QoS.AT_LEAST_ONCE, packet_id=number))
                await payloads(reader, 1)
                assert int((await publisher.next(PubAckPacket)).reason_code) == 0


async def test_qos_1_is_delivered_before_the_commit_and_qos_2_only_then(tmp_path):
    async with durable(tmp_path) as broker, raw(broker) as reader, raw(broker) as publisher:
        await reader.connect("r", session_expiry_interval=NEVER)
        reader.send(SubscribePacket(1, [TopicFilter("t/#", max_qos=QoS.EXACTLY_ONCE)]))
        await reader.next(SubAckPacket)
        await publisher.connect("p")
        async with standing_disk(broker):
            publisher.send(
                PublishPacket("t/1", b"one", qos=QoS.AT_LEAST_ONCE, packet_id=1),
                PublishPacket("t/2", b"two", qos=QoS.EXACTLY_ONCE, packet_id=2),
            )
            assert (await reader.next(PublishPacket)).payload == b"one"
            reader.send(PingReqPacket())
            await reader.next(PingRespPacket)
        assert (await reader.next(PublishPacket)).payload == b"two"
        await publisher.next(PubAckPacket)
        await publisher.next(PubRecPacket)


async def test_publishers_are_not_read_while_too_much_is_not_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(committer, "MAX_UNCOMMITTED_BYTES", 100_000)
    async with durable(tmp_path) as broker:
        await absent_reader(broker)
        async with raw(broker) as publisher:
            await publisher.connect("p")
            async with standing_disk(broker):
                for number in range(1, 401):
                    publisher.send(
                        PublishPacket("t/1", b"x" * 5_000, qos=QoS.AT_LEAST_ONCE, packet_id=number)
                    )
                (link,) = broker._links
                await until(lambda: link.held & DISK)
                taken = len(broker.core.router.sessions["away"].queue)
                assert taken < 200
            for number in range(1, 401):
                assert (await publisher.next(PubAckPacket)).packet_id == number
            await until(lambda: not link.held)


# --- what is there afterwards


async def test_everything_is_there_after_it_was_closed_and_opened(tmp_path):
    async with durable(tmp_path) as broker:
        await absent_reader(broker)
        async with raw(broker) as publisher:
            await publisher.connect("p")
            for number in range(5):
                assert await publisher.publish(f"t/{number}", b"%d" % number) == 0
    async with durable(tmp_path) as broker, raw(broker) as reader:
        assert (await reader.connect("away", session_expiry_interval=NEVER)).session_present
        assert await payloads(reader, 5) == [b"0", b"1", b"2", b"3", b"4"]
        reader.send(PingReqPacket())
        await reader.next(PingRespPacket)
    async with durable(tmp_path) as broker, raw(broker) as reader:
        await reader.connect("away", session_expiry_interval=NEVER)
        reader.send(PingReqPacket())
        await reader.next(PingRespPacket)


async def test_what_was_acknowledged_is_there_after_it_was_dropped(tmp_path):
    async with durable(tmp_path) as broker:
        await absent_reader(broker)
        async with raw(broker) as publisher:
            await publisher.connect("p")
            for number in range(5):
                assert await publisher.publish(f"t/{number}", b"%d" % number) == 0
            broker.abort()
    async with durable(tmp_path) as broker, raw(broker) as reader:
        await reader.connect("away", session_expiry_interval=NEVER)
        assert await payloads(reader, 5) == [b"0", b"1", b"2", b"3", b"4"]


async def test_access_to_the_file_is_the_owners(tmp_path):
    async with durable(tmp_path / "new"):
        assert (tmp_path / "new").stat().st_mode & 0o077 == 0
        assert (tmp_path / "new" / "broker.db").stat().st_mode & 0o077 == 0


# --- a disk that is full


async def test_a_full_disk_loses_nothing_and_refuses_until_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(committer, "RETRY_S", 0.02)
    async with durable(tmp_path) as broker:
        await absent_reader(broker)
        async with raw(broker) as first, raw(broker) as second:
            await first.connect("p1")
            await second.connect("p2")
            assert await first.publish("t/1", b"before") == 0
            limit = await store_of(broker).read(
                lambda c: c.execute("PRAGMA page_count").fetchone()[0]
            )
            await set_max_pages(broker, limit)
            first.send(
                PublishPacket("t/1", b"x" * 50_000, qos=QoS.AT_LEAST_ONCE, packet_id=7),
                PingReqPacket(),
            )
            await until(lambda: not broker.core.router.accepting)
            await first.next(PingRespPacket)
            assert await second.publish("t/1", b"refused") == 0x97
            await set_max_pages(broker, 1 << 20)
            assert (await first.next(PubAckPacket)).packet_id == 7
            assert await second.publish("t/1", b"after") == 0
        broker.abort()
    async with durable(tmp_path) as broker, raw(broker) as reader:
        await reader.connect("away", session_expiry_interval=NEVER)
        assert await payloads(reader, 3) == [b"before", b"x" * 50_000, b"after"]


async def test_answers_to_clients_that_are_gone_do_not_pile_up_while_the_disk_is_full(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(committer, "RETRY_S", 0.02)
    async with durable(tmp_path) as broker:
        limit = await store_of(broker).read(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
        await set_max_pages(broker, limit)
        async with raw(broker) as filler:
            await filler.connect("filler")
            filler.send(PublishPacket("t", bytes(50_000), retain=True))
            await until(lambda: not broker.core.router.accepting)
        await until(lambda: not broker.core.connections)
        for _ in range(20):
            async with raw(broker) as client:
                # Its CONNACK waits for the disk, and it gives up.
                client.send(ConnectPacket("c", session_expiry_interval=NEVER))
                await until(lambda: broker.core.connections)
            await until(lambda: not broker.core.connections)
        assert not broker.core.router.accepting
        await until(lambda: not broker._gate._held)
        await set_max_pages(broker, 1 << 20)
        async with raw(broker) as client:
            assert (await client.connect("c", session_expiry_interval=NEVER)).session_present


async def test_who_cannot_have_its_answers_is_read_no_further_than_they_are_allowed_to_wait(
    tmp_path,
):
    async with durable(tmp_path, write_buffer_bytes=1_000) as broker, raw(broker) as client:
        await client.connect("c")
        (link,) = broker._links
        async with standing_disk(broker):
            client.send(PublishPacket("t", b"m", retain=True))
            for _ in range(20):
                # Each is answered, with an id that nobody knows.
                client.send(*[PubRelPacket(7)] * 200)
                await client.writer.drain()
            await until(lambda: link.held & ANSWERS)
            assert link.connection.held_bytes > 2_000
        for _ in range(20 * 200):
            await client.next(PubCompPacket)
        assert not link.held


async def set_max_pages(broker, pages):
    await store_of(broker).read(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchall())


# --- what is refused, in one line


async def test_a_second_broker_on_the_directory_is_refused(tmp_path):
    async with durable(tmp_path):
        with pytest.raises(DurabilityError, match=r"another broker keeps its state in"):
            async with durable(tmp_path):
                pass


async def test_the_directory_is_free_again_when_the_port_is_taken(tmp_path):
    async with Broker.open(BrokerConfig(port=0)) as other:
        with pytest.raises(ListenError):
            async with Broker.open(BrokerConfig(port=other.port, durable_dir=tmp_path)):
                pass
    async with durable(tmp_path):
        pass


async def test_a_file_of_a_newer_version_is_refused(tmp_path):
    async with durable(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "broker.db") as connection:
        connection.execute("UPDATE shoal_schema SET version = 999")
    connection.close()
    with pytest.raises(DurabilityError, match=r"broker\.db.*version 999, newer than"):
        async with durable(tmp_path):
            pass


async def test_a_damaged_file_is_refused(tmp_path):
    async with durable(tmp_path) as broker:
        await absent_reader(broker)
    path = tmp_path / "broker.db"
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(DurabilityError, match=r"broker\.db: it is damaged"):
        async with durable(tmp_path):
            pass


async def test_rows_that_contradict_each_other_are_refused(tmp_path):
    async with durable(tmp_path) as broker:
        await absent_reader(broker)
        async with raw(broker) as publisher:
            await publisher.connect("p")
            await publisher.publish("t/1")
    with sqlite3.connect(tmp_path / "broker.db") as connection:
        connection.execute("DELETE FROM message")
    connection.close()
    with pytest.raises(DurabilityError, match=r"broker\.db: its rows contradict each other"):
        async with durable(tmp_path):
            pass


async def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DurabilityError, match="cannot be used"):
        async with durable(tmp_path / "file" / "below"):
            pass
