"""Whatever the bytes are: a packet or a ProtocolError with its reason code."""

from __future__ import annotations

import random

import mqtt5
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_broker import codec
from shoal_broker.codec import (
    AuthPacket,
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    PacketReader,
    PingReqPacket,
    PubAckPacket,
    PubAckReasonCode,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
    TopicFilter,
    UnsubscribePacket,
    Will,
    encode,
)
from shoal_broker.errors import EncodeError, ProtocolError

REAL_PACKETS = [
    ConnectPacket(
        "node-1",
        username="üser",
        password=b"\x00\xff",
        keep_alive=60,
        session_expiry_interval=3600,
        receive_max=10,
        will=Will(
            "shoal/n/node-1/p",
            payload=b"\x83\x01",
            qos=QoS.AT_LEAST_ONCE,
            retain=True,
            will_delay_interval=5,
            user_properties=[("why", "☃")],
        ),
        user_properties=[("a", "b")],
    ),
    ConnAckPacket(assigned_client_id="auto-1", reason_str="wülkommen", max_packet_size=1000),
    PublishPacket("shoal/n/1/c", b"\x00\xff" * 20, qos=QoS.AT_LEAST_ONCE, packet_id=7),
    PublishPacket(
        "töpic",
        b"payload",
        message_expiry_interval=9,
        response_topic="r/ü",
        correlation_data=b"\x80\x81\xff",
        content_type="c/t",
        subscription_ids=[1, 300],
        user_properties=[("k", "v"), ("ü", "ö")],
    ),
    PublishPacket("", b"x", topic_alias=3),
    PubAckPacket(1),
    PubAckPacket(300, reason_code=PubAckReasonCode.QUOTA_EXCEEDED, reason_str="völl"),
    SubscribePacket(
        2, [TopicFilter("a/+/ü", no_local=True), TopicFilter("$share/g/#")], subscription_id=200
    ),
    SubAckPacket(2, [SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE], reason_str="ja"),
    UnsubscribePacket(3, ["a/+", "b/#", "ü"], user_properties=[("x", "y")]),
    PingReqPacket(),
    DisconnectPacket(session_expiry_interval=5, reason_str="tschüß"),
    AuthPacket(authentication_method="m", authentication_data=b"\xff"),
]


def read_all(data: bytes, max_packet_bytes: int = 1 << 20):
    reader = PacketReader(max_packet_bytes)
    reader.feed(data)
    packets = []
    while (packet := reader.next_packet()) is not None:
        packets.append(packet)
    return packets


def refusal(data: bytes) -> int:
    with pytest.raises(ProtocolError) as caught:
        read_all(data)
    return caught.value.reason_code


