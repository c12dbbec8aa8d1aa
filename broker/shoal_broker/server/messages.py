"""A message on its way through the broker: from the publisher or a will, to queues and the retained store.

Pure values. Times are seconds on the broker's monotonic clock.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from shoal_broker.codec import Packet, PublishPacket, QoS, Will, encode
from shoal_broker.server.ledger import Ledger
from shoal_broker.server.subscriptions import SharedGroup

OVERHEAD_BYTES = 512
"""What the objects around a message cost in memory, so that byte limits hold for tiny messages too."""

QUALITIES = (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE)
LARGEST_EXPIRY_S = 0xFFFFFFFF
ROUNDING_S = 1e-6
"""What adding and subtracting the clock may cost: not a second more."""


# Not frozen: that costs a message more than its router does.
@dataclass(slots=True, eq=False)
class Message:
    """One application message; nobody changes it. `content` carries payload and properties; its topic may be an alias."""

    topic: str
    content: PublishPacket
    publisher: str
    """Client id, for no-local."""
    expires_at_s: float | None
    size_bytes: int
    """What it is counted as against every limit."""
    ledger: Ledger | None = field(default=None, compare=False, repr=False)
    """Whose books it is on; None: on nobody's."""

    def __post_init__(self) -> None:
        if self.ledger is not None:
            self.ledger.live_bytes += self.size_bytes

    def __del__(self) -> None:
        # Queues, windows, the retained store: whoever lets go of it last need not know that he is.
        if self.ledger is not None:
            self.ledger.live_bytes -= self.size_bytes

    def has_expired(self, now_s: float) -> bool:
        """Whether its message expiry interval has passed."""
        return self.expires_at_s is not None and self.expires_at_s <= now_s


class Delivery(NamedTuple):
    """A message for one session, as that session is to get it."""

    message: Message
    qos: int
    retain: bool
    identifiers: list[int]
    """Subscription identifiers of all the subscriptions it comes from."""
    group: SharedGroup | None
    """The shared subscription it comes from: who else may have it."""


def from_publish(
    packet: PublishPacket,
    topic: str,
    publisher: str,
    packet_bytes: int,
    now_s: float,
    ledger: Ledger | None = None,
) -> Message:
    """The message of a PUBLISH of `packet_bytes`, its topic alias resolved to `topic`."""
    interval_s = packet.message_expiry_interval
    return Message(
        topic,
        packet,
        publisher,
        None if interval_s is None else now_s + interval_s,
        packet_bytes + OVERHEAD_BYTES,
        ledger,
    )


def from_will(will: Will, publisher: str, now_s: float, ledger: Ledger | None = None) -> Message:
    """The message of a will, published at `now_s`: its expiry counts from here."""
    packet = PublishPacket(
        will.topic,
        will.payload or b"",
        qos=will.qos,
        retain=will.retain,
        # The id of a received packet means nothing to anybody else; the codec wants one.
        packet_id=1 if int(will.qos) else None,
        payload_format_indicator=will.payload_format_indicator,
        message_expiry_interval=will.message_expiry_interval,
        content_type=will.content_type,
        response_topic=will.response_topic,
        correlation_data=will.correlation_data,
        user_properties=will.user_properties,
    )
    return from_publish(packet, will.topic, publisher, len(encode(packet)), now_s, ledger)


def encode_delivery(
    delivery: Delivery,
    packet_id: int | None,
    now_s: float,
    *,
    duplicate: bool,
    encode: Callable[[Packet], bytes],
    known_alias: int | None = None,
    new_alias: int | None = None,
) -> bytes:
    """The PUBLISH for `delivery`, written by `encode`; `packet_id` is None for QoS 0.

    Its message has not expired. A known alias stands for the topic, a new one goes with it.
    """
    message = delivery.message
    content = message.content
    expires_at_s = message.expires_at_s
    return encode(
        PublishPacket(
            message.topic if known_alias is None else "",
            content.payload,
            qos=QUALITIES[delivery.qos],
            retain=delivery.retain,
            packet_id=packet_id,
            duplicate=duplicate,
            payload_format_indicator=content.payload_format_indicator,
            message_expiry_interval=None
            if expires_at_s is None
            else min(LARGEST_EXPIRY_S, max(0, math.ceil(expires_at_s - now_s - ROUNDING_S))),
            content_type=content.content_type,
            response_topic=content.response_topic,
            correlation_data=content.correlation_data,
            subscription_ids=delivery.identifiers,
            topic_alias=new_alias if known_alias is None else known_alias,
            user_properties=content.user_properties,
        )
    )
