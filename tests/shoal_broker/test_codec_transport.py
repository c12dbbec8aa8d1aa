"""What is the codec transport's own; what every transport must do stands in test_session.py."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
import structlog.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_broker import codec_transport, outgoing
from shoal_broker.bus_errors import IdentityRefusedError, LinkError, RefusedByBrokerError
from shoal_broker.client_packets import MAX_PACKET_BYTES
from shoal_broker.codec import (
    AuthPacket,
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    PacketReader,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PubAckReasonCode,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    QoS,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
    TopicFilter,
    UnsubAckPacket,
    UnsubAckReasonCode,
    UnsubscribePacket,
    encode,
)
from shoal_broker.codec_transport import CodecLink, connect
from shoal_broker.errors import ProtocolError
from shoal_broker.link import Outbound, SessionConfig, Will

DEADLINE_S = 5
SUBSCRIPTION = SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE


def config(port: int = 1, **options) -> SessionConfig:
    known = {"host": "127.0.0.1", "port": port, "client_id": "node-1", "connect_timeout_s": 5.0}
    return SessionConfig(**known | options)


class Wire(asyncio.Transport):
    """The socket of a link on a desk: what was written, and nothing moves by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_reading = True
        self.end = ""

    def set_write_buffer_limits(self, high=None, low=None) -> None: ...

    def write(self, data) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def close(self) -> None:
        self.end = self.end or "closed"

    def abort(self) -> None:
        self.end = self.end or "aborted"

    def take(self) -> list:
        data, self.written = self.written, b""
        return packets_in(data)


def packets_in(data: bytes) -> list:
    reader = PacketReader()
    reader.feed(data)
    found = []
    while (packet := reader.next_packet()) is not None:
        found.append(packet)
    return found


async def on_desk(**granted) -> tuple[CodecLink, Wire]:
    """A link that was greeted."""
    link, wire = CodecLink(), Wire()
    link.connection_made(wire)
    give(link, encode(ConnAckPacket(**granted)))
    await link.greet(b"", config())
    await turn()
    wire.written = b""
    return link, wire


async def turn() -> None:
    """What the link scheduled for the end of this turn of the loop has happened."""
    for _ in range(3):
        await asyncio.sleep(0)


def give(link: CodecLink, data: bytes) -> None:
    """As asyncio does: the bytes into the link's buffer, as many at a time as fit."""
    while data:
        buffer = link.get_buffer(-1)
        taken = data[: len(buffer)]
        buffer[: len(taken)] = taken
        link.buffer_updated(len(taken))
        data = data[len(taken) :]


def hear(link: CodecLink, *packets) -> None:
    give(link, b"".join(encode(packet) for packet in packets))


def message(payload: bytes = b"", packet_id: int | None = None, **options) -> PublishPacket:
    qos = QoS.AT_MOST_ONCE if packet_id is None else QoS.AT_LEAST_ONCE
    return PublishPacket("t", payload, **{"qos": qos, "packet_id": packet_id} | options)


