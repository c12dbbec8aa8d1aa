"""The broker on real sockets: slow readers, time, kills and goodbyes."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from contextlib import asynccontextmanager

import pytest

from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    PacketReader,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubscribePacket,
    TopicFilter,
    Will,
    encode,
)
from shoal_broker.errors import ConfigError, ListenError, PasswordFileError
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.counters import Dropped
from shoal_broker.server.passwords import set_password


class Raw:
    """A client that does only what it is told to."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.packets = PacketReader(1 << 28)

    def send(self, *packets):
        self.writer.write(b"".join(map(encode, packets)))

    async def next(self, kind=None):
        """The next packet, None when the broker closed."""
        while (packet := self.packets.next_packet()) is None:
            async with asyncio.timeout(5):
                received = await self.reader.read(65_536)
            if not received:
                return None
            self.packets.feed(received)
        assert kind is None or isinstance(packet, kind), packet
        return packet

    async def connect(self, client_id="c", **options):
        self.send(ConnectPacket(client_id, **options))
        return await self.next(ConnAckPacket)

    async def subscribe(self, pattern):
        self.send(SubscribePacket(1, [TopicFilter(pattern, max_qos=QoS.AT_LEAST_ONCE)]))
        await self.next(SubAckPacket)

    async def publish(self, topic, payload=b"m", packet_id=1):
        self.send(PublishPacket(topic, payload, qos=QoS.AT_LEAST_ONCE, packet_id=packet_id))
        return int((await self.next(PubAckPacket)).reason_code)

    async def close(self):
        self.writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def raw(broker, receive_buffer_bytes=None):
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", broker.port))
    client = Raw(*await asyncio.open_connection(sock=sock, limit=65_536))
    try:
        yield client
    finally:
        await client.close()


