"""Every mistake that MQTT names ends the connection with its reason code; packets are written by hand.

In 3.1.1 there is no word for it: the connection is closed.
"""

import pytest
from tests.shoal_broker.server.desk import Desk
from tests.shoal_broker.server.siege import MAX_PACKET_BYTES, Offender
from tests.support.mqtt_wire import Wire, framed, text, varint

NEW, OLD = Wire(5), Wire(4)
PAIR = b"\x26" + text("k") + text("v")


def property_(identifier: int, value: bytes) -> bytes:
    return bytes([identifier]) + value


# What a connected client says, and the code of the DISCONNECT that it gets. Sections of MQTT 5.
MISTAKES = {
    # 2.1: the fixed header
    "a packet of type 0": (b"\x00\x00", 0x81),
    "PINGREQ with a flag": (b"\xc1\x00", 0x81),
    "SUBSCRIBE without its flag": (b"\x80" + NEW.subscribe(("a", 0))[1:], 0x81),
    "SUBSCRIBE without its flag and at QoS 3": (b"\x80" + NEW.subscribe(("a", 3))[1:], 0x81),
    "UNSUBSCRIBE without its flag": (b"\xa0" + NEW.unsubscribe("a")[1:], 0x81),
    "PUBREL without its flag": (NEW.acknowledge(0x60, 1), 0x81),
    "PUBACK with a flag": (NEW.acknowledge(0x41, 1), 0x81),
    "PINGREQ with a body": (b"\xc0\x01\x00", 0x81),
    "a remaining length of five bytes": (b"\x30\x80\x80\x80\x80\x01", 0x81),
    "a remaining length with a useless byte": (b"\x30\x84\x00\x00\x01a\x00", 0x81),
    "a packet above the limit": (b"\x30" + varint(MAX_PACKET_BYTES), 0x95),
    "the largest packet there is": (b"\x30\xff\xff\xff\x7f", 0x95),
    # 1.5.4: texts
    "a topic that is not UTF-8": (NEW.publish(b"a/\xff"), 0x81),
    "a surrogate in a topic": (NEW.publish(b"\xed\xa0\x80"), 0x81),
    "NUL in a topic": (NEW.publish(b"a\0"), 0x81),
    "a topic longer than its packet": (b"\x30\x03\x00\x09a", 0x81),
    "a filter that is not UTF-8": (NEW.subscribe((b"\xc3", 1)), 0x81),
    "NUL in a filter to unsubscribe from": (NEW.unsubscribe(b"a\0"), 0x81),
    "a content type that is not UTF-8": (
        NEW.publish("a", properties=property_(0x03, text(b"\xfe"))),
        0x81,
    ),
    "a user property that is not UTF-8": (
        NEW.publish("a", properties=property_(0x26, text("k") + text(b"\x80"))),
        0x81,
    ),
    "a reason that is not UTF-8": (
        NEW.acknowledge(0x40, 1, b"\0" + NEW.properties(property_(0x1F, text(b"\xff")))),
        0x81,
    ),
    # 2.2.1: packet ids
    "PUBLISH QoS 1 with id 0": (NEW.publish("a", flags=2, packet_id=0), 0x82),
    "PUBLISH QoS 2 with id 0": (NEW.publish("a", flags=4, packet_id=0), 0x82),
    "PUBACK of id 0": (NEW.acknowledge(0x40, 0), 0x82),
    "PUBREC of id 0": (NEW.acknowledge(0x50, 0), 0x82),
    "PUBREL of id 0": (NEW.acknowledge(0x62, 0), 0x82),
    "PUBCOMP of id 0": (NEW.acknowledge(0x70, 0), 0x82),
    "SUBSCRIBE with id 0": (NEW.subscribe(("a", 0), packet_id=0), 0x82),
    "UNSUBSCRIBE with id 0": (NEW.unsubscribe("a", packet_id=0), 0x82),
    # 2.2.2: properties
    "a property that does not exist": (NEW.publish("a", properties=b"\x7f\0"), 0x81),
    "a property of another packet": (NEW.publish("a", properties=b"\x11\0\0\0\1"), 0x81),
    "a property twice": (NEW.publish("a", properties=b"\x02\0\0\0\1" * 2), 0x82),
    "properties longer than the packet": (framed(0x30, text("a") + b"\x09\x02\0"), 0x81),
    "a property that is cut": (NEW.publish("a", properties=b"\x02\0\0"), 0x81),
    # 3.1, 3.15: what has no place here
    "a second CONNECT": (NEW.connect("again"), 0x82),
    "AUTH without a method agreed on": (
        framed(0xF0, b"\x19" + NEW.properties(property_(0x15, text("SCRAM")))),
        0x82,
    ),
    "SUBACK from a client": (framed(0x90, b"\0\1\0\0"), 0x82),
    "UNSUBACK from a client": (framed(0xB0, b"\0\1\0\0"), 0x82),
    "PINGRESP from a client": (b"\xd0\0", 0x82),
    # 3.3: PUBLISH
    "QoS 3": (NEW.publish("a", flags=6), 0x81),
    "QoS 0 with DUP": (NEW.publish("a", flags=8), 0x81),
    "a + in a topic": (NEW.publish("a/+"), 0x90),
    "a # in a topic": (NEW.publish("#"), 0x90),
    "neither topic nor alias": (NEW.publish(""), 0x82),
    "alias 0": (NEW.publish("a", properties=property_(0x23, b"\0\0")), 0x94),
    "an alias above the maximum": (NEW.publish("a", properties=property_(0x23, b"\0\x21")), 0x94),
    "an alias that was never given": (NEW.publish("", properties=property_(0x23, b"\0\2")), 0x82),
    "payload format 2": (NEW.publish("a", properties=b"\x01\x02"), 0x82),
    "a wildcard in a response topic": (
        NEW.publish("a", properties=property_(0x08, text("r/#"))),
        0x82,
    ),
    "a subscription identifier from a client": (NEW.publish("a", properties=b"\x0b\x01"), 0x82),
    # 3.4 to 3.7
    "PUBACK with a reason that does not exist": (NEW.acknowledge(0x40, 1, b"\x01"), 0x81),
    "PUBREL with a reason of PUBACK": (NEW.acknowledge(0x62, 1, b"\x10"), 0x81),
    "PUBACK without an id": (framed(0x40, b"\0"), 0x81),
    # 3.8, 3.10: SUBSCRIBE and UNSUBSCRIBE
    "nothing to subscribe to": (NEW.subscribe(), 0x82),
    "nothing to unsubscribe from": (NEW.unsubscribe(), 0x82),
    "reserved bits of a subscription": (NEW.subscribe(("a", 0x40)), 0x81),
    "a subscription at QoS 3": (NEW.subscribe(("a", 0x03)), 0x82),
    "retain handling 3": (NEW.subscribe(("a", 0x30)), 0x82),
    "a subscription identifier of 0": (NEW.subscribe(("a", 0), properties=b"\x0b\0"), 0x82),
    "two subscription identifiers": (NEW.subscribe(("a", 0), properties=b"\x0b\1\x0b\2"), 0x82),
    "a # that is not the end": (NEW.subscribe(("a/#/b", 0)), 0x8F),
    "a + beside letters": (NEW.subscribe(("a+", 0)), 0x8F),
    "an empty filter": (NEW.subscribe(("", 0)), 0x8F),
    "a share without a filter": (NEW.subscribe(("$share/g", 0)), 0x8F),
    "a share without a name": (NEW.subscribe(("$share//a", 0)), 0x8F),
    "a share with a wildcard in its name": (NEW.subscribe(("$share/+/a", 0)), 0x8F),
    "a shared subscription without local messages": (NEW.subscribe(("$share/g/a", 4)), 0x82),
    "a wrong filter to unsubscribe from": (NEW.unsubscribe("a/#/b"), 0x8F),
    # 3.14: DISCONNECT
    "a session prolonged that was to end": (
        NEW.goodbye(b"\0" + NEW.properties(b"\x11\0\0\0\5")),
        0x82,
    ),
    "a goodbye for a reason that does not exist": (NEW.goodbye(b"\x03"), 0x81),
}

