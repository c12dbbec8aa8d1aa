"""What the broker counts. Plain numbers; `metrics` shows them to Prometheus."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Dropped(StrEnum):
    """Why a message did not reach somebody who wanted it."""

    EXPIRED = "expired"
    QUEUE_FULL = "queue_full"
    OFFLINE_QOS0 = "offline_qos0"
    TOO_LARGE_FOR_CLIENT = "too_large_for_client"
    RETAINED_FULL = "retained_full"
    RESERVED_TOPIC = "reserved_topic"
    SESSION_ENDED = "session_ended"
    REFUSED_BY_CLIENT = "refused_by_client"
    NOT_AUTHORIZED = "not_authorized"
    NOT_STORED = "not_stored"


@dataclass(slots=True)
class Counters:
    """Since the broker started."""

    connections: int = 0
    """Network connections accepted."""
    refused: int = 0
    """Of these, turned away before or at CONNECT."""
    slowed_down: int = 0
    """Times that a client was not read for a while, because it sent more than it may."""
    tls_failed: int = 0
    """Connections that ended before their TLS handshake was over."""
    refused_by: Counter[int | None] = field(default_factory=Counter)
    """The same by reason code; None: closed without a word."""
    received_bytes: int = 0
    """Of MQTT, acknowledgements and all."""
    sent_bytes: int = 0
    received_packets: int = 0
    sent_packets: int = 0
    messages_in: int = 0
    """Of every QoS; those that are not counted below are of QoS 1, the most frequent."""
    messages_in_qos0: int = 0
    messages_in_qos2: int = 0
    messages_out: int = 0
    """Including repeats."""
    messages_out_qos0: int = 0
    messages_out_qos2: int = 0
    dropped: Counter[Dropped] = field(default_factory=Counter)