async def until(condition):
    """Let the loop run until `condition` holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the broker has no event for every state
            await asyncio.sleep(0.005)


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


async def test_every_accepted_connection_has_nodelay_and_keepalive():
    async with Broker.open(BrokerConfig(port=0)) as broker, raw(broker) as client:
        await client.connect()
        (link,) = broker._links
        sock = link.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


async def test_both_addresses_of_localhost_have_the_same_port():
    async with Broker.open(BrokerConfig(host="localhost", port=0)) as broker:
        ports = {one.getsockname()[1] for one in broker._servers[0].sockets}
        assert ports == {broker.port}


async def test_leaving_the_block_says_goodbye_to_clients():
    async with Broker.open(BrokerConfig(port=0)) as broker:
        sock = await asyncio.open_connection("127.0.0.1", broker.port)
        client = Raw(*sock)
        await client.connect()
    goodbye = await client.next(DisconnectPacket)
    assert int(goodbye.reason_code) == 0x8B
    assert await client.next() is None
    await client.close()


async def test_an_abort_says_nothing_and_the_port_is_free_again():
    async with Broker.open(BrokerConfig(port=0)) as broker:
        client = Raw(*await asyncio.open_connection("127.0.0.1", broker.port))
        await client.connect()
        broker.abort()
        with pytest.raises((ConnectionResetError, AssertionError)):
            assert await client.next() is not None
    await client.close()
    async with Broker.open(BrokerConfig(port=broker.port)) as again, raw(again) as other:
        assert int((await other.connect()).reason_code) == 0


async def test_an_error_in_the_block_comes_out_as_it_is():
    with pytest.raises(ZeroDivisionError):
        async with Broker.open(BrokerConfig(port=0)):
            raise ZeroDivisionError


async def test_a_port_in_use_is_one_clear_error():
    async with Broker.open(BrokerConfig(port=0)) as broker:
        with pytest.raises(ListenError, match="in use"):
            async with Broker.open(BrokerConfig(port=broker.port)):
                pass


async def test_an_address_that_is_not_ours_is_one_clear_error():
    with pytest.raises(ListenError, match="no such address"):
        async with Broker.open(BrokerConfig(host="192.0.2.1", port=0, no_auth=True)):
            pass
    with pytest.raises(ListenError):
        async with Broker.open(BrokerConfig(host="no host", port=0, no_auth=True)):
            pass


async def test_an_address_that_is_none_at_all_is_an_error_and_no_traceback():
    with pytest.raises(ListenError, match="null"):
        async with Broker.open(BrokerConfig(host="a\0b", port=0, no_auth=True)):
            pass


def test_an_open_door_must_be_asked_for():
    with pytest.raises(ConfigError, match="--no-auth"):
        BrokerConfig(host="0.0.0.0")
    with pytest.raises(ConfigError):
        BrokerConfig(host="gateway.local")
    BrokerConfig(host="0.0.0.0", no_auth=True)
    BrokerConfig(host="::1")
    BrokerConfig(host="127.0.0.2")


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70_000},
        {"metrics_port": -1},
        {"max_packet_bytes": 10},
        {"max_in_flight": 0},
        {"max_connections": 0},
        {"max_topic_aliases": -1},
    ],
)
def test_a_setting_out_of_its_range_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BrokerConfig(**wrong)


async def test_keep_alive_and_connect_timeout_run_by_the_clock():
    clock = Clock()
    async with (
        Broker.open(BrokerConfig(port=0), clock=clock) as broker,
        raw(broker) as silent,
        raw(broker) as client,
    ):
        await client.connect(keep_alive=10, will=Will("w"))
        await until(lambda: len(broker.core.connections) == 2)
        clock.now_s += 11
        broker.sweep()
        assert await silent.next() is None
        clock.now_s += 5
        broker.sweep()
        assert int((await client.next(DisconnectPacket)).reason_code) == 0x8D
        assert await client.next() is None


async def test_connections_far_beyond_the_limit_are_cut_at_once(monkeypatch):
    monkeypatch.setattr("shoal_broker.server.shell.SURPLUS_CONNECTIONS", 1)
    async with (
        Broker.open(BrokerConfig(port=0, max_connections=1)) as broker,
        raw(broker) as first,
        raw(broker) as surplus,
    ):
        await first.connect("a")
        await until(lambda: len(broker.core.connections) == 2)
        third = Raw(*await asyncio.open_connection("127.0.0.1", broker.port))
        with pytest.raises((ConnectionResetError, AssertionError)):
            assert await third.next() is not None
        await third.close()
        assert int((await surplus.connect("b")).reason_code) == 0x89
        assert await surplus.next() is None


async def test_a_slow_consumer_costs_a_bounded_amount_of_memory_and_nobody_else_waits():
    limit = 64 << 10
    config = BrokerConfig(
        port=0, write_buffer_bytes=limit, max_queued_bytes=1 << 20, max_queued_messages=100_000
    )
    async with (
        Broker.open(config) as broker,
        raw(broker, receive_buffer_bytes=4096) as slow,
        raw(broker) as sender,
    ):
        await slow.connect("slow", session_expiry_interval=60)
        await slow.subscribe("t")
        await sender.connect("sender")
        slow.writer.transport.pause_reading()
        codes = [await sender.publish("t", bytes(50_000), n) for n in range(1, 301)]
        session = broker.core.router.sessions["slow"]
        (link,) = [one for one in broker._links if one.connection is session.connection]
        assert session.held_bytes <= 1 << 20
        assert link.transport.get_write_buffer_size() <= 3 * limit
        assert codes[0] == 0
        assert codes[-1] == 0x97
        assert broker.counters.dropped[Dropped.QUEUE_FULL] == codes.count(0x97)
        slow.writer.transport.resume_reading()
        got = 0
        while got < codes.count(0):
            message = await slow.next(PublishPacket)
            slow.send(PubAckPacket(message.packet_id))
            got += 1
        await until(lambda: session.held_bytes == 0)


async def test_a_publisher_that_takes_no_answers_is_no_longer_read():
    config = BrokerConfig(port=0, write_buffer_bytes=4096)
    async with Broker.open(config) as broker, raw(broker, receive_buffer_bytes=4096) as deaf:
        await deaf.connect()
        deaf.writer.transport.pause_reading()
        (link,) = broker._links
        # The kernel would take megabytes of answers before the broker notices.
        tcp = link.transport.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        burst = encode(PingReqPacket()) * 10_000
        for _ in range(2_000):
            deaf.writer.write(burst)
            await asyncio.sleep(0)
            if link.held:
                break
        await until(lambda: link.held)
        held_bytes = link.transport.get_write_buffer_size()
        assert held_bytes < 2_000_000
        deaf.writer.transport.resume_reading()
        async with asyncio.timeout(5):
            while link.held:
                await deaf.reader.read(65_536)


async def test_answers_of_one_iteration_go_out_in_one_write():
    async with Broker.open(BrokerConfig(port=0)) as broker, raw(broker) as client:
        await client.connect()
        (link,) = broker._links
        writes = []
        real = link.transport.write
        link.transport.write = lambda data: (writes.append(data), real(data))
        client.send(*[PingReqPacket()] * 50)
        for _ in range(50):
            await client.next(PingRespPacket)
        assert len(writes) <= 3


async def test_passwords_are_checked_and_a_wrong_one_is_refused(tmp_path):
    users = tmp_path / "users"
    set_password(users, "u", "right")
    config = BrokerConfig(port=0, password_file=users)
    async with Broker.open(config) as broker, raw(broker) as good, raw(broker) as bad:
        bad.send(ConnectPacket("b", username="u", password=b"wrong"))
        good.send(ConnectPacket("a", username="u", password=b"right"), PingReqPacket())
        assert int((await good.next(ConnAckPacket)).reason_code) == 0
        await good.next(PingRespPacket)
        assert int((await bad.next(ConnAckPacket)).reason_code) == 0x86
        assert await bad.next() is None
        # The table of topics holds, and there the user is the client id.
        assert set(broker.core.router.sessions) == {"u"}


async def test_a_client_that_leaves_during_the_password_check_is_forgotten(tmp_path):
    users = tmp_path / "users"
    set_password(users, "u", "right")
    async with Broker.open(BrokerConfig(port=0, password_file=users)) as broker:
        async with raw(broker) as client:
            client.send(ConnectPacket("a", username="u", password=b"right"))
            await until(lambda: broker.core.connections)
        await until(lambda: not broker.core.connections)
        assert broker.core.router.sessions == {}


async def test_a_missing_password_file_is_one_clear_error(tmp_path):
    with pytest.raises(PasswordFileError):
        async with Broker.open(BrokerConfig(port=0, password_file=tmp_path / "none")):
            pass


async def test_metrics_show_what_is_there():
    async with Broker.open(BrokerConfig(port=0, metrics_port=0)) as broker, raw(broker) as client:
        await client.connect(session_expiry_interval=60)
        await client.subscribe("t")
        client.send(PublishPacket("t", b"x", retain=True))
        await client.next(PublishPacket)

        def scrape():
            url = f"http://127.0.0.1:{broker.metrics_port}/metrics"
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.read().decode()

        lines = (await asyncio.to_thread(scrape)).splitlines()
        assert "shoal_broker_connections_total 1.0" in lines
        assert 'shoal_broker_connected{listener="mqtt:0"} 1.0' in lines
        assert 'shoal_broker_messages_in_total{qos="0"} 1.0' in lines
        assert 'shoal_broker_messages_in_total{qos="1"} 0.0' in lines
        assert 'shoal_broker_messages_out_total{qos="0"} 1.0' in lines
        assert "shoal_broker_retained_messages 1.0" in lines
        assert 'shoal_broker_dropped_total{reason="queue_full"} 0.0' in lines


async def test_metrics_on_a_port_in_use_are_one_clear_error():
    async with Broker.open(BrokerConfig(port=0, metrics_port=0)) as broker:
        with pytest.raises(ListenError, match="metrics"):
            async with Broker.open(BrokerConfig(port=0, metrics_port=broker.metrics_port)):
                pass
