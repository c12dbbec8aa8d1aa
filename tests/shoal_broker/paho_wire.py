"""MQTT 3.1.1 as paho packs and reads it: an oracle that shares no line with ours. No sockets.

Reaches into private names of paho, whose version is pinned.
"""

from __future__ import annotations

from typing import NamedTuple

import paho.mqtt.client as paho
from paho.mqtt import _packet as paho_packet
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

V311 = paho.MQTTProtocolVersion.MQTTv311


class PahoPacker(paho.Client):
    """Packs what a client says; `packed` hands it over."""

    def __init__(self, client_id: str = "c", *, clean_session: bool = True) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or "x",
            clean_session=clean_session,
            protocol=V311,
        )
        # It refuses by itself what a test wants to see refused.
        self._client_id = client_id.encode()
        self._sock = object()  # type: ignore[assignment] - never used: nothing is written
        self._packed: list[bytes] = []

    def _packet_queue(self, command, packet, mid, qos, info=None):
        self._packed.append(bytes(packet))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def __del__(self) -> None:
        self._sock = None

    def packed(self) -> bytes:
        data = b"".join(self._packed)
        self._packed.clear()
        return data


def connect(
    client_id: str = "c",
    *,
    clean_session: bool = True,
    keep_alive: int = 60,
    will: tuple[str, bytes, int, bool] | None = None,
    user: str | None = None,
    password: bytes | None = None,
) -> bytes:
    packer = PahoPacker(client_id, clean_session=clean_session)
    if will is not None:
        packer.will_set(*will)
    if user is not None:
        packer._username = user.encode()
        packer._password = password
    packer._send_connect(keep_alive)
    return packer.packed()


def publish(
    topic: str,
    payload: bytes = b"",
    *,
    qos: int = 0,
    retain: bool = False,
    packet_id: int = 0,
    duplicate: bool = False,
) -> bytes:
    packer = PahoPacker()
    packer._send_publish(packet_id, topic.encode(), payload, qos, retain, duplicate)
    return packer.packed()


def subscribe(packet_id: int, *wanted: tuple[str, int]) -> bytes:
    packer = PahoPacker()
    packer._last_mid = packet_id - 1
    packer._send_subscribe(0, [(pattern.encode(), qos) for pattern, qos in wanted])
    return packer.packed()


def unsubscribe(packet_id: int, *patterns: str) -> bytes:
    packer = PahoPacker()
    packer._last_mid = packet_id - 1
    packer._send_unsubscribe(0, [pattern.encode() for pattern in patterns])
    return packer.packed()


def acknowledge(kind: str, packet_id: int) -> bytes:
    packer = PahoPacker()
    {
        "puback": packer._send_puback,
        "pubrec": packer._send_pubrec,
        "pubrel": packer._send_pubrel,
        "pubcomp": packer._send_pubcomp,
    }[kind](packet_id)
    return packer.packed()


def ping() -> bytes:
    packer = PahoPacker()
    packer._send_pingreq()
    return packer.packed()


def disconnect() -> bytes:
    packer = PahoPacker()
    packer._send_disconnect()
    return packer.packed()


class Heard(NamedTuple):
    """A packet of the server, as paho read it."""

    kind: str
    packet_id: int = 0
    codes: tuple[int, ...] = ()
    """Of SUBACK; of CONNACK: session present, return code."""
    topic: str = ""
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    duplicate: bool = False


def read_one(header: int, body: bytes) -> Heard:
    """One packet of the server. Raises MalformedPacket as paho does, KeyError for what it never sends."""
    match header & 0xF0:
        case 0x30:
            read = paho_packet.decode_publish(header, body, V311)
            topic = read.topic.decode()
            return Heard(
                "publish", read.mid, (), topic, read.payload, read.qos, read.retain, read.dup
            )
        case 0x20:
            answer = paho_packet.decode_connack(header, body, V311)
            return Heard("connack", codes=(answer.flags, int(answer.rc)))
        case 0x90:
            granted = paho_packet.decode_suback(header, body, V311)
            return Heard("suback", granted.mid, granted.granted_qos)
        case 0xB0:
            return Heard("unsuback", paho_packet.decode_unsuback(header, body, V311).mid)
        case 0xD0:
            assert not body
            return Heard("pingresp")
    kind, read = {
        0x40: ("puback", paho_packet.decode_puback),
        0x50: ("pubrec", paho_packet.decode_pubrec),
        0x62: ("pubrel", paho_packet.decode_pubrel),
        0x70: ("pubcomp", paho_packet.decode_pubcomp),
    }[header]
    return Heard(kind, read(header, body, V311).mid)


class Ear:
    """Cuts what a server sends into packets, as PacketReader does but for 3.1.1."""

    def __init__(self) -> None:
        self._bytes = b""

    def feed(self, received: bytes) -> None:
        self._bytes += received

    def next_packet(self) -> Heard | None:
        data = self._bytes
        remaining, at = 0, 1
        while True:
            if at >= len(data):
                return None
            remaining |= (data[at] & 0x7F) << 7 * (at - 1)
            at += 1
            if data[at - 1] < 0x80:
                break
        if len(data) < at + remaining:
            return None
        self._bytes = data[at + remaining :]
        return read_one(data[0], data[at : at + remaining])
