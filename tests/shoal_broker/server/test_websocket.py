"""MQTT over WebSocket: paho and a client by the book, then requests and frames that are none for us."""

from __future__ import annotations

import asyncio
import os
import random
import struct
import threading
from contextlib import asynccontextmanager

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from tests.shoal_broker.render.rendered_mosquitto import Authority
from tests.support.embedded import tls_of
from tests.support.tls_listener import client_files
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    PacketReader,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubscribePacket,
    TopicFilter,
    encode,
)
from shoal_broker.errors import ConfigError, ListenError
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.access_rules import AccessRules, Policy
from shoal_broker.tls import client_context

TEXT, BINARY, PING = 0x1, 0x2, 0x9
FINAL = 0x80


@asynccontextmanager
async def broker_with(**settings):
    async with Broker.open(BrokerConfig(port=0, websocket_port=0, **settings)) as broker:
        yield broker


@pytest.fixture
async def broker():
    async with broker_with() as running:
        yield running


def client(broker, **options):
    options = {"subprotocols": ["mqtt"], "compression": None, **options}
    return connect(f"ws://127.0.0.1:{broker.websocket_port}/mqtt", **options)


class Packets:
    """The packets that arrive on a WebSocket."""

    def __init__(self, websocket):
        self.websocket = websocket
        self.reader = PacketReader(1 << 24)

    async def next(self, kind):
        while (packet := self.reader.next_packet()) is None:
            async with asyncio.timeout(5):
                message = await self.websocket.recv()
            assert isinstance(message, bytes)
            self.reader.feed(message)
        assert isinstance(packet, kind), packet
        return packet


def request(path="/mqtt", *, host="127.0.0.1", **headers):
    fields = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "mqtt",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"GET {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items() if v is not None)]
    return "\r\n".join([*lines, "", ""]).encode()


def frame(opcode, data, *, first=None, mask=b"\1\2\3\4"):
    """A client's frame by the book (RFC 6455, 5.2), or with another first byte."""
    head = bytes([FINAL | opcode if first is None else first])
    masked = FINAL if mask else 0
    if len(data) < 126:
        head += bytes([masked | len(data)])
    else:
        head += bytes([masked | 127]) + struct.pack("!Q", len(data))
    if not mask:
        return head + data
    return head + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))


@asynccontextmanager
async def raw(broker):
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.websocket_port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def until_closed(websocket):
    while True:
        await websocket.recv()


async def talk(broker, *pieces):
    """Send these; all that comes back until the broker closes."""
    async with raw(broker) as (reader, writer), asyncio.timeout(5):
        for piece in pieces:
            writer.write(piece)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


def close_code(answer):
    """The code in the close frame behind an accepted handshake."""
    _, _, frames = answer.partition(b"\r\n\r\n")
    assert frames[0] == FINAL | 0x8, frames
    return struct.unpack("!H", frames[2:4])[0]


async def test_a_packet_may_span_frames_and_several_may_share_one(broker):
    connecting = encode(ConnectPacket("c"))
    wanted = TopicFilter("t", max_qos=QoS.AT_LEAST_ONCE)
    publishing = encode(PublishPacket("t", b"x" * 300, qos=QoS.AT_LEAST_ONCE, packet_id=7))
    async with client(broker) as websocket:
        assert websocket.subprotocol == "mqtt"
        packets = Packets(websocket)
        for n in range(len(connecting)):
            await websocket.send(connecting[n : n + 1])
        await packets.next(ConnAckPacket)
        both = encode(SubscribePacket(1, [wanted])) + publishing[:40]
        await websocket.send(both)
        await packets.next(SubAckPacket)
        # A fragmented message: one text of RFC 6455, several pieces of a packet.
        await websocket.send([publishing[40:50], publishing[50:]])
        kinds = {type(await packets.next((PubAckPacket, PublishPacket))) for _ in range(2)}
        assert kinds == {PubAckPacket, PublishPacket}
        await (await websocket.ping())
        await websocket.send(encode(PingReqPacket()))
        await packets.next(PingRespPacket)


async def test_a_goodbye_of_the_broker_is_one_of_the_websocket_too(broker):
    async with client(broker) as websocket:
        packets = Packets(websocket)
        await websocket.send(encode(ConnectPacket("c")) + encode(ConnectPacket("c")))
        await packets.next(ConnAckPacket)
        with pytest.raises(ConnectionClosed) as caught:
            await until_closed(websocket)
        assert caught.value.rcvd.code == 1000
    assert broker.core.router.sessions == {}


async def test_compression_is_not_negotiated(broker):
    async with client(broker, compression="deflate") as websocket:
        assert "Sec-WebSocket-Extensions" not in websocket.response.headers


