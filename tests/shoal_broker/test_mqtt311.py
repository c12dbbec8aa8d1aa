"""MQTT 3.1.1 in and out, beside paho's packing and reading of the same packets."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shoal_broker import paho_wire
from tests.shoal_broker.paho_wire import Heard
from tests.shoal_broker.test_codec import framed, mutate

from shoal_broker import codec, mqtt311
from shoal_broker.codec import (
    AuthPacket,
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    Packet,
    PacketReader,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PubAckReasonCode,
    PubCompPacket,
    PubCompReasonCode,
    PublishPacket,
    PubRecPacket,
    PubRecReasonCode,
    PubRelPacket,
    PubRelReasonCode,
    QoS,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
    TopicFilter,
    UnsubAckPacket,
    UnsubAckReasonCode,
    UnsubscribePacket,
    Will,
)
from shoal_broker.errors import EncodeError, ProtocolError

NEVER = 0xFFFFFFFF


def read_all(data: bytes, max_packet_bytes: int = 1 << 20) -> list[Packet]:
    reader = PacketReader(max_packet_bytes)
    reader.decode = mqtt311.decode
    reader.feed(data)
    packets = []
    while (packet := reader.next_packet()) is not None:
        packets.append(packet)
    return packets


def heard(packet: Packet) -> Heard:
    """What paho makes of our bytes for this packet: exactly one packet."""
    ear = paho_wire.Ear()
    ear.feed(mqtt311.encode(packet))
    only = ear.next_packet()
    assert only is not None
    assert ear._bytes == b""
    return only


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=30)
TOPIC = TEXT.filter(lambda t: t and "+" not in t and "#" not in t)
FILTER = st.one_of(TOPIC.filter(lambda t: not t.startswith("$share")), st.just("a/+/#"))
QUALITY = st.sampled_from([QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE])
PACKET_ID = st.integers(1, 65_535)
NAMED = TEXT.filter(bool)


# --- what clients say, packed by paho


@given(
    client_id=NAMED,
    clean=st.booleans(),
    keep_alive=st.integers(0, 65_535),
    will=st.none() | st.tuples(TOPIC, st.binary(max_size=300), QUALITY, st.booleans()),
    user=st.none() | TEXT,
    password=st.none() | st.binary(max_size=40),
)
@settings(max_examples=150)
def test_a_connect_says_the_same_in_both_versions(
    client_id, clean, keep_alive, will, user, password
):
    data = paho_wire.connect(
        client_id,
        clean_session=clean,
        keep_alive=keep_alive,
        will=will and (will[0], will[1], int(will[2]), will[3]),
        user=user,
        password=password,
    )
    assert read_all(data) == [
        ConnectPacket(
            client_id,
            clean_start=clean,
            session_expiry_interval=0 if clean else NEVER,
            keep_alive=keep_alive,
            will=will and Will(will[0], payload=will[1], qos=will[2], retain=will[3]),
            username=user,
            password=None if user is None else password,
        )
    ]


MESSAGE = {
    "topic": TOPIC,
    "payload": st.binary(max_size=400),
    "qos": QUALITY,
    "retain": st.booleans(),
    "duplicate": st.booleans(),
    "packet_id": PACKET_ID,
}


def message(topic, payload, qos, retain, duplicate, packet_id, **properties) -> PublishPacket:
    numbered = int(qos) > 0
    return PublishPacket(
        topic,
        payload,
        qos=qos,
        retain=retain,
        duplicate=duplicate and numbered,
        packet_id=packet_id if numbered else None,
        **properties,
    )


@given(**MESSAGE)
@settings(max_examples=200)
def test_a_message_is_the_same_in_both_versions_and_back(**fields):
    packet = message(**fields)
    data = paho_wire.publish(
        packet.topic,
        packet.payload,
        qos=int(packet.qos),
        retain=packet.retain,
        packet_id=packet.packet_id or 0,
        duplicate=packet.duplicate,
    )
    assert read_all(data) == [packet]
    assert mqtt311.encode(packet) == data


@given(packet_id=PACKET_ID, wanted=st.lists(st.tuples(FILTER, QUALITY), min_size=1, max_size=5))
@settings(max_examples=100)
def test_a_subscribe_asks_for_the_plain_delivery_of_3_1_1(packet_id, wanted):
    data = paho_wire.subscribe(packet_id, *((pattern, int(qos)) for pattern, qos in wanted))
    filters = [
        TopicFilter(pattern, max_qos=qos, retain_as_published=False) for pattern, qos in wanted
    ]
    assert read_all(data) == [SubscribePacket(packet_id, filters)]


@given(packet_id=PACKET_ID, patterns=st.lists(FILTER, min_size=1, max_size=5))
@settings(max_examples=100)
def test_an_unsubscribe_is_the_same_in_both_versions(packet_id, patterns):
    data = paho_wire.unsubscribe(packet_id, *patterns)
    assert read_all(data) == [UnsubscribePacket(packet_id, patterns)]


@pytest.mark.parametrize(
    ("kind", "packet"),
    [
        ("puback", PubAckPacket),
        ("pubrec", PubRecPacket),
        ("pubrel", PubRelPacket),
        ("pubcomp", PubCompPacket),
    ],
)
@given(packet_id=PACKET_ID)
@settings(max_examples=30)
def test_an_acknowledgement_is_the_same_in_both_versions_and_back(kind, packet, packet_id):
    data = paho_wire.acknowledge(kind, packet_id)
    assert read_all(data) == [packet(packet_id)]
    assert mqtt311.encode(packet(packet_id)) == data


def test_ping_and_goodbye_are_the_same_in_both_versions():
    assert read_all(paho_wire.ping() + paho_wire.disconnect()) == [
        PingReqPacket(),
        DisconnectPacket(),
    ]


def test_a_stream_of_3_1_1_may_be_cut_anywhere():
    packets = [
        paho_wire.connect("node", will=("w", b"gone", 1, True)),
        paho_wire.publish("töpic", bytes(300), qos=1, packet_id=7),
        paho_wire.publish("t", bytes(20_000)),
        paho_wire.subscribe(2, ("a/+", 1), ("b/#", 2)),
        paho_wire.acknowledge("puback", 9),
        paho_wire.disconnect(),
    ]
    stream = b"".join(packets)
    expected = read_all(stream)
    assert len(expected) == len(packets)
    for piece_bytes in (1, 3, 1000):
        reader, read, sizes = PacketReader(), [], []
        reader.decode = mqtt311.decode
        for start in range(0, len(stream), piece_bytes):
            reader.feed(stream[start : start + piece_bytes])
            while (packet := reader.next_packet()) is not None:
                read.append(packet)
                sizes.append(reader.packet_bytes)
        assert read == expected
        assert sizes == [len(data) for data in packets]


# --- what the broker says, read by paho


@given(
    **MESSAGE,
    properties=st.fixed_dictionaries(
        {},
        optional={
            "message_expiry_interval": st.integers(0, NEVER),
            "user_properties": st.lists(st.tuples(TEXT, TEXT), max_size=3),
            "subscription_ids": st.lists(st.integers(1, 1000), max_size=3),
            "response_topic": TOPIC,
            "correlation_data": st.binary(max_size=20),
            "content_type": TEXT,
            "payload_format_indicator": st.integers(0, 1),
        },
    ),
)
@settings(max_examples=200)
def test_a_delivery_has_everything_but_properties(properties, **fields):
    packet = message(**fields, **properties)
    assert heard(packet) == Heard(
        "publish",
        packet.packet_id or 0,
        (),
        packet.topic,
        packet.payload,
        int(packet.qos),
        packet.retain,
        packet.duplicate,
    )


@given(PACKET_ID, st.lists(st.sampled_from([0, 1, 2, 0x80, 0x87, 0x97, 0xA2])))
@settings(max_examples=50)
def test_every_failure_of_a_subscription_is_0x80(packet_id, codes):
    packet = SubAckPacket(packet_id, [SubAckReasonCode(code) for code in codes])
    expected = tuple(code if code <= 2 else 0x80 for code in codes)
    assert heard(packet) == Heard("suback", packet_id, expected)


def test_answers_lose_their_reasons():
    gone = PubRelReasonCode.PACKET_ID_NOT_FOUND
    full = PubAckReasonCode.QUOTA_EXCEEDED
    assert heard(PubAckPacket(5, reason_code=full, reason_str="full")) == Heard("puback", 5)
    refused = PubRecPacket(6, reason_code=PubRecReasonCode.NOT_AUTHORIZED)
    assert heard(refused) == Heard("pubrec", 6)
    assert heard(PubRelPacket(7, reason_code=gone)) == Heard("pubrel", 7)
    unknown = PubCompReasonCode.PACKET_ID_NOT_FOUND
    assert heard(PubCompPacket(8, reason_code=unknown)) == Heard("pubcomp", 8)
    none = UnsubAckReasonCode.NO_SUBSCRIPTION_EXISTED
    assert heard(UnsubAckPacket(65_535, [none, none])) == Heard("unsuback", 65_535)
    assert heard(PingRespPacket()) == Heard("pingresp")


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (ConnAckReasonCode.SUCCESS, 0),
        (ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION, 1),
        (ConnAckReasonCode.CLIENT_ID_NOT_VALID, 2),
        (ConnAckReasonCode.SERVER_UNAVAILABLE, 3),
        (ConnAckReasonCode.SERVER_BUSY, 3),
        (ConnAckReasonCode.QUOTA_EXCEEDED, 3),
        (ConnAckReasonCode.CONNECTION_RATE_EXCEEDED, 3),
        (ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD, 4),
        (ConnAckReasonCode.NOT_AUTHORIZED, 5),
        (ConnAckReasonCode.BANNED, 5),
    ],
)
def test_a_refused_connect_gets_the_return_code_of_its_reason(reason, code):
    assert heard(ConnAckPacket(reason_code=reason)) == Heard("connack", codes=(0, code))


def test_session_present_is_told_only_with_an_acceptance():
    kept = ConnAckPacket(session_present=True, assigned_client_id="auto", topic_alias_max=9)
    assert heard(kept) == Heard("connack", codes=(1, 0))
    lost = ConnAckPacket(
        session_present=True, reason_code=ConnAckReasonCode.SERVER_BUSY, reason_str="busy"
    )
    assert heard(lost) == Heard("connack", codes=(0, 3))


@pytest.mark.parametrize(
    "packet",
    [
        DisconnectPacket(reason_code=DisconnectReasonCode.SESSION_TAKEN_OVER),
        AuthPacket(authentication_method="m"),
        ConnAckPacket(reason_code=ConnAckReasonCode.MALFORMED_PACKET),
        ConnAckPacket(reason_code=ConnAckReasonCode.TOPIC_NAME_INVALID),
    ],
)
def test_what_3_1_1_has_no_word_for_is_not_said(packet):
    assert mqtt311.encode(packet) == b""


def test_what_only_clients_send_is_an_encode_error():
    with pytest.raises(EncodeError):
        mqtt311.encode(ConnectPacket("c"))


def test_a_payload_that_fits_in_no_packet_of_3_1_1_is_an_encode_error():
    with pytest.raises(EncodeError):
        mqtt311.encode(PublishPacket("a", bytes((1 << 28) - 1000)))


# --- what nobody may say


def connect_body(
    *, level: int = 4, flags: int = 0x02, name: bytes = b"\x00\x04MQTT", rest: bytes = b"\x00\x01c"
) -> bytes:
    return framed(0x10, name + bytes([level, flags]) + b"\x00\x3c" + rest)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (connect_body(flags=0x03), 0x81),  # the reserved flag
        (connect_body(flags=0x42, rest=b"\x00\x01c\x00\x01p"), 0x82),  # a password, but no user
        (connect_body(flags=0x22), 0x81),  # will retain without a will
        (connect_body(flags=0x0A), 0x81),  # will QoS without a will
        (connect_body(flags=0x1E, rest=b"\x00\x01c\x00\x01t\x00\x00"), 0x81),  # will QoS 3
        (connect_body(flags=0x06, rest=b"\x00\x01c\x00\x01#\x00\x00"), 0x90),  # will to a wildcard
        (connect_body(flags=0x06), 0x81),  # a will that does not come
        (connect_body(flags=0x00, rest=b"\x00\x00"), 0x85),  # a session of nobody is to be kept
        (connect_body(rest=b"\x00\x02\xff\xfe"), 0x81),  # client id not UTF-8
        (connect_body(rest=b"\x00\x02c\x00"), 0x81),  # NUL in the client id
        (connect_body(rest=b"\x00\x01c\x00"), 0x81),  # something after the last field
        (connect_body(rest=b"\x00\x09c"), 0x81),  # client id longer than the packet
        (connect_body(rest=b"\x00"), 0x81),
        (connect_body(flags=0x82), 0x81),  # a user name that does not come
        (b"\x10\x08\x00\x04MQTT\x04\x02", 0x81),  # no keep alive
        (connect_body(level=5, rest=b"\x00\x00\x01c"), 0x82),  # another version than before
        (b"\x12" + connect_body()[1:], 0x81),  # flags of the fixed header
        (framed(0x30, b"\x00\x00z"), 0x90),  # no topic
        (framed(0x30, b"\x00"), 0x81),
        (framed(0x30, b"\x00\x05a"), 0x81),  # topic longer than the packet
        (framed(0x30, b"\x00\x03a\xff\xfe"), 0x81),  # topic not UTF-8
        (framed(0x30, b"\x00\x02a\x00"), 0x81),  # NUL
        (framed(0x30, b"\x00\x03a/+z"), 0x90),
        (framed(0x30, b"\x00\x03a/#z"), 0x90),
        (framed(0x32, b"\x00\x01a\x00"), 0x81),  # half a packet id
        (framed(0x32, b"\x00\x01a\x00\x00z"), 0x82),  # packet id 0
        (framed(0x36, b"\x00\x01a\x00\x01z"), 0x81),  # QoS 3
        (framed(0x38, b"\x00\x01az"), 0x81),  # QoS 0 with DUP
        (framed(0x40, b"\x00\x00"), 0x82),  # PUBACK of packet id 0
        (framed(0x40, b"\x00\x01\x00"), 0x81),  # a reason code
        (framed(0x50, b"\x00\x01\x00\x00"), 0x81),
        (framed(0x60, b"\x00\x01"), 0x81),  # flags of PUBREL
        (framed(0x40, b"\x00"), 0x81),
        (framed(0x82, b"\x00\x01"), 0x82),  # nothing to subscribe to
        (framed(0x82, b"\x00"), 0x81),
        (framed(0x82, b"\x00\x00\x00\x01a\x00"), 0x82),  # packet id 0
        (framed(0x80, b"\x00\x01\x00\x01a\x00"), 0x81),  # flags of SUBSCRIBE
        (framed(0x82, b"\x00\x01\x00\x01a\x03"), 0x82),  # QoS 3
        (framed(0x82, b"\x00\x01\x00\x01a\x04"), 0x81),  # no-local
        (framed(0x82, b"\x00\x01\x00\x01a\x08"), 0x81),  # retain as published
        (framed(0x82, b"\x00\x01\x00\x01a\x10"), 0x81),  # retain handling
        (framed(0x82, b"\x00\x01\x00\x01a\x40"), 0x81),
        (framed(0x82, b"\x00\x01\x00\x01a"), 0x81),  # no QoS
        (framed(0x82, b"\x00\x01\x00\x02a#\x00"), 0x8F),
        (framed(0x82, b"\x00\x01\x00\x00\x00"), 0x8F),  # an empty filter
        (framed(0xA2, b"\x00\x01"), 0x82),  # nothing to unsubscribe from
        (framed(0xA2, b"\x00\x01\x00\x03a/\xff"), 0x81),
        (framed(0xC0, b"\x00"), 0x81),  # PINGREQ with a body
        (framed(0xE0, b"\x00"), 0x81),  # DISCONNECT with a reason
        (framed(0xE0, b"\x00\x00"), 0x81),
        (framed(0x20, b"\x00\x00"), 0x81),  # what only a server sends
        (framed(0x90, b"\x00\x01\x00"), 0x81),
        (framed(0xB0, b"\x00\x01"), 0x81),
        (framed(0xD0, b""), 0x81),
        (framed(0xF0, b""), 0x81),  # AUTH
        (framed(0x00, b""), 0x81),
        (b"\x30\xff\xff\xff\xff\x01", 0x81),  # remaining length of five bytes
        (b"\x30\x80\x80\x80\x01", 0x95),  # above the limit, before its body arrives
    ],
)
def test_what_3_1_1_forbids_is_refused(data, code):
    with pytest.raises(ProtocolError) as caught:
        read_all(data)
    assert caught.value.reason_code == code


REAL_BYTES = [
    paho_wire.connect(
        "node-1",
        clean_session=False,
        will=("shoal/n/node-1/p", b"\x83\x01", 1, True),
        user="üser",
        password=b"\x00\xff",
    ),
    paho_wire.publish("shoal/n/1/c", b"\x00\xff" * 20, qos=1, packet_id=7),
    paho_wire.publish("töpic", b"payload", qos=2, packet_id=300, duplicate=True),
    paho_wire.subscribe(2, ("a/+/ü", 1), ("$share/g/#", 2)),
    paho_wire.unsubscribe(3, "a/+", "b/#", "ü"),
    *(paho_wire.acknowledge(kind, 9) for kind in ("puback", "pubrec", "pubrel", "pubcomp")),
    paho_wire.ping(),
    paho_wire.disconnect(),
]


def verdict(data: bytes) -> int | None:
    try:
        read_all(data)
    except ProtocolError as exc:
        return exc.reason_code
    return None


def survive(seed: int, count: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - the same mutants every time
    verdicts = [verdict(mutate(rng.choice(REAL_BYTES), rng)) for _ in range(count)]
    refusals = [code for code in verdicts if code is not None]
    assert all(0x80 <= code <= 0xA2 for code in refusals)
    assert count // 10 < len(refusals) < count - count // 10


def test_mutated_packets_of_3_1_1_end_as_packets_or_typed_errors(capfd):
    survive(1, 10_000)
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_million_mutated_packets_of_3_1_1_end_as_packets_or_typed_errors(capfd):
    survive(2, 1_000_000)
    assert "panicked" not in capfd.readouterr().err


@given(first_byte=st.integers(0, 0xFF), body=st.binary(max_size=100))
@settings(max_examples=300)
def test_any_body_in_a_true_frame_of_3_1_1_ends_as_a_packet_or_a_typed_error(first_byte, body):
    assert verdict(framed(first_byte, body)) in (None, *range(0x80, 0xA3))


def test_only_a_connect_of_level_4_is_taken_for_3_1_1():
    assert mqtt311.is_spoken_in(memoryview(connect_body()), 2)
    for other in (
        codec.encode(ConnectPacket("c")),
        connect_body(level=3, name=b"\x00\x06MQIsdp"),
        connect_body(level=0x84),
        b"\x10\x00",
        b"\x30" + connect_body()[1:],
    ):
        assert not mqtt311.is_spoken_in(memoryview(other), 2)
