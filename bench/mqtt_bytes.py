"""MQTT packets as bytes, of 3.1.1 and of 5, for a generator of load: just what it sends and gets. No sockets.

By hand, so that one generator speaks both versions to every broker and costs less than any of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from measure import BenchError

MQTT_311 = 4
MQTT_5 = 5

PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 3, 4, 5, 6, 7
CONNACK, SUBACK, UNSUBACK, PINGRESP = 2, 9, 11, 13

PINGREQ = b"\xc0\x00"
GOODBYE = b"\xe0\x00"
RECEIVE_MAX = 1024
_NEVER_EXPIRES = b"\x11\xff\xff\xff\xff"
_REFUSED = 0x80


def connect(level: int, client_id: str, *, is_persistent: bool = False) -> bytes:
    """CONNECT without keep alive; `is_persistent`: the session survives its connection."""
    body = b"\x00\x04MQTT" + bytes((level, 0x00 if is_persistent else 0x02)) + b"\x00\x00"
    if level == MQTT_5:
        properties = b"\x21" + struct.pack(">H", RECEIVE_MAX)
        properties += _NEVER_EXPIRES if is_persistent else b""
        body += bytes((len(properties),)) + properties
    return _packet(0x10, body + _text(client_id))


def subscribe(level: int, topic_filter: str, qos: int) -> bytes:
    """SUBSCRIBE to one filter, packet id 1."""
    properties = b"\x00" if level == MQTT_5 else b""
    return _packet(0x82, b"\x00\x01" + properties + _text(topic_filter) + bytes((qos,)))


def unsubscribe(level: int, topic_filter: str) -> bytes:
    """UNSUBSCRIBE from one filter, packet id 2."""
    properties = b"\x00" if level == MQTT_5 else b""
    return _packet(0xA2, b"\x00\x02" + properties + _text(topic_filter))


def publish(
    level: int, topic: str, payload: bytes, *, qos: int, packet_id: int = 1, retain: bool = False
) -> bytes:
    """PUBLISH without properties."""
    number = struct.pack(">H", packet_id) if qos else b""
    properties = b"\x00" if level == MQTT_5 else b""
    return _packet(0x30 | qos << 1 | retain, _text(topic) + number + properties + payload)


def reply(kind: int, packet_id: bytes) -> bytes:
    """PUBACK, PUBREC, PUBREL or PUBCOMP; `packet_id` as it came."""
    return bytes((kind << 4 | (0x02 if kind == PUBREL else 0), 2)) + packet_id


@dataclass(frozen=True, slots=True)
class Came:
    """One packet that came in. `payload` is empty but for PUBLISH, `packet_id` where there is none."""

    kind: int
    qos: int
    packet_id: bytes
    payload: bytes


class Cutter:
    """Cuts what comes in into packets. Raises BenchError where a broker refuses something."""

    __slots__ = ("_kept", "_level")

    def __init__(self, level: int) -> None:
        self._level = level
        self._kept = bytearray()

    def feed(self, received: bytes) -> list[Came]:
        """The packets that are complete now."""
        kept = self._kept
        kept += received
        found: list[Came] = []
        start = 0
        while (measured := _measure(kept, start)) is not None:
            body_at, end = measured
            found.append(self._came(kept[start], bytes(kept[body_at:end])))
            start = end
        del kept[:start]
        return found

    def _came(self, first_byte: int, body: bytes) -> Came:
        kind = first_byte >> 4
        if kind == PUBLISH:
            qos = first_byte >> 1 & 3
            position = 2 + (body[0] << 8 | body[1])
            packet_id = body[position : position + 2] if qos else b""
            position += len(packet_id)
            if self._level == MQTT_5:
                # Brokers send the generator few properties: their length is one byte.
                position += 1 + body[position]
            return Came(kind, qos, packet_id, body[position:])
        if kind in (SUBACK, CONNACK):
            # The code stands last in SUBACK, second in CONNACK.
            _refuse(kind, body[-1] if kind == SUBACK else body[1])
        elif kind in (PUBACK, PUBREC, PUBCOMP) and len(body) > 2:
            _refuse(kind, body[2])
        return Came(kind, 0, body[:2], b"")


def _measure(kept: bytearray, start: int) -> tuple[int, int] | None:
    """Where the body of the packet at `start` begins and ends; None when it is not whole."""
    remaining, shift = 0, 0
    for position in range(start + 1, min(start + 5, len(kept))):
        byte = kept[position]
        remaining |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            end = position + 1 + remaining
            return (position + 1, end) if end <= len(kept) else None
    return None


def _refuse(kind: int, code: int) -> None:
    # In 3.1.1 a CONNACK refuses with 1 to 5.
    if code >= _REFUSED or (kind == CONNACK and code):
        raise BenchError(f"the broker refused with 0x{code:02x} (packet type {kind})")


def _packet(first_byte: int, body: bytes) -> bytes:
    remaining = len(body)
    header = bytearray((first_byte,))
    while remaining > 0x7F:
        header.append(remaining & 0x7F | 0x80)
        remaining >>= 7
    header.append(remaining)
    return bytes(header) + body


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">H", len(encoded)) + encoded