def framed(first_byte: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([first_byte, len(body)]) + body


@pytest.mark.parametrize("packet", REAL_PACKETS, ids=lambda p: type(p).__name__)
def test_a_packet_survives_the_wire(packet):
    (read,) = read_all(encode(packet))
    assert read == packet


def test_a_stream_may_be_cut_anywhere():
    stream = b"".join(map(encode, REAL_PACKETS))
    for piece_bytes in (1, 2, 3, 7, 100, 10_000):
        reader, packets = PacketReader(), []
        for start in range(0, len(stream), piece_bytes):
            reader.feed(stream[start : start + piece_bytes])
            while (packet := reader.next_packet()) is not None:
                packets.append(packet)
        assert packets == REAL_PACKETS


def test_the_size_of_the_last_packet_is_known():
    reader = PacketReader()
    data = encode(REAL_PACKETS[2])
    reader.feed(data + encode(PingReqPacket()))
    reader.next_packet()
    assert reader.packet_bytes == len(data)
    reader.next_packet()
    assert reader.packet_bytes == 2


def test_a_packet_above_the_limit_is_refused_before_its_body_arrives():
    reader = PacketReader(max_packet_bytes=100)
    reader.feed(b"\x30\x63")
    with pytest.raises(ProtocolError) as caught:
        reader.next_packet()
    assert caught.value.reason_code == 0x95
    assert PacketReader(100).next_packet() is None
    assert read_all(b"\x30\x62\x00\x01a\x00" + bytes(94), 100)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x30\xff\xff\xff\xff\x01", 0x81),  # remaining length of five bytes
        (b"\x30\x84\x00\x00\x01a\x00", 0x81),  # remaining length with a useless byte
        (b"\x00\x00", 0x81),  # no such packet
        (b"\xc1\x00", 0x81),  # flags of PINGREQ
        (framed(0x30, b"\x00\x05a"), 0x81),  # topic longer than the packet
        (framed(0x30, b"\x00\x03a\xff\xfe\x00"), 0x81),  # topic not UTF-8
        (framed(0x30, b"\x00\x03\xed\xa0\x80\x00"), 0x81),  # a surrogate
        (framed(0x30, b"\x00\x02a\x00\x00"), 0x81),  # NUL
        (framed(0x30, b"\x00\x03a/+\x00"), 0x90),
        (framed(0x30, b"\x00\x03a/#\x00"), 0x90),
        (framed(0x30, b"\x00\x00\x00"), 0x82),  # neither topic nor alias
        (framed(0x30, b"\x00\x01a\x03\x23\x00\x00"), 0x94),  # alias 0
        (framed(0x32, b"\x00\x01a\x00\x00\x00z"), 0x82),  # packet id 0
        (framed(0x36, b"\x00\x01a\x00\x01\x00z"), 0x81),  # QoS 3
        (framed(0x38, b"\x00\x01a\x00"), 0x81),  # QoS 0 with DUP
        (framed(0x30, b"\x00\x01a\x02\x01\x02"), 0x82),  # payload format 2
        (framed(0x30, b"\x00\x01a\x04\x08\x00\x01#"), 0x82),  # wildcard in a response topic
        (framed(0x30, b"\x00\x01a\x0a" + b"\x02\0\0\0\1" * 2), 0x82),  # expiry twice
        (framed(0x30, b"\x00\x01a\x02\x7fz"), 0x81),  # no such property
        (framed(0x30, b"\x00\x01a\x05\x03\x00\x09ab"), 0x81),  # text over the end
        (framed(0x30, b"\x00\x01a\x04\x03\x00\x02\xff\xff"), 0x81),  # property not UTF-8
        (framed(0x40, b"\x00\x00"), 0x82),  # PUBACK of packet id 0
        (framed(0x40, b"\x00\x01\x05"), 0x81),  # no such reason
        (framed(0x82, b"\x00\x01\x00"), 0x82),  # nothing to subscribe to
        (framed(0x82, b"\x00\x00\x00\x00\x01a\x00"), 0x82),  # packet id 0
        (framed(0x82, b"\x00\x01\x00\x00\x01a\xc0"), 0x81),  # reserved bits
        (framed(0x82, b"\x00\x01\x00\x00\x01a\x30"), 0x82),  # retain handling 3
        (framed(0x82, b"\x00\x01\x00\x00\x02a#\x00"), 0x8F),
        (framed(0x82, b"\x00\x01\x00\x00\x03+a/\x00"), 0x8F),
        (framed(0x82, b"\x00\x01\x00\x00\x08$share/g\x00"), 0x8F),
        (framed(0x82, b"\x00\x01\x00\x00\x0a$share/+/t\x00"), 0x8F),
        (framed(0x82, b"\x00\x01\x00\x00\x0a$share/g/t\x04"), 0x82),  # shared and no-local
        (framed(0x82, b"\x00\x01\x02\x0b\x00\x00\x01a\x00"), 0x82),  # identifier 0
        (framed(0xA2, b"\x00\x01\x00"), 0x82),  # nothing to unsubscribe from
        (framed(0xA2, b"\x00\x01\x00\x00\x02a#"), 0x8F),
        (framed(0x10, b"\x00\x04MQTT\x05\x03\x00\x00\x00\x00\x01c"), 0x81),  # reserved flag
        (framed(0x10, b"\x00\x04MQTT\x05\x22\x00\x00\x00\x00\x01c"), 0x81),  # will flags, no will
        (framed(0x10, b"\x00\x04MQTT\x04\x02\x00\x00\x00\x01c"), 0x84),
        (framed(0x10, b"\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01c"), 0x84),
        (framed(0x10, b"\x00\x04HTTP\x05\x02\x00\x00\x00\x00\x01c"), 0x81),
        (framed(0x10, b"\x00\x04MQTT\x05\x06\x00\x00\x00\x00\x01c\x00\x00\x01#\x00\x00"), 0x90),
    ],
)
def test_what_the_standard_forbids_is_refused_with_its_reason(data, code):
    assert refusal(data) == code


