"""Messages and wills as the bytes that are stored, and back: PUBLISH packets, as MQTT 5 writes them. Pure."""

from __future__ import annotations

from enum import IntEnum

from shoal_broker.codec import LARGEST_PACKET_BYTES, PacketReader, PublishPacket, Will, encode
from shoal_broker.errors import ProtocolError
from shoal_broker.server.ledger import Ledger
from shoal_broker.server.messages import Message, counted_bytes, from_will

ANY_PACKET_ID = 1
"""A QoS 1 or 2 packet must have one; the one of a stored packet means nothing."""


class Kind(IntEnum):
    """What a row of `queued` is."""

    MESSAGE = 0
    """Waits, or was sent and is not acknowledged."""
    OWED = 1
    """A retained message that is due for a new subscription."""
    RELEASED = 2
    """PUBREC came; PUBCOMP did not yet."""


def packet_of(message: Message) -> bytes:
    """What is stored of a message, beside its publisher and its expiry."""
    content = message.content
    names_topic = content.topic == message.topic and content.topic_alias is None
    if names_topic and (content.packet_id is not None or not int(content.qos)):
        return encode(content)
    return encode(
        PublishPacket(
            message.topic,
            content.payload,
            qos=content.qos,
            retain=content.retain,
            packet_id=ANY_PACKET_ID if int(content.qos) else None,
            payload_format_indicator=content.payload_format_indicator,
            message_expiry_interval=content.message_expiry_interval,
            content_type=content.content_type,
            response_topic=content.response_topic,
            correlation_data=content.correlation_data,
            user_properties=content.user_properties,
        )
    )


def message_of(
    packet: bytes, publisher: str, expires_at_s: float | None, ledger: Ledger
) -> Message:
    """The message of a stored packet. Raises ProtocolError when it is none."""
    content = _read(packet)
    size_bytes = counted_bytes(content, len(packet))
    return Message(content.topic, content, publisher, expires_at_s, size_bytes, ledger)


def packet_of_will(will: Will) -> bytes:
    """What is stored of a will, beside its delay."""
    return encode(from_will(will, "", 0.0).content)


def will_of(packet: bytes, delay_s: int) -> Will:
    """The will of a stored packet. Raises ProtocolError when it is none."""
    content = _read(packet)
    return Will(
        content.topic,
        payload=content.payload,
        qos=content.qos,
        retain=content.retain,
        payload_format_indicator=content.payload_format_indicator,
        message_expiry_interval=content.message_expiry_interval,
        content_type=content.content_type,
        response_topic=content.response_topic,
        correlation_data=content.correlation_data,
        will_delay_interval=delay_s,
        user_properties=content.user_properties,
    )


def _read(packet: bytes) -> PublishPacket:
    reader = PacketReader(LARGEST_PACKET_BYTES)
    reader.feed(packet)
    content = reader.next_packet()
    if not isinstance(content, PublishPacket) or reader.packet_bytes != len(packet):
        raise ProtocolError(0x81, "a stored message is no PUBLISH packet")
    return content
