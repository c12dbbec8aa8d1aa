"""Walk an MQTT 5 packet and check every text in it, before the codec turns bytes into strings.

Needed because the codec trusts its input to be UTF-8 and panics where it is not. The walk also
refuses what the codec lets pass: NUL in a text (MQTT-1.5.4-2), reserved bits, texts that reach over
the end of their section. Pure; it checks and returns nothing.
"""

from __future__ import annotations

from shoal_broker.errors import ProtocolError

DEFAULT_MAX_PACKET_BYTES = 1 << 20

MALFORMED = 0x81
PROTOCOL_VIOLATION = 0x82

CONNECT, PUBLISH, SUBSCRIBE, UNSUBSCRIBE = 1, 3, 8, 10

_WILL, _WILL_DETAILS, _PASSWORD, _USER_NAME = 0x04, 0x38, 0x40, 0x80
_SUBSCRIBE_FLAGS = 0x02
_MAX_QOS, _RETAIN_HANDLING, _SUBSCRIBE_RESERVED = 0x03, 0x30, 0xC0

# MQTT 5, table 2-4. A number is a size in bytes.
_TEXT, _PAIR, _BINARY, _VARINT = "text", "pair", "binary", "varint"
_PROPERTIES: dict[int, int | str] = {
    0x01: 1,
    0x02: 4,
    0x03: _TEXT,
    0x08: _TEXT,
    0x09: _BINARY,
    0x0B: _VARINT,
    0x11: 4,
    0x12: _TEXT,
    0x13: 2,
    0x15: _TEXT,
    0x16: _BINARY,
    0x17: 1,
    0x18: 4,
    0x19: 1,
    0x1A: _TEXT,
    0x1C: _TEXT,
    0x1F: _TEXT,
    0x21: 2,
    0x22: 2,
    0x23: 2,
    0x24: 1,
    0x25: 1,
    0x26: _PAIR,
    0x27: 4,
    0x28: 1,
    0x29: 1,
    0x2A: 1,
}


def check_text(first_byte: int, body: memoryview) -> None:
    """Check the packet with this first byte and this body (what follows the fixed header).

    Raises ProtocolError 0x81 where a text is not UTF-8, contains NUL or does not fit.
    """
    walk = _Walk(body)
    match first_byte >> 4:
        case 1:
            _connect(walk)
        case 3:
            walk.text()
            if first_byte & 0x06:
                walk.skip(2)
            walk.properties()
        case 8 | 9 | 10 | 11 as kind:
            if kind in (SUBSCRIBE, UNSUBSCRIBE) and first_byte & 0x0F != _SUBSCRIBE_FLAGS:
                raise ProtocolError(MALFORMED, "the flags of the fixed header are wrong")
            _subscriptions(walk, kind)
        case 2:
            walk.skip(2)
            walk.optional_properties()
        case 4 | 5 | 6 | 7:
            walk.skip(2)
            _reason(walk)
        case 14 | 15:
            _reason(walk)
        case _:
            pass


def _reason(walk: _Walk) -> None:
    if walk.left:
        walk.skip(1)
        walk.optional_properties()


def _subscriptions(walk: _Walk, kind: int) -> None:
    walk.skip(2)
    walk.properties()
    while walk.left and kind in (SUBSCRIBE, UNSUBSCRIBE):
        walk.text()
        if kind == SUBSCRIBE:
            _check_options(walk.number(1))


def _check_options(options: int) -> None:
    if options & _SUBSCRIBE_RESERVED:
        raise ProtocolError(MALFORMED, "a reserved bit of a subscription is set")
    if options & _MAX_QOS == _MAX_QOS or options & _RETAIN_HANDLING == _RETAIN_HANDLING:
        raise ProtocolError(PROTOCOL_VIOLATION, "there is no QoS 3, and no retain handling 3")


def _connect(walk: _Walk) -> None:
    # MQTT 3.1 called itself MQIsdp; it is refused as a version, not as garbage.
    if walk.text() not in ("MQTT", "MQIsdp"):
        raise ProtocolError(MALFORMED, "this is not MQTT")
    level = walk.number(1)
    if level != 5:  # noqa: PLR2004 - the protocol level of MQTT 5
        raise ProtocolError(0x84, f"MQTT level {level} is not spoken here", protocol_level=level)
    flags = walk.number(1)
    if flags & 0x01:
        raise ProtocolError(MALFORMED, "the reserved flag of CONNECT is set")
    if flags & _WILL_DETAILS and not flags & _WILL:
        raise ProtocolError(MALFORMED, "CONNECT describes a will that it does not have")
    walk.skip(2)
    walk.properties()
    walk.text()
    if flags & _WILL:
        walk.properties()
        walk.text()
        walk.binary()
    if flags & _USER_NAME:
        walk.text()
    if flags & _PASSWORD:
        walk.binary()


class _Walk:
    """A position in a packet that never passes `end`."""

    __slots__ = ("body", "end", "position")

    def __init__(self, body: memoryview) -> None:
        self.body = body
        self.position = 0
        self.end = len(body)

    @property
    def left(self) -> bool:
        return self.position < self.end

    def skip(self, size_bytes: int) -> int:
        """Move on; the position before."""
        start = self.position
        if start + size_bytes > self.end:
            raise ProtocolError(MALFORMED, "a packet ends before what it announces")
        self.position = start + size_bytes
        return start

    def number(self, size_bytes: int) -> int:
        start = self.skip(size_bytes)
        return int.from_bytes(self.body[start : self.position], "big")

    def varint(self) -> int:
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 - no continuation bit
                return value
        raise ProtocolError(MALFORMED, "a variable byte integer is longer than 4 bytes")

    def binary(self) -> None:
        self.skip(self.number(2))

    def text(self) -> str:
        size_bytes = self.number(2)
        start = self.skip(size_bytes)
        try:
            text = str(self.body[start : self.position], "utf-8")
        except UnicodeDecodeError as exc:
            raise ProtocolError(MALFORMED, "a text is not UTF-8") from exc
        if "\0" in text:
            raise ProtocolError(MALFORMED, "a text contains NUL")
        return text

    def optional_properties(self) -> None:
        """Acknowledgements may leave out the property length when there are none."""
        if self.left:
            self.properties()

    def properties(self) -> None:
        packet_end = self.end
        size_bytes = self.varint()
        if self.position + size_bytes > packet_end:
            raise ProtocolError(MALFORMED, "properties reach over the end of their packet")
        self.end = self.position + size_bytes
        while self.left:
            self._property()
        self.end = packet_end

    def _property(self) -> None:
        identifier = self.varint()
        match _PROPERTIES.get(identifier):
            case int(size_bytes):
                self.skip(size_bytes)
            case "text":
                self.text()
            case "pair":
                self.text()
                self.text()
            case "binary":
                self.binary()
            case "varint":
                self.varint()
            case _:
                raise ProtocolError(MALFORMED, f"there is no property {identifier}")
