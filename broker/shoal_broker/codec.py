"""The one door to the `mqtt5` codec: bytes to checked packets and back. No sessions, no I/O.

Nobody else imports `mqtt5`; the packet types are re-exported here. What the codec does not check
itself is checked around it, in this order: the size from the fixed header, every text (`packet_text`),
the codec, then packet ids, topics and filters. Whatever the bytes are, the answer is a packet or a
`ProtocolError` with its MQTT 5 reason code, never another exception.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NoReturn

import mqtt5
from mqtt5 import (
    AuthPacket,
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    Packet,
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
    RetainHandling,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
    TopicFilter,
    UnsubAckPacket,
    UnsubAckReasonCode,
    UnsubscribePacket,
    Will,
)

from shoal_broker.bus_errors import TopicError
from shoal_broker.errors import EncodeError, ProtocolError
from shoal_broker.packet_text import (
    CONNECT,
    DEFAULT_MAX_PACKET_BYTES,
    MALFORMED,
    PROTOCOL_VIOLATION,
    PUBLISH,
    check_text,
)
from shoal_broker.topic_filter import check_filter, check_topic

__all__ = [
    "DEFAULT_MAX_PACKET_BYTES",
    "LARGEST_PACKET_BYTES",
    "AuthPacket",
    "ConnAckPacket",
    "ConnAckReasonCode",
    "ConnectPacket",
    "DisconnectPacket",
    "DisconnectReasonCode",
    "Packet",
    "PacketReader",
    "PingReqPacket",
    "PingRespPacket",
    "PubAckPacket",
    "PubAckReasonCode",
    "PubCompPacket",
    "PubCompReasonCode",
    "PubRecPacket",
    "PubRecReasonCode",
    "PubRelPacket",
    "PubRelReasonCode",
    "PublishPacket",
    "QoS",
    "RetainHandling",
    "SubAckPacket",
    "SubAckReasonCode",
    "SubscribePacket",
    "TopicFilter",
    "UnsubAckPacket",
    "UnsubAckReasonCode",
    "UnsubscribePacket",
    "Will",
    "decode",
    "encode",
    "refused_version",
]

LARGEST_PACKET_BYTES = 268_435_460
"""A fixed header of 5 bytes and the largest remaining length (MQTT 5, 1.5.5)."""

_TOPIC_FILTER_INVALID = 0x8F
_TOPIC_NAME_INVALID = 0x90
_TOPIC_ALIAS_INVALID = 0x94
_PACKET_TOO_LARGE = 0x95

# The codec says every refusal with a ValueError; these are not "malformed" (0x81) in MQTT 5.
# Properties of a PUBLISH that are numbers of a fixed size: payload format, message expiry, topic alias.
_NUMBERS = {0x01: 1, 0x02: 4, 0x23: 2}
_SUBSCRIPTION_ID = 0x0B
_PUBACK_BYTE = 0x40
# QoS 0, QoS 1; with RETAIN they are one more. Neither a duplicate nor QoS 2: of those there are few.
_PLAIN_PUBLISHES = (0x30, 0x32)
# A view costs as much as copying this.
_COPIED_BYTES = 4096

_OTHER_REASONS = (
    ("Topic alias must be != 0", _TOPIC_ALIAS_INVALID),
    ("Duplicate value", PROTOCOL_VIOLATION),
    ("must be != 0", PROTOCOL_VIOLATION),
    ("Topic alias must be set", PROTOCOL_VIOLATION),
    ("Invalid boolean", PROTOCOL_VIOLATION),
)


class PacketReader:
    """Cuts a byte stream into packets. After a ProtocolError the stream cannot be read on.

    `packet_bytes` is the size on the wire of the packet returned last. `plain_packet` is that packet if it
    was a small PUBLISH without properties, None otherwise; its topic ends at `plain_topic_end`. `decode` reads
    one whole packet (its bytes, the size of its fixed header): another version of MQTT than 5 puts its own
    there, and then may say whether its PUBLISH has properties: what is plain is read the short way.
    """

    __slots__ = (
        "_bytes",
        "_decode",
        "_position",
        "has_properties",
        "max_packet_bytes",
        "packet_bytes",
        "plain_packet",
        "plain_topic_end",
    )

    def __init__(self, max_packet_bytes: int = DEFAULT_MAX_PACKET_BYTES) -> None:
        self.max_packet_bytes = max_packet_bytes
        self.packet_bytes = 0
        self._decode: Callable[[bytes | memoryview, int], Packet] = decode
        self.has_properties: bool | None = True
        """None: nobody has said, and there is no short way."""
        self.plain_packet: bytes | None = None
        self.plain_topic_end = 0
        self._bytes: bytes | bytearray = b""
        self._position = 0

    @property
    def decode(self) -> Callable[[bytes | memoryview, int], Packet]:
        """What reads one whole packet."""
        return self._decode

    @decode.setter
    def decode(self, new: Callable[[bytes | memoryview, int], Packet]) -> None:
        self._decode = new
        self.has_properties = True if new is decode else None

    @property
    def starts_with_connect(self) -> bool:
        """Whether what was not taken yet looks like a CONNECT."""
        return self._position < len(self._bytes) and self._bytes[self._position] == CONNECT << 4

    def feed(self, received: bytes) -> None:
        """Add what arrived. What is kept is bounded by one packet and one call's bytes."""
        if self._position == len(self._bytes):
            self._bytes = received
        else:
            if isinstance(self._bytes, bytes):
                self._bytes = bytearray(self._bytes)
            del self._bytes[: self._position]
            self._bytes += received
        self._position = 0

    def next_packet(self) -> Packet | None:
        """The next complete packet, None when more bytes are needed. Raises ProtocolError."""
        buffered, start = self._bytes, self._position
        available = len(buffered) - start
        if available < 2:  # noqa: PLR2004 - the shortest packet
            return None
        remaining = buffered[start + 1]
        header_bytes = 2
        if remaining > 0x7F:  # noqa: PLR2004 - continued in the next byte
            measured = _long_remaining_length(buffered, start, available)
            if measured is None:
                return None
            remaining, header_bytes = measured
        total = header_bytes + remaining
        if total > self.max_packet_bytes:
            raise ProtocolError(
                _PACKET_TOO_LARGE, f"a packet of {total} bytes; {self.max_packet_bytes} may be sent"
            )
        if available < total:
            return None
        self.plain_packet = None
        if remaining == 2 and buffered[start] == _PUBACK_BYTE:  # noqa: PLR2004 - a bare packet id
            packet_id = buffered[start + 2] << 8 | buffered[start + 3]
            _check_packet_id(packet_id)
            self._position = start + total
            self.packet_bytes = total
            return PubAckPacket(packet_id)
        if total <= _COPIED_BYTES:
            packet = bytes(buffered[start : start + total])
            has_properties = self.has_properties
            topic_end = (
                0
                if has_properties is None
                else _plain_topic_end(packet, header_bytes, has_properties)
            )
            if topic_end:
                self._position = start + total
                self.packet_bytes = total
                self.plain_packet = packet
                self.plain_topic_end = topic_end
                if has_properties:
                    # Its stub asks for a view; it reads bytes as well.
                    return mqtt5.read(packet)[0]  # type: ignore[arg-type]
                return _plain_publish(packet, header_bytes + 2, topic_end)
            decoded = self._decode(packet, header_bytes)
        else:
            with memoryview(buffered) as view, view[start : start + total] as large:
                decoded = self._decode(large, header_bytes)
        self._position = start + total
        self.packet_bytes = total
        return decoded


