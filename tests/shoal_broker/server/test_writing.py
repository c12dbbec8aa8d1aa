"""What is written once for many subscribers is what the codec writes for each of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shoal_broker.server.desk import Desk

from shoal_broker import codec, mqtt311
from shoal_broker.codec import PacketReader, PublishPacket, QoS, TopicFilter
from shoal_broker.errors import ProtocolError
from shoal_broker.server.messages import Delivery, Message
from shoal_broker.server.writing import LARGE_PAYLOAD_BYTES, QUALITIES, PublishWriter

NOW_S = 50.0
TOPICS = st.sampled_from(["t", "shoal/n/gw-1/c", "ü/" * 100])
SIZES = st.sampled_from([0, 1, 100, 130, LARGE_PAYLOAD_BYTES - 1, LARGE_PAYLOAD_BYTES, 70_000])


@st.composite
def deliveries(draw):
    """A message and several ways to send it, one after the other."""
    expires_at_s = draw(st.sampled_from([None, NOW_S + 0.5, NOW_S + 1e12]))
    content = PublishPacket(
        draw(TOPICS),
        bytes(draw(SIZES)),
        retain=draw(st.booleans()),
        content_type=draw(st.sampled_from([None, "cbor"])),
        correlation_data=draw(st.sampled_from([None, b"\x00\x01"])),
        user_properties=draw(st.sampled_from([[], [("a", "b")]])),
    )
    message = Message(content.topic, content, "publisher", expires_at_s, 1000)
    ways = st.tuples(
        st.sampled_from([0, 1, 2]),
        st.booleans(),
        st.booleans(),
        st.sampled_from([[], [7], [7, 200_000]]),
        st.sampled_from([(None, None), (3, None), (None, 4)]),
        st.sampled_from([codec.encode, mqtt311.encode]),
        st.integers(1, 65_535),
    )
    return message, draw(st.lists(ways, min_size=1, max_size=6))


@given(deliveries())
@settings(max_examples=300)
def test_every_packet_is_the_codecs_own(case):
    message, ways = case
    writer = PublishWriter()
    left_s = None
    if message.expires_at_s is not None:
        left_s = min(0xFFFFFFFF, math.ceil(message.expires_at_s - NOW_S))
    for qos, retain, duplicate, identifiers, aliases, encode, packet_id in ways:
        known, new = aliases if encode is codec.encode else (None, None)
        is_again = duplicate and qos > 0
        expected = encode(
            PublishPacket(
                "" if known else message.topic,
                message.content.payload,
                qos=QUALITIES[qos],
                retain=retain,
                packet_id=packet_id if qos else None,
                duplicate=is_again,
                message_expiry_interval=left_s,
                content_type=message.content.content_type,
                correlation_data=message.content.correlation_data,
                subscription_ids=identifiers,
                topic_alias=known or new,
                user_properties=message.content.user_properties,
            )
        )
        packet, payload = writer.write(
            Delivery(message, qos, retain, identifiers, None),
            packet_id if qos else None,
            NOW_S,
            duplicate=is_again,
            encode=encode,
            known_alias=known,
            new_alias=new,
        )
        assert packet + payload == expected


@pytest.mark.parametrize("level", [4, 5])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("retain", [False, True])
def test_a_plain_packet_goes_on_as_it_came(level, qos, retain):
    encode = codec.encode if level == 5 else mqtt311.encode
    packet_id = 9 if qos else None
    came = encode(
        PublishPacket("a/b", b"x" * 50, qos=QUALITIES[qos], packet_id=packet_id, retain=retain)
    )
    reader = PacketReader()
    if level == 4:
        reader.decode, reader.has_properties = mqtt311.decode, False
    reader.feed(came)
    content = reader.next_packet()
    assert (content.topic, content.payload, content.retain) == ("a/b", b"x" * 50, retain)
    assert (int(content.qos), content.packet_id) == (qos, packet_id)
    assert reader.plain_packet == came
    message = Message("a/b", content, "p", None, 100)
    writer = PublishWriter()
    writer.received(message, reader.plain_packet, reader.plain_topic_end, encode)
    for kept in (False, True):
        again = 4711 if qos else None
        expected = encode(
            PublishPacket("a/b", b"x" * 50, qos=QUALITIES[qos], packet_id=again, retain=kept)
        )
        delivery = Delivery(message, qos, kept, [], None)
        assert writer.write(delivery, again, NOW_S, duplicate=False, encode=encode) == (
            expected,
            b"",
        )


@given(
    st.sampled_from([0x30, 0x31, 0x32, 0x33, 0x34, 0x36, 0x38, 0x3A]),
    st.binary(min_size=0, max_size=12),
    st.sampled_from([4, 5]),
)
@settings(max_examples=2000)
def test_the_short_way_of_the_reader_ends_as_the_long_one_does(first_byte, body, level):
    packet = bytes((first_byte, len(body))) + body

    def outcome(read):
        try:
            got = read()
        except ProtocolError as exc:
            return exc.reason_code
        return (got.topic, got.payload, got.qos, got.retain, got.duplicate, got.packet_id)

    decode = codec.decode if level == 5 else mqtt311.decode
    reader = PacketReader()
    reader.decode, reader.has_properties = decode, level == 5
    reader.feed(packet)
    assert outcome(reader.next_packet) == outcome(lambda: decode(packet, 2))


def test_a_large_payload_is_shared_by_all_its_subscribers():
    desk = Desk()
    clients = [desk.connect(f"c{number}") for number in range(3)]
    for client in clients:
        client.subscribe(TopicFilter("b", max_qos=QoS.AT_LEAST_ONCE))
    publisher = desk.connect("p").connection
    sent_before = desk.core.counters.sent_packets
    packet = PublishPacket("b", bytes(70_000), qos=QoS.AT_LEAST_ONCE, packet_id=1)
    desk.core.receive(publisher, codec.encode(packet), desk.now_s)
    pieces = [client.connection.output[-1] for client in clients]
    assert all(len(piece) == 70_000 and piece is pieces[0] for piece in pieces)
    desk.settle()
    # Three PUBLISH and one PUBACK, whatever they are made of.
    assert desk.core.counters.sent_packets == sent_before + 4


def test_between_two_turns_of_the_loop_no_message_is_remembered():
    desk = Desk()
    subscriber, publisher = desk.connect("s"), desk.connect("p")
    subscriber.subscribe(TopicFilter("t"))
    for _ in range(2):
        publisher.send(PublishPacket("t", b"x" * 100))
    desk.settle()
    assert desk.core.router.ledger.live_bytes == 0


def test_an_idle_session_has_no_queues():
    desk = Desk()
    client = desk.connect("c", session_expiry_interval=100)
    client.subscribe(TopicFilter("t", max_qos=QoS.AT_LEAST_ONCE))
    publisher = desk.connect("p")
    publisher.send(PublishPacket("t", b"x", qos=QoS.AT_LEAST_ONCE, packet_id=1))
    session = desk.core.router.sessions["c"]
    assert (session.queue, session.best_effort, session.repeats) == ((), (), ())


def test_a_first_packet_that_is_no_connect_is_refused_also_when_it_is_plain():
    desk = Desk()
    stranger = desk.stranger()
    stranger.send(PublishPacket("t", b"x"))
    desk.settle()
    assert stranger.closed