@pytest.mark.parametrize(
    "version", [paho.MQTTProtocolVersion.MQTTv5, paho.MQTTProtocolVersion.MQTTv311]
)
async def test_paho_publishes_and_subscribes_over_websocket(broker, version):
    def work():
        mqtt = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="p", protocol=version, transport="websockets"
        )
        got, done = [], threading.Event()
        mqtt.on_connect = lambda c, *_: c.subscribe("t/#", qos=1)
        mqtt.on_subscribe = lambda c, *_: [
            c.publish(f"t/{n}", bytes([n]) * 5_000, qos=1) for n in range(100)
        ]

        def on_message(_client, _user, message):
            got.append((message.topic, message.payload))
            if len(got) == 100:
                done.set()

        mqtt.on_message = on_message
        mqtt.connect("127.0.0.1", broker.websocket_port)
        mqtt.loop_start()
        assert done.wait(10)
        mqtt.disconnect()
        mqtt.loop_stop()
        return got

    got = await asyncio.to_thread(work)
    assert got == [(f"t/{n}", bytes([n]) * 5_000) for n in range(100)]


async def test_websocket_over_tls_takes_the_certificate_for_the_user(tmp_path):
    authority = Authority(tmp_path)
    context = client_context(client_files(authority, "alice"))
    async with broker_with(tls=tls_of(authority), access=AccessRules(policy=Policy.OPEN)) as broker:
        address = f"wss://localhost:{broker.websocket_port}/mqtt"
        async with connect(address, subprotocols=["mqtt"], ssl=context) as websocket:
            await websocket.send(encode(ConnectPacket("c")))
            await Packets(websocket).next(ConnAckPacket)
            assert broker.core.router.sessions["c"].identity == "alice"
        assert (await talk(broker, request())) == b""
        assert broker.counters.tls_failed == 1


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (request("/"), b"404"),
        (request("/mqttx"), b"404"),
        (request(Sec_WebSocket_Protocol=None), b"400"),
        (request(Sec_WebSocket_Protocol="mqttv3.1"), b"400"),
        (request(Sec_WebSocket_Version="8"), b"400"),
        (request(Sec_WebSocket_Key="short"), b"400"),
        (request(Upgrade="h2c"), b"426"),
        (request(Connection="keep-alive"), b"426"),
        (request().replace(b"GET", b"POST"), b"405"),
        (request(Cookie="x" * 9_000), b"431"),
        (request("/mqtt" + "x" * 9_000), b"414"),
        (request(Origin="https://evil.example"), b"403"),
    ],
)
async def test_a_request_that_is_none_for_mqtt_is_refused_in_http(broker, asked, status):
    answer = await talk(broker, asked)
    assert answer.split(b" ", 2)[:2] == [b"HTTP/1.1", status]
    assert broker.counters.refused == 1


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, encode(ConnectPacket("c"))), 1003),
        (frame(BINARY, b"\x10\x00", mask=b""), 1002),
        (frame(BINARY, b"x", first=FINAL | 0x40 | BINARY), 1002),
        (frame(0x3, b"x"), 1002),
        (frame(0x0, b"x"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(0x8, b"\x00"), 1002),
        (frame(BINARY, b"") + bytes([FINAL | BINARY, FINAL | 127]) + b"\x7f" * 8, 1009),
    ],
)
async def test_frames_that_are_wrong_are_answered_with_their_close_code(broker, sent, code):
    async with raw(broker) as (reader, writer), asyncio.timeout(5):
        writer.write(request())
        opened = await reader.readuntil(b"\r\n\r\n")
        assert opened.startswith(b"HTTP/1.1 101 ")
        writer.write(sent)
        assert close_code(b"\r\n\r\n" + await reader.read()) == code
    assert broker.counters.refused == 1


async def test_a_frame_may_be_as_large_as_the_largest_packet_and_not_much_larger():
    async with broker_with(max_packet_bytes=100_000) as broker, client(broker) as websocket:
        packets = Packets(websocket)
        await websocket.send(encode(ConnectPacket("c")))
        await packets.next(ConnAckPacket)
        largest = PublishPacket("t", b"x" * 99_000, qos=QoS.AT_LEAST_ONCE, packet_id=1)
        await websocket.send(encode(largest))
        await packets.next(PubAckPacket)
        # The header says it all: that of 200,000 bytes.
        websocket.transport.write(bytes([FINAL | BINARY, FINAL | 127]) + struct.pack("!Q", 200_000))
        with pytest.raises(ConnectionClosed) as caught:
            await until_closed(websocket)
        assert caught.value.rcvd.code == 1009


