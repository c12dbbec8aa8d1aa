"""MQTT packets written by hand, right or wrong: bytes of both versions that no codec had to agree to."""

from __future__ import annotations

import struct


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(data)) + data


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def framed(first_byte: int, body: bytes) -> bytes:
    return bytes([first_byte]) + varint(len(body)) + body


class Wire:
    """What a client says in one version of MQTT (4 is 3.1.1). Texts may be any bytes."""

    def __init__(self, level: int) -> None:
        self.level = level

    def properties(self, data: bytes) -> bytes:
        return varint(len(data)) + data if self.level == 5 else b""

    def connect(
        self,
        client_id: str | bytes = "c",
        *,
        flags: int = 0x02,
        keep_alive: int = 60,
        properties: bytes = b"",
        rest: bytes = b"",
        name: str = "MQTT",
    ) -> bytes:
        head = text(name) + bytes([self.level, flags]) + struct.pack(">H", keep_alive)
        return framed(0x10, head + self.properties(properties) + text(client_id) + rest)

    def will(self, topic: str | bytes, payload: bytes, properties: bytes = b"") -> bytes:
        """For `rest` of a CONNECT with will flags."""
        return self.properties(properties) + text(topic) + text(payload)

    def publish(
        self,
        topic: str | bytes,
        payload: bytes = b"",
        *,
        flags: int = 0,
        packet_id: int = 1,
        properties: bytes = b"",
    ) -> bytes:
        """`flags`: 8 DUP, 2 QoS 1, 4 QoS 2, 1 retain."""
        number = struct.pack(">H", packet_id) if flags & 0x06 else b""
        return framed(0x30 | flags, text(topic) + number + self.properties(properties) + payload)

    def subscribe(
        self, *wanted: tuple[str | bytes, int], packet_id: int = 1, properties: bytes = b""
    ) -> bytes:
        body = b"".join(text(pattern) + bytes([options]) for pattern, options in wanted)
        return framed(0x82, struct.pack(">H", packet_id) + self.properties(properties) + body)

    def unsubscribe(
        self, *patterns: str | bytes, packet_id: int = 1, properties: bytes = b""
    ) -> bytes:
        body = b"".join(map(text, patterns))
        return framed(0xA2, struct.pack(">H", packet_id) + self.properties(properties) + body)

    def acknowledge(self, first_byte: int, packet_id: int, more: bytes = b"") -> bytes:
        """0x40 PUBACK, 0x50 PUBREC, 0x62 PUBREL, 0x70 PUBCOMP."""
        return framed(first_byte, struct.pack(">H", packet_id) + more)

    def ping(self) -> bytes:
        return b"\xc0\x00"

    def goodbye(self, more: bytes = b"") -> bytes:
        return framed(0xE0, more)