def test_the_level_of_another_version_is_told():
    with pytest.raises(ProtocolError) as caught:
        read_all(framed(0x10, b"\x00\x04MQTT\x04\x02\x00\x00\x00\x01c"))
    assert caught.value.protocol_level == 4
    assert codec.refused_version(4) == b"\x20\x02\x00\x01"
    assert read_all(codec.refused_version(9))[0].reason_code == 0x84


def test_bytes_after_a_packet_are_the_next_packet():
    first, second = read_all(encode(PubAckPacket(1)) + encode(PingReqPacket()))
    assert isinstance(first, PubAckPacket)
    assert isinstance(second, PingReqPacket)


@pytest.mark.parametrize(
    "build",
    [
        lambda: PublishPacket("a" * 70_000, b""),
        lambda: PublishPacket("a", b"", content_type="\ud800"),
        lambda: PublishPacket("a", b"", correlation_data=bytes(70_000)),
        lambda: PublishPacket("a", b"", qos=QoS.AT_LEAST_ONCE),
        lambda: PublishPacket("a/#", b""),
        lambda: DisconnectPacket(reason_str="x" * 70_000),
        lambda: SubscribePacket(1, [TopicFilter("a/#/b")]),
    ],
)
def test_what_mqtt_cannot_say_is_refused_while_the_packet_is_built(build):
    # `encode` relies on this: all that is left to it is the size of the whole.
    with pytest.raises(ValueError):
        build()


