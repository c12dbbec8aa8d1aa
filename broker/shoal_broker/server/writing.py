"""PUBLISH packets for subscribers: what is the same for many of them is written once. No I/O.

A small packet is one piece of bytes. A large one is two: all before the payload, and the payload
itself, which everybody shares until it goes into a socket.
"""

import math
from collections.abc import Callable

from shoal_broker.codec import Packet, PublishPacket, QoS
from shoal_broker.server.messages import Delivery, Message

LARGE_PAYLOAD_BYTES = 4096
"""From here on copying costs more than a second piece does."""

QUALITIES = (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE)
LARGEST_EXPIRY_S = 0xFFFFFFFF
ROUNDING_S = 1e-6
"""What adding and subtracting the clock may cost: not a second more."""

_Encode = Callable[[Packet], bytes]
# All in which two PUBLISH packets of one message differ, but for the id: encode, QoS, RETAIN, DUP, message
# expiry, known alias, new alias, subscription identifiers.
_Look = tuple[_Encode, int, bool, bool, int | None, int | None, int | None, tuple[int, ...]]
# Before the packet id, after it (with the payload if that is small), the payload if it is large.
_Shape = tuple[bytes, bytes, bytes]


class PublishWriter:
    """Writes deliveries. It remembers one message, the last, until `forget`."""

    __slots__ = ("_message", "_shapes")

    def __init__(self) -> None:
        self._message: Message | None = None
        self._shapes: dict[_Look, _Shape] = {}

    def forget(self) -> None:
        """Let go of the message."""
        if self._message is not None:
            self._message = None
            self._shapes = {}

    def received(self, message: Message, packet: bytes, topic_end: int, encode: _Encode) -> None:
        """The message came in as `packet`, without properties and DUP: so it may go out, but for the id.

        `encode` is what would write it the same way; the topic ends at `topic_end`.
        """
        qos = packet[0] >> 1 & 3
        shape = (packet, b"", b"")
        if qos:
            shape = packet[:topic_end], packet[topic_end + 2 :], b""
        self._message = message
        self._shapes = {(encode, qos, bool(packet[0] & 1), False, None, None, None, ()): shape}

    def write(
        self,
        delivery: Delivery,
        packet_id: int | None,
        now_s: float,
        *,
        duplicate: bool,
        encode: _Encode,
        known_alias: int | None = None,
        new_alias: int | None = None,
    ) -> tuple[bytes, bytes]:
        """The PUBLISH for `delivery` in up to two pieces; `packet_id` is None for QoS 0.

        Its message has not expired. A known alias stands for the topic, a new one goes with it.
        """
        message = delivery.message
        expires_at_s = message.expires_at_s
        look = (
            encode,
            delivery.qos,
            delivery.retain,
            duplicate,
            None
            if expires_at_s is None
            else min(LARGEST_EXPIRY_S, max(0, math.ceil(expires_at_s - now_s - ROUNDING_S))),
            known_alias,
            new_alias,
            tuple(delivery.identifiers),
        )
        if message is not self._message:
            self._message = message
            self._shapes = {}
            payload = message.content.payload
            if len(payload) < LARGE_PAYLOAD_BYTES:
                # Most messages go to one subscriber.
                return encode(_packet(message, look, payload, packet_id)), b""
        shape = self._shapes.get(look)
        if shape is None:
            shape = self._shapes[look] = _shape(message, look)
        before, after, payload = shape
        if packet_id is None:
            return before, payload
        return before + packet_id.to_bytes(2, "big") + after, payload


def _shape(message: Message, look: _Look) -> _Shape:
    encode, qos, *_ = look
    payload = message.content.payload
    empty = encode(_packet(message, look, b"", 1 if qos else None))
    body_at = 2
    while empty[body_at - 1] & 0x80:
        body_at += 1
    header = empty[:1] + _remaining_length(len(empty) - body_at + len(payload))
    topic_end = body_at + 2 + (empty[body_at] << 8 | empty[body_at + 1])
    before, after = header + empty[body_at:topic_end], empty[topic_end + 2 if qos else topic_end :]
    if len(payload) < LARGE_PAYLOAD_BYTES:
        after, payload = after + payload, b""
    return (before, after, payload) if qos else (before + after, b"", payload)


def _packet(message: Message, look: _Look, payload: bytes, packet_id: int | None) -> PublishPacket:
    _, qos, retain, duplicate, expiry_s, known_alias, new_alias, identifiers = look
    content = message.content
    return PublishPacket(
        message.topic if known_alias is None else "",
        payload,
        qos=QUALITIES[qos],
        retain=retain,
        packet_id=packet_id,
        duplicate=duplicate,
        payload_format_indicator=content.payload_format_indicator,
        message_expiry_interval=expiry_s,
        content_type=content.content_type,
        response_topic=content.response_topic,
        correlation_data=content.correlation_data,
        subscription_ids=list(identifiers),
        topic_alias=new_alias if known_alias is None else known_alias,
        user_properties=content.user_properties,
    )


def _remaining_length(size_bytes: int) -> bytes:
    # MQTT 5, 1.5.5.
    digits = bytearray()
    while size_bytes > 0x7F:  # noqa: PLR2004 - what fits in one byte
        digits.append(size_bytes & 0x7F | 0x80)
        size_bytes >>= 7
    digits.append(size_bytes)
    return bytes(digits)
