"""MQTT 3.1.1 at the codec's edge: its packets to those of MQTT 5 and back. No sessions, no I/O.

A packet that comes in is rewritten as the same packet in MQTT 5 and read by `codec`, so that one guard
stands before both versions; here only what 3.1.1 forbids beyond that is refused. A packet that goes out
is written here, without what 3.1.1 has no words for (docs/decisions/0018).
"""

from shoal_broker.codec import (
    AuthPacket,
    ConnAckPacket,
    ConnAckReasonCode,
    DisconnectPacket,
    Packet,
    PingRespPacket,
    PubAckPacket,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    RetainHandling,
    SubAckPacket,
    SubscribePacket,
    UnsubAckPacket,
)
from shoal_broker.codec import decode as decode_mqtt5
from shoal_broker.errors import EncodeError, ProtocolError
from shoal_broker.packet_text import CONNECT, MALFORMED, PROTOCOL_VIOLATION
from shoal_broker.topic_filter import MAX_TOPIC_BYTES

LEVEL = 4
"""The protocol level in CONNECT (MQTT 3.1.1, 3.1.2.2)."""

LARGEST_PAYLOAD_BYTES = 0x0FFF_FFFF - 2 - MAX_TOPIC_BYTES - 2
"""What is left of the largest remaining length beside the longest topic and a packet id."""

_CLIENT_ID_NOT_VALID = 0x85
_TOPIC_NAME_INVALID = 0x90

_NAME_AND_LEVEL = b"\x00\x04MQTT\x04"
_FLAGS_AT = len(_NAME_AND_LEVEL)
_CLIENT_ID_AT = _FLAGS_AT + 3
_CLEAN_SESSION, _WILL, _PASSWORD, _USER_NAME = 0x02, 0x04, 0x40, 0x80

_NO_PROPERTIES = b"\x00"
# Session expiry interval 0xFFFFFFFF: what clean session 0 asks for never ends by itself (MQTT 5, 3.1.2.4).
_NEVER_EXPIRES = b"\x05\x11\xff\xff\xff\xff"

# MQTT 3.1.1, table 3.1. Where none of the return codes fits, the connection is closed instead (3.2.2.3).
_RETURN_CODES = {
    int(ConnAckReasonCode.SUCCESS): 0,
    int(ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION): 1,
    int(ConnAckReasonCode.CLIENT_ID_NOT_VALID): 2,
    int(ConnAckReasonCode.UNSPECIFIED_ERROR): 3,
    int(ConnAckReasonCode.IMPLEMENTATION_SPECIFIC_ERROR): 3,
    int(ConnAckReasonCode.SERVER_UNAVAILABLE): 3,
    int(ConnAckReasonCode.SERVER_BUSY): 3,
    int(ConnAckReasonCode.QUOTA_EXCEEDED): 3,
    int(ConnAckReasonCode.USE_ANOTHER_SERVER): 3,
    int(ConnAckReasonCode.SERVER_MOVED): 3,
    int(ConnAckReasonCode.CONNECTION_RATE_EXCEEDED): 3,
    int(ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD): 4,
    int(ConnAckReasonCode.NOT_AUTHORIZED): 5,
    int(ConnAckReasonCode.BANNED): 5,
}
_SUBSCRIBE_FAILURE = 0x80

# The fixed headers of the packets that are a packet id and nothing else.
_ACKNOWLEDGEMENTS: dict[type[Packet], bytes] = {
    PubAckPacket: b"\x40\x02",
    PubRecPacket: b"\x50\x02",
    PubRelPacket: b"\x62\x02",
    PubCompPacket: b"\x70\x02",
    UnsubAckPacket: b"\xb0\x02",
}


def is_spoken_in(packet: bytes | memoryview, header_bytes: int) -> bool:
    """Whether this first packet of a connection is the CONNECT of a client of MQTT 3.1.1."""
    level_end = header_bytes + _FLAGS_AT
    return packet[0] == CONNECT << 4 and packet[header_bytes:level_end] == _NAME_AND_LEVEL


def decode(packet: bytes | memoryview, header_bytes: int) -> Packet:
    """What one whole packet of a client of 3.1.1 is in MQTT 5. Raises ProtocolError.

    The codes of the errors are those of MQTT 5; a client of 3.1.1 hears of them only in CONNACK.
    """
    kind = packet[0] >> 4
    with memoryview(packet) as whole, whole[header_bytes:] as body:
        match kind:
            case 3:
                return _decode(_publish(packet[0], body))
            case 4 | 5 | 6 | 7:
                if len(body) != 2:  # noqa: PLR2004 - a packet id
                    raise ProtocolError(MALFORMED, "an acknowledgement is not of 2 bytes")
            case 1:
                return _decode(_connect(packet[0], body))
            case 8:
                return _plain_subscribe(_decode(_framed(packet[0], body[:2], b"\0", body[2:])))
            case 10:
                return _decode(_framed(packet[0], body[:2], b"\0", body[2:]))
            case 12 | 14:
                if body:
                    raise ProtocolError(MALFORMED, "PINGREQ and DISCONNECT are of 0 bytes")
            case _:
                raise ProtocolError(MALFORMED, f"a client sends no packet of type {kind}")
    return decode_mqtt5(packet, header_bytes)


