"""A message on its way through the broker: from the publisher or a will, to queues and the retained store.

Pure values. Times are seconds on the broker's monotonic clock.
"""

import msgspec

from shoal_broker.codec import PublishPacket, Will, encode
from shoal_broker.server.ledger import Ledger
from shoal_broker.server.subscriptions import SharedGroup

OVERHEAD_BYTES = 512
"""What the objects around a message cost in memory, so that byte limits hold for tiny messages too."""

USER_PROPERTY_BYTES = 192
"""What the pair of texts costs in memory, where it may be 5 bytes on the wire."""


# Structs: a frozen dataclass takes four times as long to make, a named tuple twice, and every message is one.
class Message(msgspec.Struct, frozen=True, eq=False):
    """One application message. `content` carries payload and properties; its topic may be an alias."""

    topic: str
    content: PublishPacket
    publisher: str
    """Client id, for no-local."""
    expires_at_s: float | None
    size_bytes: int
    """What it is counted as against every limit."""
    ledger: Ledger | None = None
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


class Delivery(msgspec.Struct, frozen=True, eq=False):
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
        counted_bytes(packet, packet_bytes),
        ledger,
    )


def counted_bytes(packet: PublishPacket, packet_bytes: int) -> int:
    """What a message of `packet_bytes` counts as, for it is about what it takes in memory."""
    return packet_bytes + OVERHEAD_BYTES + USER_PROPERTY_BYTES * len(packet.user_properties)


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
