"""The packets of a client in the words of `link`: configuration and messages to bytes, packets to values.

For `codec_transport`. Pure: no I/O, no packet ids of its own, and no opinion on when something is sent.
"""

from __future__ import annotations

from shoal_broker import codec
from shoal_broker.bus_errors import IdentityRefusedError, LinkError, RefusedByBrokerError
from shoal_broker.codec import (
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    PublishPacket,
    QoS,
    SubscribePacket,
    TopicFilter,
    UnsubscribePacket,
)
from shoal_broker.errors import EncodeError
from shoal_broker.link import (
    Arrival,
    Greeting,
    Inbound,
    Outbound,
    Properties,
    SessionConfig,
    Will,
)

# What we accept, said in CONNECT so that the broker drops a larger message instead of sending it again
# and again. Shoal's own are at most 96 KiB.
MAX_PACKET_BYTES = codec.DEFAULT_MAX_PACKET_BYTES
# Says in CONNECT that a bridge is coming; what asks for it is answered with who the broker is.
BRIDGE_PROPERTY = ("shoal-bridge", "1")
FAILURE_REASON = 0x80
TOPIC_NAME_INVALID = 0x90
QOS_NOT_SUPPORTED = 0x9B
SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2
REASON_TEXT_CHARS = 200

# CONNACK reasons that waiting does not cure.
IDENTITY_REASONS = frozenset(
    int(reason)
    for reason in (
        ConnAckReasonCode.CLIENT_ID_NOT_VALID,
        ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD,
        ConnAckReasonCode.NOT_AUTHORIZED,
        ConnAckReasonCode.BANNED,
        ConnAckReasonCode.BAD_AUTHENTICATION_METHOD,
    )
)
# Making a packet raises these for what MQTT 5 cannot carry.
_UNSENDABLE = (ValueError, OverflowError, TypeError, EncodeError)
_NO_PROPERTIES = Properties()
_QOS = (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE)


def connect_packet(config: SessionConfig, will: Will | None) -> bytes:
    """The CONNECT of a session that is to be found again. Raises LinkError."""
    try:
        return codec.encode(
            ConnectPacket(
                config.client_id,
                username=config.username,
                password=None if config.password is None else config.password.encode(),
                clean_start=config.clean_start,
                will=None if will is None else _will(will),
                keep_alive=config.keepalive_s,
                session_expiry_interval=config.session_expiry_s,
                receive_max=config.receive_maximum,
                max_packet_size=MAX_PACKET_BYTES,
                user_properties=[BRIDGE_PROPERTY] if config.is_bridge else [],
            )
        )
    except _UNSENDABLE as exc:
        raise LinkError(f"cannot connect: {exc}") from exc


def greeting(connack: ConnAckPacket, config: SessionConfig) -> Greeting:
    """What the broker granted. Raises IdentityRefusedError, LinkError when it granted nothing."""
    # The codec's enumerations are none of Python's: they compare and hash as numbers only when made so.
    reason = int(connack.reason_code)
    if reason in IDENTITY_REASONS:
        raise IdentityRefusedError(
            f"the broker refuses this identity: {reason_text(reason, connack.reason_str)}",
            reason_code=reason,
        )
    if reason >= FAILURE_REASON:
        raise LinkError(
            f"the broker refuses the connection: {reason_text(reason, connack.reason_str)}"
        )
    keepalive_s = connack.server_keep_alive
    return Greeting(
        session_present=connack.session_present,
        receive_maximum=connack.receive_max,
        maximum_packet_bytes=connack.max_packet_size,
        retain_available=connack.retain_available,
        keepalive_s=config.keepalive_s if keepalive_s is None else keepalive_s,
        user_properties=tuple(connack.user_properties),
    )


def publish_packet(message: Outbound, packet_id: int) -> bytes:
    """The PUBLISH, `packet_id` 0 for QoS 0. Raises RefusedByBrokerError for what none can carry."""
    properties = message.properties or _NO_PROPERTIES
    try:
        # The one thing in a text that the codec lets pass; a broker hangs up on it.
        if "\0" in message.topic or (message.response_topic and "\0" in message.response_topic):
            raise EncodeError("NUL in a topic")
        return codec.encode(
            PublishPacket(
                message.topic,
                message.payload,
                qos=_QOS[message.qos],
                retain=message.retain,
                packet_id=packet_id or None,
                message_expiry_interval=message.expiry_s,
                response_topic=message.response_topic,
                correlation_data=message.correlation,
                payload_format_indicator=properties.payload_format,
                content_type=properties.content_type,
                user_properties=list(properties.user),
            )
        )
    except _UNSENDABLE as exc:
        raise RefusedByBrokerError(
            f"{message.topic}: cannot be sent: {exc}", reason_code=TOPIC_NAME_INVALID
        ) from exc


def subscribe_packet(
    topic_filter: str,
    qos: int,
    subscription_id: int | None,
    packet_id: int,
    *,
    is_bridge: bool = False,
) -> bytes:
    """The SUBSCRIBE. Raises LinkError for what none can carry."""
    try:
        wanted = TopicFilter(
            topic_filter,
            max_qos=_QOS[min(qos, 1)],
            no_local=is_bridge,
            retain_as_published=is_bridge,
        )
        return codec.encode(SubscribePacket(packet_id, [wanted], subscription_id=subscription_id))
    except _UNSENDABLE as exc:
        raise LinkError(f"cannot subscribe to {topic_filter}: {exc}") from exc


def unsubscribe_packet(topic_filter: str, packet_id: int) -> bytes:
    """The UNSUBSCRIBE. Raises LinkError for what none can carry."""
    try:
        return codec.encode(UnsubscribePacket(packet_id, [topic_filter]))
    except _UNSENDABLE as exc:
        raise LinkError(f"cannot unsubscribe from {topic_filter}: {exc}") from exc


def unsupported(topic_filter: str, connack: ConnAckPacket) -> int | None:
    """The reason for which this broker would close the connection on this filter, None for none."""
    if topic_filter.startswith("$share/") and not connack.shared_subscription_available:
        return SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
    if ("+" in topic_filter or "#" in topic_filter) and not connack.wildcard_subscription_available:
        return WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED
    return None


def arrival(packet: PublishPacket, *, is_bridge: bool = False) -> Arrival:
    """A PUBLISH as it came in; `packet_id` 0 at QoS 0; with all its properties for a bridge."""
    return Arrival(
        Inbound(
            topic=packet.topic,
            payload=packet.payload,
            qos=int(packet.qos),
            retain=packet.retain,
            response_topic=packet.response_topic,
            correlation=packet.correlation_data,
            message_expiry_s=packet.message_expiry_interval,
            properties=_properties(packet) if is_bridge else None,
        ),
        packet.packet_id or 0,
        tuple(packet.subscription_ids),
    )


def _properties(packet: PublishPacket) -> Properties | None:
    properties = Properties(
        payload_format=packet.payload_format_indicator,
        content_type=packet.content_type,
        user=tuple(packet.user_properties),
    )
    return None if properties == _NO_PROPERTIES else properties


def reason_text(reason_code: int, said: str | None) -> str:
    """A reason for a person: its number and what the broker added in words."""
    number = f"reason 0x{reason_code:02x}"
    return f"{number}, {said[:REASON_TEXT_CHARS]!r}" if said else number


def _will(will: Will) -> codec.Will:
    return codec.Will(
        will.topic, payload=will.payload, qos=_QOS[min(will.qos, 1)], retain=will.retain
    )