def encode(packet: Packet) -> bytes:
    """The packet on the wire. Raises EncodeError where it fits in none.

    Wrong texts, topics, filters and numbers do not get here: building the packet raises ValueError.
    """
    # The codec asserts its 28-bit lengths instead of refusing: the payload is all that gets there.
    if type(packet) is PublishPacket and len(packet.payload) > LARGEST_PACKET_BYTES - (1 << 20):
        raise EncodeError(f"a payload of {len(packet.payload)} bytes fits in no packet")
    try:
        return packet.write()
    except (ValueError, OverflowError, TypeError) as exc:
        raise EncodeError(f"{type(packet).__name__}: {exc}") from exc
    except BaseException as exc:
        if not _is_panic(exc):
            raise
        raise EncodeError(f"{type(packet).__name__}: {exc}") from exc


def puback(packet_id: int) -> bytes:
    """The PUBACK of success: every message that comes in costs one."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def refused_version(protocol_level: int) -> bytes:
    """The CONNACK that a client which asked for `protocol_level` understands as a refusal.

    A bridge of mosquitto sets the highest bit; refused in the words of 3.1.1 it asks again without.
    """
    if protocol_level & 0x7F in (3, 4):
        # MQTT 3.1.1, 3.2.2.3: return code 1, unacceptable protocol version.
        return b"\x20\x02\x00\x01"
    return encode(ConnAckPacket(reason_code=ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION))


def _long_remaining_length(
    buffered: bytes | bytearray, start: int, available: int
) -> tuple[int, int] | None:
    """The remaining length and the size of the fixed header; None when bytes are missing."""
    remaining = 0
    for index in range(1, 5):
        if index >= available:
            return None
        byte = buffered[start + index]
        remaining |= (byte & 0x7F) << (7 * (index - 1))
        if byte < 0x80:  # noqa: PLR2004 - no continuation bit
            if byte == 0:
                raise ProtocolError(MALFORMED, "a remaining length with a useless byte")
            return remaining, index + 1
    raise ProtocolError(MALFORMED, "a remaining length of more than 4 bytes")


def decode(packet: bytes | memoryview, header_bytes: int) -> Packet:
    """The one MQTT 5 packet that these bytes are; its size was checked. Raises ProtocolError."""
    first_byte = packet[0]
    if not _has_checked_text(packet, first_byte, header_bytes):
        with memoryview(packet) as whole, whole[header_bytes:] as body:
            check_text(first_byte, body)
    try:
        # Its stub asks for a view; it reads bytes as well.
        decoded, size_bytes = mqtt5.read(packet)  # type: ignore[arg-type]
    except (ValueError, IndexError) as exc:
        _refuse(str(exc), exc)
    except BaseException as exc:
        if not _is_panic(exc):
            raise
        _refuse("the codec gave up", exc)
    if size_bytes != len(packet):
        raise ProtocolError(MALFORMED, "a packet is shorter than its remaining length")
    _check_values(decoded)
    return decoded


def _plain_topic_end(packet: bytes, header_bytes: int, has_properties: bool) -> int:  # noqa: FBT001 - as the reader has it
    """Where the topic ends in a PUBLISH that the codec can read as it is; 0 for every other packet.

    It has no properties, and an ASCII topic, flags and an id with which nothing is wrong: what a busy
    broker sees most.
    """
    first_byte = packet[0]
    if first_byte & 0xFE not in _PLAIN_PUBLISHES:
        return 0
    start = header_bytes + 2
    if len(packet) <= start:
        return 0
    end = topic_end = start + (packet[header_bytes] << 8 | packet[header_bytes + 1])
    if first_byte & 0x02:
        end += 2
    if has_properties:
        if end >= len(packet) or packet[end]:
            return 0
    elif end > len(packet):
        return 0
    if end != topic_end and not (packet[topic_end] or packet[topic_end + 1]):
        return 0
    topic = packet[start:topic_end]
    if not topic.isascii() or b"\0" in topic or b"+" in topic or b"#" in topic:
        return 0
    return topic_end if topic else 0


def _plain_publish(packet: bytes, topic_start: int, topic_end: int) -> PublishPacket:
    """What such a PUBLISH is when it has not even a length of properties."""
    topic = packet[topic_start:topic_end].decode("ascii")
    retain = bool(packet[0] & 0x01)
    if not packet[0] & 0x02:
        return PublishPacket(topic, packet[topic_end:], retain=retain)
    packet_id = packet[topic_end] << 8 | packet[topic_end + 1]
    return PublishPacket(
        topic, packet[topic_end + 2 :], qos=QoS.AT_LEAST_ONCE, retain=retain, packet_id=packet_id
    )


def _has_checked_text(packet: bytes | memoryview, first_byte: int, header_bytes: int) -> bool:
    """The short way for the packets that a busy broker sees: True when the walk can be saved.

    That is a short acknowledgement, and a PUBLISH without text in its properties, whose topic is ASCII
    without NUL.
    """
    kind = first_byte >> 4
    size_bytes = len(packet)
    if kind != PUBLISH:
        return 4 <= kind <= 7 and size_bytes <= 5  # noqa: PLR2004 - PUBACK to PUBCOMP without properties
    if size_bytes < header_bytes + 5:
        return False
    topic_start = header_bytes + 2
    topic_end = topic_start + (packet[header_bytes] << 8 | packet[header_bytes + 1])
    properties_at = topic_end + 2 if first_byte & 0x06 else topic_end
    if properties_at >= size_bytes:
        return False
    if properties_bytes := packet[properties_at]:
        properties_end = properties_at + 1 + properties_bytes
        if properties_end > size_bytes:
            return False
        if not _are_numbers(bytes(packet[properties_at + 1 : properties_end])):
            return False
    topic = bytes(packet[topic_start:topic_end])
    return topic.isascii() and b"\0" not in topic


# A subscription's messages all have the same ones.
@lru_cache(maxsize=1024)
def _are_numbers(properties: bytes) -> bool:
    """Whether these properties of a PUBLISH are whole and hold no text. False: let the walk look."""
    position, end = 0, len(properties)
    while position < end:
        identifier = properties[position]
        if identifier == _SUBSCRIPTION_ID:
            # A variable byte integer: as far as the byte without a continuation bit.
            last = min(position + 4, end - 1)
            position += 1
            while position < last and properties[position] & 0x80:
                position += 1
            if position > last or properties[position] & 0x80:
                return False
            position += 1
        elif (size_bytes := _NUMBERS.get(identifier)) is not None:
            position += 1 + size_bytes
        else:
            return False
    return position == end


def _check_values(packet: Packet) -> None:
    """What the codec reads without looking: packet ids, topics, filters."""
    match packet:
        case PublishPacket():
            _check_publish(packet)
        case ConnectPacket():
            if packet.authentication_method is None and packet.authentication_data is not None:
                raise ProtocolError(PROTOCOL_VIOLATION, "data of authentication without a method")
            if packet.will is not None:
                _check_topic(packet.will.topic)
                _check_details(packet.will)
        case SubscribePacket():
            _check_subscribe(packet)
        case UnsubscribePacket():
            _check_packet_id(packet.packet_id)
            if not packet.patterns:
                raise ProtocolError(PROTOCOL_VIOLATION, "UNSUBSCRIBE without a topic filter")
            for pattern in packet.patterns:
                _check_filter(pattern)
        case _:
            packet_id = getattr(packet, "packet_id", None)
            if packet_id is not None:
                _check_packet_id(packet_id)


def _check_publish(packet: PublishPacket) -> None:
    topic = packet.topic
    if "+" in topic or "#" in topic or "\0" in topic:
        raise ProtocolError(_TOPIC_NAME_INVALID, f"{topic!r} is not a topic to publish to")
    if packet.packet_id is not None:
        _check_packet_id(packet.packet_id)
    elif packet.duplicate:
        raise ProtocolError(MALFORMED, "a QoS 0 message cannot be a duplicate")
    _check_details(packet)


def _check_subscribe(packet: SubscribePacket) -> None:
    _check_packet_id(packet.packet_id)
    if not packet.topic_filters:
        raise ProtocolError(PROTOCOL_VIOLATION, "SUBSCRIBE without a topic filter")
    for wanted in packet.topic_filters:
        _check_filter(wanted.pattern)
        if wanted.no_local and wanted.pattern.startswith("$share/"):
            raise ProtocolError(PROTOCOL_VIOLATION, "no-local on a shared subscription")


def _check_details(message: PublishPacket | Will) -> None:
    if message.payload_format_indicator > 1:
        raise ProtocolError(PROTOCOL_VIOLATION, "there is no such payload format")
    if message.response_topic is not None:
        _check_topic(message.response_topic, PROTOCOL_VIOLATION)


def _check_packet_id(packet_id: int) -> None:
    if packet_id == 0:
        raise ProtocolError(PROTOCOL_VIOLATION, "a packet id of 0")


def _check_topic(topic: str, reason_code: int = _TOPIC_NAME_INVALID) -> None:
    try:
        check_topic(topic)
    except TopicError as exc:
        raise ProtocolError(reason_code, str(exc)) from exc


def _check_filter(pattern: str) -> None:
    try:
        check_filter(pattern)
    except TopicError as exc:
        raise ProtocolError(_TOPIC_FILTER_INVALID, str(exc)) from exc


def _refuse(complaint: str, exc: BaseException) -> NoReturn:
    for known, reason_code in _OTHER_REASONS:
        if known in complaint:
            raise ProtocolError(reason_code, complaint) from exc
    raise ProtocolError(MALFORMED, complaint) from exc


def _is_panic(exc: BaseException) -> bool:
    """A panic of the Rust codec is a BaseException of a class that cannot be imported."""
    return type(exc).__module__ == "pyo3_runtime"