# The first packet, and the code of the CONNACK. None: closed without a word.
FIRST_MISTAKES = {
    "the reserved flag": (NEW.connect(flags=0x03), 0x81),
    "a will QoS without a will": (NEW.connect(flags=0x0A), 0x81),
    "a retained will without a will": (NEW.connect(flags=0x22), 0x81),
    "a will at QoS 3": (NEW.connect(flags=0x1E, rest=NEW.will("w", b"")), 0x81),
    "a will to a wildcard": (NEW.connect(flags=0x06, rest=NEW.will("w/#", b"")), 0x90),
    "a will to a topic of the server": (NEW.connect(flags=0x06, rest=NEW.will("$x", b"")), 0x90),
    "a will that is cut": (NEW.connect(flags=0x06, rest=b"\0\0\5w"), 0x81),
    "a client id that is not UTF-8": (NEW.connect(b"\xff"), 0x81),
    "a client id that is too long": (NEW.connect("x" * 300), 0x85),
    "a receive maximum of 0": (NEW.connect(properties=b"\x21\0\0"), 0x82),
    "a maximum packet size of 0": (NEW.connect(properties=b"\x27\0\0\0\0"), 0x82),
    "data of authentication without a method": (
        NEW.connect(properties=b"\x16" + text("x")),
        0x82,
    ),
    "a request for problem information of 2": (NEW.connect(properties=b"\x17\x02"), 0x82),
    "a method of authentication": (NEW.connect(properties=b"\x15" + text("SCRAM")), 0x8C),
    "a property twice": (NEW.connect(properties=b"\x21\0\1\x21\0\1"), 0x82),
    "bytes behind the payload": (NEW.connect(rest=b"\0"), 0x81),
    "another protocol": (NEW.connect(name="HTTP"), 0x81),
    "version 6": (Wire(6).connect(), 0x84),
    "PUBLISH": (NEW.publish("a"), None),
    "PINGREQ": (NEW.ping(), None),
    "another language": (b"GET / HTTP/1.1\r\n\r\n", None),
}