def encode(packet: Packet) -> bytes:
    """What the broker says with `packet`, in 3.1.1; empty where that has no word for it.

    No word is there for a DISCONNECT of the server, for AUTH, and for a CONNACK with a reason that is no
    return code: the connection is closed without. A refusal of a PUBLISH is lost: the PUBACK says nothing
    but that the message was received. Raises EncodeError for what does not fit.
    """
    match packet:
        case PublishPacket():
            return _encode_publish(packet)
        case PubAckPacket() | PubRecPacket() | PubRelPacket() | PubCompPacket() | UnsubAckPacket():
            return _ACKNOWLEDGEMENTS[type(packet)] + packet.packet_id.to_bytes(2, "big")
        case SubAckPacket():
            codes = bytes(min(int(code), _SUBSCRIBE_FAILURE) for code in packet.reason_codes)
            return _framed(0x90, packet.packet_id.to_bytes(2, "big"), codes)
        case ConnAckPacket():
            return _encode_connack(packet)
        case PingRespPacket():
            return b"\xd0\x00"
        case DisconnectPacket() | AuthPacket():
            return b""
        case _:
            raise EncodeError(f"{type(packet).__name__} is nothing that a server sends")


# --- in


def _publish(first_byte: int, body: memoryview) -> bytes:
    topic_end = _end_of_field(body, 0)
    if topic_end == 2:  # noqa: PLR2004 - nothing but its length; in MQTT 5 an alias may stand for it
        raise ProtocolError(_TOPIC_NAME_INVALID, "a PUBLISH without a topic")
    at = topic_end + 2 if first_byte & 0x06 else topic_end
    if at > len(body):
        raise ProtocolError(MALFORMED, "a packet ends before what it announces")
    return _framed(first_byte, body[:at], _NO_PROPERTIES, body[at:])


def _connect(first_byte: int, body: memoryview) -> bytes:
    if body[:_FLAGS_AT] != _NAME_AND_LEVEL:
        raise ProtocolError(PROTOCOL_VIOLATION, "another CONNECT, and of another version")
    client_id_end = _end_of_field(body, _CLIENT_ID_AT)
    flags = body[_FLAGS_AT]
    if flags & _PASSWORD and not flags & _USER_NAME:
        raise ProtocolError(PROTOCOL_VIOLATION, "a password without a user name")
    clean = flags & _CLEAN_SESSION
    if not clean and client_id_end == _CLIENT_ID_AT + 2:
        raise ProtocolError(_CLIENT_ID_NOT_VALID, "a session to be kept needs a client id")
    return _framed(
        first_byte,
        b"\x00\x04MQTT\x05",
        body[_FLAGS_AT:_CLIENT_ID_AT],
        _NO_PROPERTIES if clean else _NEVER_EXPIRES,
        body[_CLIENT_ID_AT:client_id_end],
        _NO_PROPERTIES if flags & _WILL else b"",
        body[client_id_end:],
    )


def _plain_subscribe(packet: Packet) -> Packet:
    """Refuse the bits of an option byte that mean something in MQTT 5 only (MQTT-3.8.3-4)."""
    if isinstance(packet, SubscribePacket):
        for wanted in packet.topic_filters:
            if (
                wanted.no_local
                or wanted.retain_as_published
                or wanted.retain_handling != RetainHandling.SEND_ALWAYS
            ):
                raise ProtocolError(MALFORMED, "a reserved bit of a subscription is set")
    return packet


def _end_of_field(body: memoryview, at: int) -> int:
    """Where the field with a length of 2 bytes that begins `at` ends."""
    end = at + 2
    if end <= len(body):
        end += body[at] << 8 | body[at + 1]
    if end > len(body):
        raise ProtocolError(MALFORMED, "a packet ends before what it announces")
    return end


def _decode(rewritten: bytes) -> Packet:
    header_bytes = 2
    while rewritten[header_bytes - 1] & 0x80:
        header_bytes += 1
    return decode_mqtt5(rewritten, header_bytes)


# --- out


def _encode_publish(packet: PublishPacket) -> bytes:
    first_byte = 0x30 | packet.duplicate << 3 | int(packet.qos) << 1 | packet.retain
    topic, packet_id, payload = packet.topic.encode(), packet.packet_id, packet.payload
    if len(payload) > LARGEST_PAYLOAD_BYTES:
        raise EncodeError(f"a payload of {len(payload)} bytes fits in no packet")
    variable = len(topic).to_bytes(2, "big") + topic
    if packet_id is not None:
        variable += packet_id.to_bytes(2, "big")
    return _fixed_header(first_byte, len(variable) + len(payload)) + variable + payload


def _encode_connack(packet: ConnAckPacket) -> bytes:
    return_code = _RETURN_CODES.get(int(packet.reason_code))
    if return_code is None:
        return b""
    # MQTT-3.2.2-4: with a refusal there is no session.
    return bytes((0x20, 2, packet.session_present and not return_code, return_code))


def _framed(first_byte: int, *parts: bytes | memoryview) -> bytes:
    """The parts behind their fixed header."""
    return b"".join((_fixed_header(first_byte, sum(map(len, parts))), *parts))


def _fixed_header(first_byte: int, remaining: int) -> bytes:
    if remaining < 0x80:  # noqa: PLR2004 - fits in one byte
        return bytes((first_byte, remaining))
    header = bytearray((first_byte,))
    while remaining > 0x7F:  # noqa: PLR2004 - continued in the next byte
        header.append(remaining & 0x7F | 0x80)
        remaining >>= 7
    header.append(remaining)
    return bytes(header)