def test_a_payload_that_fits_in_no_packet_is_an_encode_error():
    with pytest.raises(EncodeError):
        encode(PublishPacket("a", bytes((1 << 28) - 1000)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_panic_of_the_codec_stays_inside(monkeypatch):
    # With the check of texts taken away the codec does panic: nothing of it may get out.
    monkeypatch.setattr(codec, "check_text", lambda first_byte, body: None)
    with pytest.raises(BaseException) as raw:
        mqtt5.read(memoryview(framed(0x30, b"\x00\x03a\xff\xfe\x00")))
    assert not isinstance(raw.value, Exception)
    assert refusal(framed(0x30, b"\x00\x03a\xff\xfe\x00")) == 0x81


def test_other_exceptions_are_not_mistaken_for_a_panic(monkeypatch):
    class Interrupted:
        @staticmethod
        def read(packet):
            raise KeyboardInterrupt

    monkeypatch.setattr(codec, "mqtt5", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_all(encode(PingReqPacket()))


def mutate(data: bytes, rng: random.Random) -> bytes:
    mutant = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        match rng.randrange(5):
            case 0 if mutant:
                mutant[rng.randrange(len(mutant))] = rng.randrange(256)
            case 1 if mutant:
                mutant[rng.randrange(len(mutant))] ^= 1 << rng.randrange(8)
            case 2 if mutant:
                del mutant[rng.randrange(len(mutant))]
            case 3:
                mutant.insert(rng.randint(0, len(mutant)), rng.choice((0, 0xFF, 0x80, 0xC3, 35)))
            case _:
                start = rng.randint(0, len(mutant))
                mutant[start:start] = mutant[start : start + rng.randint(0, 6)]
    if len(mutant) > 1 and rng.random() < 0.7 and len(mutant) < 130:
        mutant[1] = len(mutant) - 2  # otherwise most would only be waited for
    return bytes(mutant)


def verdict(data: bytes) -> int | None:
    """The reason code of the refusal, None when packets were read. Anything else raises."""
    try:
        read_all(data)
    except ProtocolError as exc:
        return exc.reason_code
    return None


def survive(seed: int, count: int) -> tuple[int, int]:
    """Read `count` mutants; how many were read and how many refused."""
    rng = random.Random(seed)  # noqa: S311 - the same mutants every time
    originals = [encode(packet) for packet in REAL_PACKETS]
    verdicts = [verdict(mutate(rng.choice(originals), rng)) for _ in range(count)]
    refusals = [code for code in verdicts if code is not None]
    assert all(0x80 <= code <= 0xA2 for code in refusals)
    return count - len(refusals), len(refusals)


def test_mutated_packets_end_as_packets_or_typed_errors(capfd):
    read, refused = survive(1, 20_000)
    assert read > 2_000
    assert refused > 2_000
    # A panic would be written to standard error by Rust even if it were caught.
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_million_mutated_packets_end_as_packets_or_typed_errors(capfd):
    survive(2, 1_000_000)
    assert "panicked" not in capfd.readouterr().err


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_any_bytes_end_as_packets_or_typed_errors(data):
    assert verdict(data) in (None, *range(0x80, 0xA3))


@given(
    first_byte=st.integers(0x10, 0xFF),
    body=st.binary(max_size=100),
)
@settings(max_examples=500)
def test_any_body_in_a_true_frame_ends_as_a_packet_or_a_typed_error(first_byte, body):
    assert verdict(framed(first_byte, body)) in (None, *range(0x80, 0xA3))


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=30)
TOPIC = TEXT.filter(lambda t: t and "+" not in t and "#" not in t)


@given(
    topic=TOPIC,
    payload=st.binary(max_size=200),
    packet_id=st.integers(1, 65_535),
    expiry=st.none() | st.integers(0, 0xFFFFFFFF),
    content_type=st.none() | TEXT,
    response_topic=st.none() | TOPIC,
    correlation=st.none() | st.binary(max_size=40),
    properties=st.lists(st.tuples(TEXT, TEXT), max_size=4),
)
@settings(max_examples=200)
def test_any_message_survives_the_wire(
    topic, payload, packet_id, expiry, content_type, response_topic, correlation, properties
):
    packet = PublishPacket(
        topic,
        payload,
        qos=QoS.AT_LEAST_ONCE,
        packet_id=packet_id,
        message_expiry_interval=expiry,
        content_type=content_type,
        response_topic=response_topic,
        correlation_data=correlation,
        user_properties=properties,
    )
    assert read_all(encode(packet)) == [packet]


PROPERTY_BYTES = st.lists(
    st.one_of(
        st.sampled_from([b"\x01\x00", b"\x02\x00\x00\x00\x3c", b"\x23\x00\x01", b"\x0b\x85\x01"]),
        st.sampled_from(
            [b"\x0b\xff\xff\xff\xff\x01", b"\x0b\x80", b"\x08\x00\x01\xff", b"\x02\x00"]
        ),
        st.binary(min_size=1, max_size=4),
    ),
    max_size=4,
).map(b"".join)


@given(PROPERTY_BYTES, st.binary(max_size=3))
def test_where_the_walk_is_saved_it_would_have_found_nothing(properties, payload):
    body = b"\x00\x01t" + b"\x00\x07" + bytes([len(properties)]) + properties + payload
    packet = memoryview(bytes([0x32, len(body)]) + body)
    if codec._has_checked_text(packet, 0x32, 2):
        codec.check_text(0x32, packet[2:])


def test_the_walk_is_saved_for_a_command_with_its_expiry():
    command = PublishPacket(
        "shoal/n/1/c", b"x", qos=QoS.AT_LEAST_ONCE, packet_id=7, message_expiry_interval=60
    )
    assert codec._has_checked_text(memoryview(encode(command)), 0x32, 2)