@asynccontextmanager
async def publishing(link: CodecLink, *messages: Outbound):
    """Publishes under way; those that wait are cancelled at the end."""
    tasks = [asyncio.create_task(link.publish(message)) for message in messages]
    await turn()
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Peer:
    """The broker's end of a TCP connection, word by word."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self._packets = PacketReader()

    async def next(self):
        async with asyncio.timeout(DEADLINE_S):
            while (packet := self._packets.next_packet()) is None:
                received = await self._reader.read(65_536)
                if not received:
                    return None
                self._packets.feed(received)
        return packet

    def say(self, *packets) -> None:
        self.writer.write(b"".join(encode(packet) for packet in packets))


@asynccontextmanager
async def listening(talk):
    """A broker that does what `talk(peer)` says, once; `port` is where."""

    async def accept(reader, writer) -> None:
        try:
            await talk(Peer(reader, writer))
            ended.set_result(None)
        except Exception as exc:  # noqa: BLE001 - it fails the test that waits for `ended`
            ended.set_exception(exc)
        finally:
            writer.close()

    ended = asyncio.get_running_loop().create_future()
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        async with asyncio.timeout(DEADLINE_S):
            await ended


# --- the greeting


async def test_connect_says_who_we_are_and_that_the_session_is_to_be_kept():
    async def talk(peer: Peer) -> None:
        hello = await peer.next()
        assert isinstance(hello, ConnectPacket)
        assert (hello.client_id, hello.username, hello.password) == ("node-1", "me", b"secret")
        assert not hello.clean_start
        assert (hello.session_expiry_interval, hello.keep_alive) == (7 * 86400, 75)
        assert (hello.receive_max, hello.max_packet_size) == (9, MAX_PACKET_BYTES)
        assert hello.topic_alias_max == 0
        assert (hello.will.topic, hello.will.payload, hello.will.retain) == ("p", b"gone", True)
        assert hello.will.qos == QoS.AT_LEAST_ONCE
        peer.say(ConnAckPacket())
        assert isinstance(await peer.next(), DisconnectPacket)

    async with listening(talk) as port:
        known = config(port, username="me", password="secret", receive_maximum=9)
        async with connect(known, Will("p", b"gone")) as link:
            await link.disconnect()


async def test_the_greeting_is_what_the_broker_granted():
    link, _ = await on_desk(
        session_present=True,
        receive_max=7,
        max_packet_size=500,
        retain_available=False,
        server_keep_alive=11,
    )
    greeting = link.greeting
    assert greeting.session_present
    assert (greeting.receive_maximum, greeting.maximum_packet_bytes) == (7, 500)
    assert (greeting.retain_available, greeting.keepalive_s) == (False, 11)


async def test_without_a_word_of_the_broker_the_limits_are_those_of_mqtt_and_ours():
    greeting = (await on_desk())[0].greeting
    assert (greeting.receive_maximum, greeting.maximum_packet_bytes) == (65_535, None)
    assert (greeting.retain_available, greeting.keepalive_s) == (True, 75)


@pytest.mark.parametrize("code", [0x85, 0x86, 0x87, 0x8A, 0x8C])
async def test_a_broker_that_does_not_want_us_refuses_an_identity(code):
    refusal = ConnAckPacket(reason_code=ConnAckReasonCode(code), reason_str="who?")
    with pytest.raises(IdentityRefusedError, match=f"refuses this identity.*0x{code:x}.*who") as e:
        await said_to_connect(encode(refusal))
    assert e.value.reason_code == code


@pytest.mark.parametrize("code", [0x80, 0x88, 0x89, 0x97, 0x9F])
async def test_a_broker_that_is_busy_refuses_no_identity(code):
    with pytest.raises(LinkError, match=f"refuses the connection: reason 0x{code:x}") as e:
        await said_to_connect(encode(ConnAckPacket(reason_code=ConnAckReasonCode(code))))
    assert not isinstance(e.value, IdentityRefusedError)


async def said_to_connect(answer: bytes) -> None:
    """Connect to a broker that answers our CONNECT with these bytes and closes."""

    async def talk(peer: Peer) -> None:
        await peer.next()
        peer.writer.write(answer)

    async with listening(talk) as port, connect(config(port), None):
        pass


async def test_a_broker_that_closes_in_the_middle_of_connack_is_a_lost_link():
    with pytest.raises(LinkError, match="the broker closed the connection"):
        await said_to_connect(encode(ConnAckPacket(server_keep_alive=5))[:5])


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n" + b"x: y\r\n" * 20,
        b"\x20\x02\x00\x01",  # MQTT 3.1.1: unacceptable protocol version
        encode(PingRespPacket()),
        encode(message(b"x")),
        b"\xff" * 100,
    ],
)
async def test_what_is_no_connack_is_a_lost_link_with_its_reason(answer):
    with pytest.raises(LinkError, match="the broker broke MQTT 5") as e:
        await said_to_connect(answer)
    assert isinstance(e.value.__cause__, ProtocolError)


async def test_a_broker_that_says_nothing_is_left():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        known = config(deaf.getsockname()[1], connect_timeout_s=0.05)
        with pytest.raises(LinkError, match=r"no CONNACK within 0.05 s"):
            async with connect(known, None):
                pass


async def test_nobody_there_is_a_lost_link():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(LinkError, match="cannot be reached"):
            async with connect(config(taken.getsockname()[1]), None):
                pass


async def test_an_identity_that_no_packet_can_carry_is_refused_before_connecting():
    with pytest.raises(LinkError, match="cannot connect"):
        async with connect(config(client_id="x" * 70_000), None):
            pass


# --- in


async def test_a_packet_may_come_in_any_pieces():
    link, _ = await on_desk()
    whole = message(
        b"\0x", 7, response_topic="r", correlation_data=b"\xff", message_expiry_interval=9
    )
    for byte in encode(whole):
        give(link, bytes([byte]))
    arrival = await link.receive()
    assert (arrival.packet_id, arrival.inbound.qos, arrival.inbound.payload) == (7, 1, b"\0x")
    assert (arrival.inbound.response_topic, arrival.inbound.correlation) == ("r", b"\xff")
    assert arrival.inbound.message_expiry_s == 9


async def test_many_packets_in_one_piece_arrive_in_order():
    link, _ = await on_desk()
    hear(link, *(message(b"%d" % n, n + 1, subscription_ids=[n + 1]) for n in range(100)))
    arrivals = [await link.receive() for _ in range(100)]
    assert [a.inbound.payload for a in arrivals] == [b"%d" % n for n in range(100)]
    assert [a.subscription_ids for a in arrivals] == [(n + 1,) for n in range(100)]


async def test_nothing_is_acknowledged_before_it_is_asked_for():
    link, wire = await on_desk()
    hear(link, message(b"a", 5), message(b"b", 6))
    first, second = await link.receive(), await link.receive()
    await turn()
    assert wire.take() == []
    assert link.acknowledge(second)
    assert link.acknowledge(first)
    await turn()
    assert [packet.packet_id for packet in wire.take()] == [6, 5]


async def test_a_message_at_qos_2_is_handed_over_once_and_its_handshake_ended():
    link, wire = await on_desk()
    hear(link, message(b"x", 5, qos=QoS.EXACTLY_ONCE))
    link.acknowledge(await link.receive())
    hear(link, PubRelPacket(5))
    await turn()
    assert [type(packet) for packet in wire.take()] == [PubRecPacket, PubCompPacket]


WRONG = {
    "invalid UTF-8 in a topic": (b"\x30\x05\x00\x02\xff\xfe\x00", 0x81),
    "no such packet": (b"\x00\x00", 0x81),
    "more than may be sent": (b"\x30\xff\xff\xff\x7f", 0x95),
    # 4 bytes of header and 1,048,573 that follow.
    "one byte more than we take": (b"\x30\xfd\xff\x3f", 0x95),
    "an endless length": (b"\x30\xff\xff\xff\xff\x01", 0x81),
    "packet id 0": (b"\x40\x02\x00\x00", 0x82),
    "a topic alias": (encode(message(b"x", topic_alias=1)), 0x94),
    "a wildcard in a topic": (b"\x30\x04\x00\x01#\x00", 0x90),
    "a second CONNACK": (encode(ConnAckPacket()), 0x82),
    "CONNECT": (encode(ConnectPacket("x")), 0x82),
    "SUBSCRIBE": (encode(SubscribePacket(1, [TopicFilter("a")])), 0x82),
    "UNSUBSCRIBE": (encode(UnsubscribePacket(1, ["a"])), 0x82),
    "PINGREQ": (encode(PingReqPacket()), 0x82),
    "AUTH": (encode(AuthPacket(authentication_method="m")), 0x82),
    "PUBREC for nothing": (encode(PubRecPacket(1)), 0x82),
    "SUBACK without a reason": (b"\x90\x03\x00\x01\x00", 0x82),
    "SUBACK with two": (encode(SubAckPacket(1, [SUBSCRIPTION, SUBSCRIPTION])), 0x82),
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_broker_that_breaks_the_protocol_is_told_why_and_left(what):
    data, reason_code = WRONG[what]
    link, wire = await on_desk()
    async with publishing(link, Outbound(topic="t", payload=b"")) as (task,):
        wire.written = b""
        hear(link, message(b"before", 1))
        give(link, data + encode(message(b"after", 2)))
        with pytest.raises(LinkError, match="the broker broke MQTT 5"):
            await task
    assert (await link.receive()).inbound.payload == b"before"
    with pytest.raises(LinkError) as e:
        await link.receive()
    assert isinstance(e.value.__cause__, ProtocolError)
    (goodbye,) = wire.take()
    assert int(goodbye.reason_code) == reason_code
    assert wire.end == "closed"


REAL = [
    message(b"payload", 3, response_topic="r/ü", correlation_data=b"\x80", subscription_ids=[300]),
    PubAckPacket(1, reason_code=PubAckReasonCode.QUOTA_EXCEEDED, reason_str="völl"),
    SubAckPacket(2, [SUBSCRIPTION], reason_str="ja"),
    UnsubAckPacket(2, [UnsubAckReasonCode.SUCCESS]),
    PubRelPacket(9),
    PingRespPacket(),
    DisconnectPacket(reason_code=DisconnectReasonCode.SERVER_BUSY, reason_str="tschüß"),
    ConnAckPacket(assigned_client_id="a", reason_str="wülkommen"),
]


@settings(max_examples=300)
@given(
    greeted=st.booleans(),
    which=st.sampled_from(REAL),
    edits=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
    tail=st.binary(max_size=20),
)
def test_whatever_a_broker_sends_ends_in_messages_or_a_link_error(greeted, which, edits, tail):
    async def scenario() -> None:
        link, wire = CodecLink(), Wire()
        link.connection_made(wire)
        if greeted:
            hear(link, ConnAckPacket())
        data = bytearray(encode(which))
        for at, value in edits:
            data[at % len(data)] = value
        give(link, bytes(data) + tail)
        if not wire.end:
            link.connection_lost(None)
        # At most one message a byte and a half; then the loss.
        with contextlib.suppress(LinkError):
            for _ in data + tail:
                await link.receive()
        with pytest.raises(LinkError):
            await link.receive()

    asyncio.run(scenario())


async def test_the_brokers_goodbye_is_what_everybody_hears():
    link, wire = await on_desk()
    async with publishing(link, Outbound(topic="t", payload=b"")) as (task,):
        taken_over = DisconnectReasonCode.SESSION_TAKEN_OVER
        hear(link, DisconnectPacket(reason_code=taken_over, reason_str="x" * 500), message(b"no"))
        with pytest.raises(LinkError, match=r"ended the connection: reason 0x8e, 'x{200}'$"):
            await task
    with pytest.raises(LinkError, match="0x8e"):
        await link.receive()
    with pytest.raises(LinkError, match="0x8e"):
        await link.subscribe("t", qos=1, subscription_id=1)
    assert wire.end == "closed"


async def test_a_flood_is_left_on_the_wire_and_its_silence_is_not_the_brokers(monkeypatch):
    monkeypatch.setattr(codec_transport, "READ_AHEAD_MESSAGES", 10)
    link, wire = await on_desk()
    hear(link, *(message(b"%d" % n) for n in range(30)))
    assert not wire.is_reading
    before_s = link.last_inbound_s
    assert link.last_inbound_s > before_s
    got = [(await link.receive()).inbound.payload for _ in range(30)]
    assert got == [b"%d" % n for n in range(30)]
    assert wire.is_reading
    assert link.last_inbound_s == link.last_inbound_s


# --- out


async def test_packets_of_one_turn_are_written_at_once_and_in_the_order_of_the_calls():
    link, wire = await on_desk()
    writes = []
    wire.write = writes.append
    messages = [Outbound(topic="t", payload=b"%d" % n, qos=n % 2) for n in range(6)]
    async with publishing(link, *messages):
        (data,) = writes
        assert [packet.payload for packet in packets_in(data)] == [b"%d" % n for n in range(6)]


async def test_no_more_than_the_receive_maximum_waits_for_an_acknowledgement():
    link, wire = await on_desk(receive_max=2)
    messages = [Outbound(topic="t", payload=b"%d" % n) for n in range(4)]
    async with publishing(link, *messages) as tasks:
        assert [packet.packet_id for packet in wire.take()] == [1, 2]
        hear(link, PubAckPacket(2))
        await turn()
        assert [(packet.packet_id, packet.payload) for packet in wire.take()] == [(3, b"2")]
        assert [task.done() for task in tasks] == [False, True, False, False]


async def test_an_id_whose_caller_has_left_is_not_used_again_before_it_is_answered():
    link, wire = await on_desk(receive_max=1)
    async with publishing(link, Outbound(topic="t", payload=b"left")) as (task,):
        task.cancel()
        await turn()
        wire.take()
        async with publishing(link, Outbound(topic="t", payload=b"next")) as (second,):
            assert wire.take() == []
            hear(link, PubAckPacket(1))
            await turn()
            assert [packet.payload for packet in wire.take()] == [b"next"]
            hear(link, PubAckPacket(2))
            await second


async def test_what_its_caller_gave_up_before_it_could_leave_never_leaves():
    link, wire = await on_desk(receive_max=1)
    messages = [Outbound(topic="t", payload=payload) for payload in (b"a", b"b", b"c")]
    async with publishing(link, *messages) as tasks:
        wire.take()
        tasks[1].cancel()
        await turn()
        hear(link, PubAckPacket(1))
        await turn()
        assert [packet.payload for packet in wire.take()] == [b"c"]


async def test_with_every_packet_id_in_use_the_next_waits_for_the_one_that_comes_free():
    out = outgoing.Outgoing(Wire())
    answers = [out.publish(lambda packet_id: b"%d" % packet_id) for _ in range(65_535)]
    asked = []
    waiting = out.request(lambda packet_id: asked.append(packet_id) or b"")
    assert (asked, waiting.done()) == ([], False)
    out.answer_publish(PubAckPacket(4711))
    out.advance()
    assert asked == [4711]
    assert answers[4710].done()
    assert sum(answer.done() for answer in answers) == 1
    out.fail(LinkError("enough"))
    assert all(answer.done() for answer in [*answers, waiting])


async def test_packet_ids_start_again_after_the_last_and_pass_over_those_in_use():
    out = outgoing.Outgoing(Wire())
    used = []
    first = out.publish(lambda packet_id: used.append(packet_id) or b"")
    for _ in range(65_535):
        out.publish(lambda packet_id: used.append(packet_id) or b"")
        out.answer_publish(PubAckPacket(used[-1]))
    assert used == [*range(1, 65_536), 2]
    assert not first.done()


async def test_an_acknowledgement_of_nothing_is_passed_over():
    link, wire = await on_desk()
    hear(link, PubAckPacket(9), SubAckPacket(9, [SUBSCRIPTION]), message(b"x"))
    assert (await link.receive()).inbound.payload == b"x"
    assert wire.end == ""


@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99])
async def test_a_refused_message_says_why(code):
    link, _ = await on_desk()
    async with publishing(link, Outbound(topic="t", payload=b"")) as (task,):
        hear(link, PubAckPacket(1, reason_code=PubAckReasonCode(code), reason_str="no"))
        with pytest.raises(RefusedByBrokerError, match=f"t: .* refused .*0x{code:x}, 'no'") as e:
            await task
    assert e.value.reason_code == code


async def test_a_message_that_nobody_reads_is_not_refused():
    link, _ = await on_desk()
    async with publishing(link, Outbound(topic="t", payload=b"")) as (task,):
        hear(link, PubAckPacket(1, reason_code=PubAckReasonCode.NO_MATCHING_SUBSCRIBERS))
        await task


@pytest.mark.parametrize("topic", ["", "a/+", "nul\0", "\ud800", "x" * 70_000])
async def test_what_no_packet_can_carry_is_refused_and_holds_nothing_up(topic):
    link, wire = await on_desk(receive_max=1)
    with pytest.raises(RefusedByBrokerError, match="cannot be sent"):
        await link.publish(Outbound(topic=topic, payload=b""))
    async with publishing(link, Outbound(topic="t", payload=b"")):
        assert [packet.topic for packet in wire.take()] == ["t"]


async def test_a_response_topic_that_no_packet_can_carry_is_refused():
    link, wire = await on_desk()
    for topic in ("r/#", "nul\0", "\ud800"):
        with pytest.raises(RefusedByBrokerError, match="cannot be sent"):
            await link.publish(Outbound(topic="t", payload=b"", response_topic=topic))
    assert wire.written == b""


async def test_a_packet_above_the_brokers_limit_is_not_sent():
    link, wire = await on_desk(max_packet_size=50)
    with pytest.raises(RefusedByBrokerError, match="the broker takes 50") as e:
        await link.publish(Outbound(topic="t", payload=b"x" * 50))
    assert e.value.reason_code == 0x95
    assert wire.written == b""


async def test_a_quality_that_is_not_available_is_refused_before_it_is_sent():
    link, wire = await on_desk(max_qos=QoS.AT_MOST_ONCE)
    with pytest.raises(RefusedByBrokerError, match="QoS 1 is not available"):
        await link.publish(Outbound(topic="t", payload=b""))
    await link.publish(Outbound(topic="t", payload=b"", qos=0))
    assert [packet.qos for packet in wire.take()] == [QoS.AT_MOST_ONCE]


async def test_qos_0_returns_when_the_socket_has_taken_it_and_the_order_is_kept():
    link, wire = await on_desk()
    link.pause_writing()
    hear(link, message(b"x", 9))
    link.acknowledge(await link.receive())
    link.ping()
    messages = [Outbound(topic="t", payload=b"%d" % n, qos=n) for n in (0, 1)]
    async with publishing(link, *messages) as tasks:
        assert wire.written == b""
        assert not any(task.done() for task in tasks)
        link.resume_writing()
        await turn()
        assert tasks[0].done()
        acknowledged, *published = wire.take()
        assert isinstance(acknowledged, PubAckPacket)
        assert [packet.payload for packet in published] == [b"0", b"1"]


async def test_nothing_overtakes_what_waits_for_the_window():
    link, wire = await on_desk(receive_max=1)
    messages = [Outbound(topic="t", payload=b"%d" % n, qos=qos) for n, qos in enumerate((1, 1, 0))]
    async with publishing(link, *messages):
        assert [packet.payload for packet in wire.take()] == [b"0"]
        hear(link, PubAckPacket(1))
        await turn()
        assert [packet.payload for packet in wire.take()] == [b"1", b"2"]


async def test_qos_0_does_not_return_while_the_socket_has_taken_only_a_part():
    link, wire = await on_desk()
    wire.write = lambda data: link.pause_writing()
    async with publishing(link, Outbound(topic="t", payload=b"x", qos=0)) as (task,):
        assert not task.done()
        link.resume_writing()
        await task


async def test_a_broker_that_reads_nothing_and_goes_on_sending_is_left():
    link, wire = await on_desk()
    link.pause_writing()
    hear(link, message(b"x", 9))
    arrival = await link.receive()
    for _ in range(65_535):
        link.acknowledge(arrival)
    assert wire.end == ""
    link.acknowledge(arrival)
    assert wire.end == "aborted"
    with pytest.raises(LinkError, match="reads nothing"):
        await link.receive()
    assert not link.acknowledge(arrival)


async def test_a_ping_is_a_ping_and_its_answer_is_a_sign_of_life():
    link, wire = await on_desk()
    before_s = link.last_outbound_s
    link.ping()
    await turn()
    assert [type(packet) for packet in wire.take()] == [PingReqPacket]
    assert link.last_outbound_s > before_s
    before_s = link.last_inbound_s
    hear(link, PingRespPacket())
    assert link.last_inbound_s > before_s


# --- subscriptions


async def asked(link: CodecLink, wire: Wire, asking, answer) -> list:
    """What was sent for `asking`, which gets this answer."""
    task = asyncio.create_task(asking)
    await turn()
    sent = wire.take()
    hear(link, answer)
    await task
    return sent


async def test_subscribing_and_unsubscribing_return_at_their_answers():
    link, wire = await on_desk()
    subscribing = link.subscribe("a/+", qos=1, subscription_id=77)
    (sent,) = await asked(link, wire, subscribing, SubAckPacket(1, [SUBSCRIPTION]))
    (wanted,) = sent.topic_filters
    assert (wanted.pattern, wanted.max_qos, sent.subscription_id) == ("a/+", QoS.AT_LEAST_ONCE, 77)
    assert not wanted.retain_as_published
    success = UnsubAckPacket(2, [UnsubAckReasonCode.SUCCESS])
    (sent,) = await asked(link, wire, link.unsubscribe("a/+"), success)
    assert sent.patterns == ["a/+"]


@pytest.mark.parametrize("code", [0x80, 0x87, 0x8F, 0x97])
async def test_a_refused_subscription_says_why(code):
    link, wire = await on_desk()
    refusal = SubAckPacket(1, [SubAckReasonCode(code)], reason_str="no")
    with pytest.raises(RefusedByBrokerError, match=f"a: .*0x{code:x}, 'no'") as e:
        await asked(link, wire, link.subscribe("a", qos=1, subscription_id=1), refusal)
    assert e.value.reason_code == code


async def test_a_refused_unsubscribe_is_logged():
    link, wire = await on_desk()
    refusal = UnsubAckPacket(1, [UnsubAckReasonCode.NOT_AUTHORIZED])
    with structlog.testing.capture_logs() as logs:
        await asked(link, wire, link.unsubscribe("a"), refusal)
    assert [(entry["event"], entry["reason_code"]) for entry in logs] == [
        ("unsubscribe refused", 0x87)
    ]


async def test_a_broker_without_subscription_ids_is_not_sent_any():
    link, wire = await on_desk(subscription_id_available=False)
    subscribing = link.subscribe("a", qos=1, subscription_id=77)
    (sent,) = await asked(link, wire, subscribing, SubAckPacket(1, [SUBSCRIPTION]))
    assert sent.subscription_id is None


@pytest.mark.parametrize(
    ("granted", "topic_filter", "reason_code"),
    [
        ({"shared_subscription_available": False}, "$share/hub/a", 0x9E),
        ({"wildcard_subscription_available": False}, "a/#", 0xA2),
        ({"wildcard_subscription_available": False}, "a/+/b", 0xA2),
    ],
)
async def test_a_subscription_for_which_the_broker_would_hang_up_is_not_sent(
    granted, topic_filter, reason_code
):
    link, wire = await on_desk(**granted)
    with pytest.raises(RefusedByBrokerError) as e:
        await link.subscribe(topic_filter, qos=1, subscription_id=1)
    assert e.value.reason_code == reason_code
    assert wire.written == b""


# --- the end


async def test_a_goodbye_comes_last_and_waits_until_the_broker_has_closed():
    async def talk(peer: Peer) -> None:
        await peer.next()
        peer.say(ConnAckPacket(), message(b"x", 1))
        assert isinstance(await peer.next(), PubAckPacket)
        assert isinstance(await peer.next(), DisconnectPacket)
        # Unread at our end when we would close first: that resets the connection.
        peer.say(*(message(b"y", n) for n in range(2, 50)))
        await peer.writer.drain()
        assert not said_goodbye.done()

    async with listening(talk) as port, connect(config(port), None) as link:
        arrival = await link.receive()
        link.acknowledge(arrival)
        said_goodbye = asyncio.create_task(link.disconnect())
        await turn()
        assert not link.acknowledge(arrival)
        link.ping()
        with pytest.raises(LinkError, match="disconnected"):
            await link.publish(Outbound(topic="t", payload=b""))
        async with asyncio.timeout(DEADLINE_S):
            await said_goodbye
        with pytest.raises(LinkError, match="disconnected"):
            await link.receive()


async def test_a_goodbye_does_not_wait_for_ever_for_a_broker_that_keeps_the_line(monkeypatch):
    monkeypatch.setattr(codec_transport, "LINGER_S", 0.01)

    async def talk(peer: Peer) -> None:
        await peer.next()
        peer.say(ConnAckPacket())
        assert isinstance(await peer.next(), DisconnectPacket)
        assert await peer.next() is None

    async with listening(talk) as port, connect(config(port), None) as link:
        async with asyncio.timeout(DEADLINE_S):
            await link.disconnect()
            await link.disconnect()


async def test_after_a_goodbye_the_broker_closes_first():
    link, wire = await on_desk()
    said_goodbye = asyncio.create_task(link.disconnect())
    await turn()
    assert [type(packet) for packet in wire.take()] == [DisconnectPacket]
    assert (wire.end, said_goodbye.done()) == ("", False)
    link.connection_lost(None)
    await said_goodbye


async def test_what_came_in_before_the_line_broke_comes_first():
    link, _ = await on_desk()
    hear(link, message(b"1", 1), message(b"2", 2))
    link.connection_lost(ConnectionResetError("reset by peer"))
    assert not link.acknowledge(await link.receive())
    assert (await link.receive()).inbound.payload == b"2"
    with pytest.raises(LinkError, match="the connection is gone: reset by peer") as e:
        await link.receive()
    assert isinstance(e.value.__cause__, ConnectionResetError)


async def test_abort_is_heard_by_everybody_who_waits():
    link, wire = await on_desk(receive_max=1)
    receiving = asyncio.create_task(link.receive())
    subscribing = asyncio.create_task(link.subscribe("a", qos=1, subscription_id=1))
    messages = [Outbound(topic="t", payload=b"") for _ in range(3)]
    async with publishing(link, *messages) as tasks:
        link.abort()
        for task in (receiving, subscribing, *tasks):
            with pytest.raises(LinkError, match="dropped on our side"):
                await task
    assert wire.end == "aborted"


def test_a_transport_whose_library_is_not_installed_says_what_to_install():
    code = (
        "import sys, asyncio; sys.modules['mqtt5'] = None\n"
        "from shoal_broker.session import Session, SessionConfig\n"
        "from shoal_broker.bus_errors import BusError\n"
        "async def main():\n"
        "    try:\n"
        "        config = SessionConfig(host='::1', client_id='c', transport='codec')\n"
        "        async with Session.open(config): pass\n"
        "    except BusError as exc: print(type(exc).__name__, exc)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == (
        "TransportMissingError [broker] transport 'codec' needs the package mqtt5:"
        " pip install 'shoal[broker]'\n"
    )