OLD_MISTAKES = {
    "a packet of type 0": b"\x00\x00",
    "AUTH": b"\xf0\x00",
    "a packet above the limit": b"\x30" + varint(MAX_PACKET_BYTES),
    "a remaining length of five bytes": b"\x30\x80\x80\x80\x80\x01",
    "a topic that is not UTF-8": OLD.publish(b"\xff"),
    "an empty topic": OLD.publish(""),
    "a wildcard in a topic": OLD.publish("a/+"),
    "QoS 3": OLD.publish("a", flags=6),
    "PUBLISH with id 0": OLD.publish("a", flags=2, packet_id=0),
    "SUBSCRIBE with id 0": OLD.subscribe(("a", 0), packet_id=0),
    "a subscription at QoS 3": OLD.subscribe(("a", 3)),
    "a subscription with an option of MQTT 5": OLD.subscribe(("a", 4)),
    "nothing to subscribe to": OLD.subscribe(),
    "a # that is not the end": OLD.subscribe(("a/#/b", 0)),
    "a second CONNECT": OLD.connect(),
    "a reason in a PUBACK": OLD.acknowledge(0x40, 1, b"\0"),
    "a reason in a goodbye": OLD.goodbye(b"\0"),
}


def in_two_pieces(client: Offender, data: bytes) -> None:
    client.send_bytes(data[:1])
    if data[1:]:
        client.send_bytes(data[1:])


@pytest.mark.parametrize(("said", "code"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_the_connection_with_its_reason(said, code):
    client = Offender(Desk(max_packet_bytes=MAX_PACKET_BYTES, max_topic_aliases=32))
    client.send_bytes(NEW.connect())
    client.answers()
    in_two_pieces(client, said)
    assert client.closed
    (goodbye,) = client.answers()
    assert hex(int(goodbye.reason_code)) == hex(code)


@pytest.mark.parametrize(("said", "code"), FIRST_MISTAKES.values(), ids=FIRST_MISTAKES)
def test_a_wrong_beginning_is_refused_with_its_reason(said, code):
    client = Offender(Desk())
    in_two_pieces(client, said)
    assert client.closed
    answers = [hex(int(answer.reason_code)) for answer in client.answers()]
    assert answers == ([] if code is None else [hex(code)])


@pytest.mark.parametrize("said", OLD_MISTAKES.values(), ids=OLD_MISTAKES)
def test_a_mistake_in_3_1_1_ends_the_connection_without_a_word(said):
    client = Offender(Desk(max_packet_bytes=MAX_PACKET_BYTES))
    client.send_bytes(OLD.connect())
    client.answers()
    in_two_pieces(client, said)
    assert client.closed
    assert client.answers() == []


def test_a_message_within_the_limit_passes_and_one_byte_more_does_not():
    desk = Desk(max_packet_bytes=MAX_PACKET_BYTES)
    for more, ends in ((0, False), (1, True)):
        client = Offender(desk)
        client.send_bytes(NEW.connect(f"c{more}"))
        header_bytes = 3 + len(text("a")) + 1
        said = NEW.publish("a", bytes(MAX_PACKET_BYTES - header_bytes + more))
        assert len(said) == MAX_PACKET_BYTES + more
        client.send_bytes(said)
        assert client.closed == ends
