"""What the session asks of a transport, and the values that pass between them. No I/O.

A `Link` is one MQTT 5 connection that is made: it never reconnects. Two transports stand behind
it: aiomqtt (`shoal_broker.aiomqtt_transport`) and a lean one on the codec
(`shoal_broker.codec_transport`); `shoal_broker.transports` picks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from shoal_broker.bus_errors import LinkError
from shoal_broker.tls import TlsFiles

Transport = Literal["aiomqtt", "codec"]

# A quiet line is tried every 56 s then: within the minute after which the strictest routers forget it,
# and, with the headers of TCP and IP, for less than 300 KB a day.
KEEPALIVE_S = 75

# A PUBACK's reason: taken, but nobody has subscribed, so it is gone (MQTT 5, 3.4.2.1).
NO_MATCHING_SUBSCRIBERS = 0x10


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """Where the broker is, who we are, and how patient we are.

    `receive_maximum` is how many QoS 1 messages the broker may send before we acknowledge one.
    `half_open_timeout_s` is how long the line may be silent (None: 1.5 x keepalive);
    `ack_timeout_s` how long the broker may leave every publish in flight without an answer.
    `transport`: aiomqtt is in every role's install; codec, a quarter of the CPU, needs mqtt5.
    `tls`: None is a plain connection, which `plaintext` allows to other machines. `is_bridge` (codec only): what comes is to go on to another
    broker, so subscriptions are no-local and retain as published, and messages bring `properties`.
    `clean_start`: what the broker keeps for this client id is ended first; a Session never says so.
    """

    host: str
    port: int = 1883
    client_id: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    keepalive_s: int = KEEPALIVE_S
    session_expiry_s: int = 7 * 86400
    receive_maximum: int = 64
    connect_timeout_s: float = 10.0
    half_open_timeout_s: float | None = None
    ack_timeout_s: float = 30.0
    backoff_initial_s: float = 0.5
    backoff_max_s: float = 60.0
    close_timeout_s: float = 2.0
    in_flight_messages: int = 64
    # Bounds what an urgent message waits behind on a slow uplink.
    in_flight_bytes: int = 128 << 10
    transport: Transport = "aiomqtt"
    tls: TlsFiles | None = None
    plaintext: bool = False
    is_bridge: bool = False
    clean_start: bool = False


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes for us when we vanish."""

    topic: str
    payload: bytes
    retain: bool = True
    qos: int = 1


# The values that are made for every message are structs: a frozen dataclass takes ten times as long.
class Properties(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What else a PUBLISH may carry: for messages that are passed on, Shoal's own have none."""

    payload_format: int = 0
    content_type: str | None = None
    user: tuple[tuple[str, str], ...] = ()

    @property
    def packet_bytes(self) -> int:
        """Upper bound of what it adds to the packet."""
        user = sum(len(name.encode()) + len(value.encode()) + 5 for name, value in self.user)
        return user + len((self.content_type or "").encode()) + 5


class Inbound(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it came in. `message_expiry_s` is what was left of it at the broker."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    response_topic: str | None = None
    correlation: bytes | None = None
    message_expiry_s: int | None = None
    properties: Properties | None = None


class Outbound(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it goes out. `expiry_s` counts from when it is sent."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    properties: Properties | None = None

    @property
    def packet_bytes(self) -> int:
        """Upper bound of the PUBLISH packet: fixed header, packet id, properties and all."""
        response = len((self.response_topic or "").encode()) + 3
        correlation = len(self.correlation or b"") + 3
        size_bytes = len(self.topic.encode()) + len(self.payload) + response + correlation + 18
        return size_bytes + (0 if self.properties is None else self.properties.packet_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What the broker said in its CONNACK."""

    session_present: bool
    receive_maximum: int = 65_535
    maximum_packet_bytes: int | None = None
    retain_available: bool = True
    keepalive_s: int
    user_properties: tuple[tuple[str, str], ...] = ()


class Arrival(msgspec.Struct, frozen=True):
    """An inbound message on its link: `packet_id` acknowledges it, `subscription_ids` brought it."""

    inbound: Inbound
    packet_id: int
    subscription_ids: tuple[int, ...] = ()


class Link(Protocol):
    """One connection. Every method raises LinkError once the connection is gone."""

    @property
    def greeting(self) -> Greeting:
        """What the broker granted."""
        ...

    @property
    def last_inbound_s(self) -> float:
        """`time.monotonic()` when bytes last came in."""
        ...

    @property
    def last_outbound_s(self) -> float:
        """`time.monotonic()` when a packet last went out."""
        ...

    async def receive(self) -> Arrival:
        """Return the next message, in the order of arrival; nothing is ever discarded."""
        ...

    def acknowledge(self, arrival: Arrival) -> bool:
        """Send the PUBACK of a QoS 1 message; False, and nothing sent, on a dead link."""
        ...

    async def publish(self, message: Outbound) -> bool:
        """Return at PUBACK (QoS 1) or when written to the socket (QoS 0).

        False when the broker says that nobody has subscribed to the topic (PUBACK 0x10).
        The packet is queued before the first suspension: calls made in order leave in order.
        Raises RefusedByBrokerError.
        """
        ...

    async def subscribe(self, topic_filter: str, *, qos: int, subscription_id: int) -> None:
        """Return at SUBACK. Raises RefusedByBrokerError."""
        ...

    async def unsubscribe(self, topic_filter: str) -> None:
        """Return at UNSUBACK."""
        ...

    def ping(self) -> None:
        """Send a PINGREQ."""
        ...

    async def disconnect(self) -> None:
        """Send a normal DISCONNECT (the will is not published) and wait until it is written."""
        ...

    def abort(self, reason: LinkError | None = None) -> None:
        """Drop the connection now; everybody who waits on it gets a LinkError, with this reason."""
        ...


# Makes one connection, or raises LinkError, TrustError included; leaving it drops the link.
Connect = Callable[[SessionConfig, Will | None], AbstractAsyncContextManager[Link]]
