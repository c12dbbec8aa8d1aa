"""Limits on real sockets: who sends or comes too fast, and who guesses passwords."""

from __future__ import annotations

import asyncio
import time

import pytest
import structlog.testing
from tests.shoal_broker.server.test_shell import Clock, Raw, raw, until

from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
)
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.link import RATE
from shoal_broker.server.passwords import set_password


def messages(count, size_bytes=10):
    return [
        PublishPacket("t", bytes(size_bytes), qos=QoS.AT_LEAST_ONCE, packet_id=n)
        for n in range(1, count + 1)
    ]


@pytest.mark.parametrize("limit", [{"max_messages_per_s": 100}, {"max_bytes_per_s": 2_000}])
async def test_a_client_that_sends_too_much_is_read_later_and_loses_nothing(limit):
    async with Broker.open(BrokerConfig(port=0, **limit)) as broker, raw(broker) as fast:
        await fast.connect("fast")
        begun_s = time.monotonic()
        # 18 bytes each.
        for n in range(1, 201):
            await fast.publish("t", bytes(10), n)
        taken_s = time.monotonic() - begun_s
        # A second's worth goes at once, the rest as it comes.
        assert taken_s > 0.5
        assert broker.counters.slowed_down > 0
        assert broker.counters.messages_in == 200


async def test_others_do_not_wait_for_a_client_that_is_slowed_down():
    config = BrokerConfig(port=0, max_messages_per_s=1)
    async with Broker.open(config) as broker, raw(broker) as fast, raw(broker) as other:
        await fast.connect("fast")
        fast.send(*messages(50))
        await until(lambda: broker.counters.slowed_down == 1)
        (link,) = [one for one in broker._links if one.held & RATE]
        await other.connect("other")
        assert await other.publish("t") == 0x10
        # What came in one read was taken.
        for n in range(1, 51):
            assert (await fast.next(PubAckPacket)).packet_id == n
        assert link.held == RATE


async def test_the_keep_alive_of_a_client_that_is_not_read_does_not_run():
    clock = Clock()
    config = BrokerConfig(port=0, max_messages_per_s=1)
    async with Broker.open(config, clock=clock) as broker, raw(broker) as fast:
        await fast.connect("fast", keep_alive=10)
        fast.send(*messages(100))
        await until(lambda: broker.counters.slowed_down)
        clock.now_s += 90
        broker.sweep()
        (connection,) = broker.core.connections
        assert connection.session.connected
        clock.now_s += 30
        broker.sweep()
        while not isinstance(packet := await fast.next(), DisconnectPacket):
            pass
        assert int(packet.reason_code) == 0x8D


async def test_a_client_that_is_slowed_down_and_leaves_is_gone_at_once():
    async with Broker.open(BrokerConfig(port=0, max_messages_per_s=1)) as broker:
        async with raw(broker) as fast:
            await fast.connect("fast")
            fast.send(*messages(1_000))
            await until(lambda: broker.counters.slowed_down)
            (connection,) = broker.core.connections
        broker.core.router.sessions["fast"].connection.owner.transport.abort()
        await until(lambda: not broker._links)
        assert connection.owner._pause.cancelled()


async def test_an_address_with_too_many_connections_is_told_so():
    config = BrokerConfig(port=0, max_connections_per_address=1)
    async with Broker.open(config) as broker:
        async with raw(broker) as first, raw(broker) as second:
            await first.connect("a")
            assert int((await second.connect("b")).reason_code) == 0x97
            assert await second.next() is None
        await until(lambda: not broker._links)
        async with raw(broker) as third:
            assert int((await third.connect("c")).reason_code) == 0


async def test_an_address_that_comes_too_fast_is_told_so_or_cut():
    clock = Clock()
    config = BrokerConfig(port=0, max_connects_per_s=2)
    with structlog.testing.capture_logs() as logs:
        async with Broker.open(config, clock=clock) as broker:
            for expected in (0, 0, 0x9F, 0x9F):
                async with raw(broker) as client:
                    assert int((await client.connect("c")).reason_code) == expected
            cut = Raw(*await asyncio.open_connection("127.0.0.1", broker.port))
            with pytest.raises((ConnectionResetError, AssertionError)):
                assert await cut.next() is not None
            await cut.close()
            await until(lambda: broker.counters.refused == 3)
            clock.now_s += 5
            async with raw(broker) as client:
                assert int((await client.connect("c")).reason_code) == 0
    reasons = {entry["reason"] for entry in logs if entry["event"] == "client refused"}
    assert reasons == {"2 connections a second may come from one address"}


@pytest.fixture
def users(tmp_path):
    path = tmp_path / "users"
    set_password(path, "u", "right")
    return path


async def attempt(broker, password):
    async with raw(broker) as client:
        client.send(ConnectPacket("c", username="u", password=password))
        return int((await client.next(ConnAckPacket)).reason_code)


async def test_an_address_may_have_every_connection_that_there_may_be():
    config = BrokerConfig(port=0, max_connections=20_000)
    async with Broker.open(config) as broker:
        assert broker._addresses._max_connections == 20_000


async def test_guessing_takes_longer_and_longer_but_who_was_right_before_does_not_wait(
    users, monkeypatch
):
    monkeypatch.setattr("shoal_broker.server.rates.FIRST_WAIT_S", 0.2)
    async with Broker.open(BrokerConfig(port=0, password_file=users)) as broker:
        assert await attempt(broker, b"right") == 0
        begun_s = time.monotonic()
        for _ in range(5):
            assert await attempt(broker, b"wrong") == 0x86
        # Three for nothing, then 0.2 s each and twice that.
        assert time.monotonic() - begun_s > 0.35
        guesses = broker._passwords.guesses
        for _ in range(5):
            guesses.failed("127.0.0.1", time.monotonic())
        guesses.wait_s("127.0.0.1", time.monotonic())
        waits = guesses.wait_s("127.0.0.1", time.monotonic())
        assert waits is None or waits > 5
        assert await attempt(broker, b"right") == 0


async def test_many_guesses_at_once_are_turned_away(users, monkeypatch):
    monkeypatch.setattr("shoal_broker.server.rates.FIRST_WAIT_S", 60.0)
    async with Broker.open(BrokerConfig(port=0, password_file=users)) as broker:
        for _ in range(3):
            assert await attempt(broker, b"wrong") == 0x86
        assert await attempt(broker, b"wrong") == 0x9F


async def test_a_broker_that_closes_does_not_wait_for_a_guess_that_does(users, monkeypatch):
    monkeypatch.setattr("shoal_broker.server.rates.FIRST_WAIT_S", 6.0)
    async with asyncio.timeout(5):
        async with Broker.open(BrokerConfig(port=0, password_file=users)) as broker:
            for _ in range(3):
                broker._passwords.guesses.failed("127.0.0.1", broker._clock())
            client = Raw(*await asyncio.open_connection("127.0.0.1", broker.port))
            client.send(ConnectPacket("c", username="u", password=b"right"))
            await until(lambda: broker._passwords.under_way)
        assert await client.next() is None
    await client.close()


async def test_what_comes_behind_a_connect_waits_for_its_password(users):
    async with Broker.open(BrokerConfig(port=0, password_file=users)) as broker, raw(broker) as c:
        c.send(ConnectPacket("c", username="u", password=b"right"), PingReqPacket())
        assert int((await c.next(ConnAckPacket)).reason_code) == 0
        await c.next(PingRespPacket)
        (link,) = broker._links
        assert link.held == 0