async def test_a_stranger_is_given_no_more_than_a_connect_needs(broker):
    # One frame that the limit allows, of which 400 KB never make a packet.
    announced = bytes([FINAL | BINARY, FINAL | 127]) + struct.pack("!Q", 1 << 20)
    await talk(broker, request(), announced, b"\0" * 400_000)
    assert broker.core.connections == set()
    assert broker.counters.refused == 1


async def test_frames_before_the_handshake_is_over_end_the_connection(broker):
    assert await talk(broker, request() + frame(PING, b"x")) == b""
    assert await talk(broker, request("/no") + frame(0x8, b"\x03\xe8")) == b""
    assert broker.counters.refused == 2


@pytest.mark.slow
async def test_who_is_slow_to_shake_hands_is_cut(broker):
    async with broker_with(connect_timeout_s=0.05) as broker:  # noqa: PLR1704 - another one
        assert await talk(broker, b"GET /mqtt HTTP/1.1\r\nHost: ") == b""
        answer = await talk(broker, request())
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert broker.counters.refused == 2


@pytest.mark.parametrize(
    ("configured", "origin", "host", "accepted"),
    [
        ((), None, "127.0.0.1", True),
        ((), "http://127.0.0.1:80", "127.0.0.1:80", True),
        ((), "http://localhost:80", "localhost:80", True),
        # Any page may have its name lead to this machine (DNS rebinding).
        ((), "http://evil.example:80", "evil.example:80", False),
        ((), "http://127.0.0.1:80", "127.0.0.1:81", False),
        ((), "null", "127.0.0.1", False),
        ((), "http://[", "127.0.0.1", False),
        (("https://panel.example",), "https://panel.example", "127.0.0.1", True),
        (("https://panel.example",), "http://panel.example", "127.0.0.1", False),
        (("*",), "https://evil.example", "127.0.0.1", True),
    ],
)
async def test_a_page_of_another_origin_may_not_connect(configured, origin, host, accepted):
    async with broker_with(websocket_origins=configured) as broker, raw(broker) as (reader, writer):
        writer.write(request(host=host, Origin=origin))
        async with asyncio.timeout(5):
            answer = await reader.readline()
        assert answer.split(b" ")[1] == (b"101" if accepted else b"403")


async def test_two_origins_are_none(broker):
    twice = request(Origin="http://127.0.0.1").replace(
        b"\r\n\r\n", b"\r\nOrigin: http://127.0.0.1\r\n\r\n"
    )
    assert (await talk(broker, twice)).startswith(b"HTTP/1.1 403 ")


async def test_hostile_bytes_end_a_connection_and_nothing_else(broker, caplog):
    chance = random.Random(5)  # noqa: S311 - the same bytes every time
    good = request() + frame(BINARY, encode(ConnectPacket("c"))) + frame(BINARY, b"\xc0\x00")
    for _ in range(150):
        mutated = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            mutated[chance.randrange(len(mutated))] = chance.randrange(256)
        async with raw(broker) as (reader, writer):
            writer.write(bytes(mutated))
            writer.write_eof()
            async with asyncio.timeout(5):
                try:
                    await reader.read()
                except ConnectionResetError:
                    continue
    for _ in range(20):
        await talk(broker, os.urandom(4_096), b"\r\n\r\n")
    async with asyncio.timeout(5):
        while broker.core.connections:  # noqa: ASYNC110 - the other ends are closed
            await asyncio.sleep(0)
    assert not [record for record in caplog.records if record.exc_info]
    async with client(broker) as websocket:
        await websocket.send(encode(ConnectPacket("after")))
        await Packets(websocket).next(ConnAckPacket)


async def test_one_who_pings_without_reading_is_no_longer_read():
    async with broker_with(write_buffer_bytes=4_096) as broker, raw(broker) as (reader, writer):
        writer.write(request())
        async with asyncio.timeout(10):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(frame(BINARY, encode(ConnectPacket("c"))))
            assert await reader.read(1)
            pings = frame(PING, b"x" * 125) * 1_000
            (connection,) = broker.core.connections
            while not connection.owner.held:
                writer.write(pings)
                await asyncio.sleep(0)
            assert broker.core.connections == {connection}
            assert connection.owner.transport.get_write_buffer_size() < 1 << 20
            while connection.owner.held:
                await reader.read(1 << 16)


async def test_a_port_that_is_taken_is_one_clear_error(broker):
    with pytest.raises(ListenError, match="in use"):
        async with Broker.open(BrokerConfig(port=0, websocket_port=broker.websocket_port)):
            pass


def test_a_port_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="port is 70000"):
        BrokerConfig(websocket_port=70_000)
