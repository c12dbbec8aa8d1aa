"""What MQTT 5's rules are about, as small values: filters, messages, copies of them, sessions. Of `mqtt_model`.

Sections are those of the standard.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

NEVER = 0xFFFFFFFF


class RuleBrokenError(AssertionError):
    """What a client heard, or did not hear, breaks a rule."""


def hold(kept: object, rule: str) -> None:
    if not kept:
        raise RuleBrokenError(rule)


def belongs(topic: str, topic_filter: str) -> bool:
    """4.7."""
    if topic.startswith("$") and topic_filter[0] in "+#":
        return False
    levels = "/".join(
        "[^/]*" if level == "+" else re.escape(level) for level in topic_filter.split("/")
    )
    pattern = ".*" if topic_filter == "#" else re.sub(r"/\\#$", "(/.*)?", levels)
    return re.fullmatch(pattern, topic) is not None


def split_share(pattern: str) -> tuple[bool, str]:
    """Whether it is shared, and the filter itself."""
    return (True, pattern.split("/", 2)[2]) if pattern.startswith("$share/") else (False, pattern)


@dataclass(frozen=True)
class Subscribed:
    """The options of one subscription."""

    qos: int
    no_local: bool = False
    as_published: bool = False
    identifier: int | None = None


@dataclass(frozen=True)
class Published:
    """A message as the broker was given it."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    publisher: str
    expiry_s: int | None = None
    properties: object = None
    expires_at_s: float = math.inf
    """Set when it is published."""


@dataclass(frozen=True)
class Will:
    message: Published
    delay_s: int


@dataclass(eq=False)
class Copy:
    """A message as one client is to hear it."""

    message: Published
    qos: int
    retain: bool
    identifiers: list[int]
    share: tuple[str, int] | None = None
    packet_id: int = 0
    on_wire: bool = False
    """Sent on the connection that there is now."""
    received: bool = False
    """QoS 2: PUBREC came, so PUBREL is what is repeated."""

    def is_heard_as(self, heard, now_s: float) -> bool:
        message = self.message
        left_s = message.expires_at_s - now_s
        return (
            (message.topic, message.payload, self.qos, self.retain, message.properties)
            == (heard.topic, heard.payload, heard.qos, heard.retain, heard.properties)
            and sorted(self.identifiers) == sorted(heard.identifiers)
            and heard.expiry_s == (None if left_s == math.inf else max(0, math.ceil(left_s)))
        )


def copy_for(message: Published, subscriptions: list[Subscribed]) -> Copy:
    """3.3.4: one copy for all of a client's subscriptions that match."""
    return Copy(
        message,
        min(message.qos, max(one.qos for one in subscriptions)),
        message.retain and any(one.as_published for one in subscriptions),
        [one.identifier for one in subscriptions if one.identifier is not None],
    )


@dataclass(eq=False)
class Shared:
    """A message that one member of a share is to get; the model is not told which."""

    message: Published
    share: tuple[str, int]
    takers: list[tuple[Session, Copy]] = field(default_factory=list)
    may_be_lost: bool = False


@dataclass(eq=False)
class Session:
    """4.1: what outlives a connection, and what belongs to the present one."""

    client_id: str
    subscriptions: dict[str, Subscribed] = field(default_factory=dict)
    sent: list[Copy] = field(default_factory=list)
    """QoS 1 and 2, not acknowledged, in the order they were sent."""
    waiting: list[Copy] = field(default_factory=list)
    """QoS 1 and 2, not sent yet."""
    due: list[Copy] = field(default_factory=list)
    """QoS 0: now or never."""
    found: dict[str, list[Published]] = field(default_factory=dict)
    """Retained messages that a new subscription is to hear, by filter."""
    incoming: set[int] = field(default_factory=set)
    """Packet ids of QoS 2 messages from the client that it has not released."""
    connected: bool = True
    stalled: bool = False
    """The network takes nothing: what is due may wait."""
    window: int = 0
    expiry_s: int = 0
    keep_alive_s: int = 0
    heard_at_s: float = 0
    will: Will | None = None
    ends_at_s: float = math.inf
    will_at_s: float = math.inf

    @property
    def in_flight(self) -> int:
        return sum(copy.on_wire for copy in self.sent)

    @property
    def is_full(self) -> bool:
        return self.in_flight >= self.window

    def may_hold_back(self, qos: int) -> bool:
        """Whether a message may wait here."""
        if not self.connected:
            return qos > 0
        # QoS 0 passes a full window, but not what is repeated or was retained before it.
        comes_first = qos or any(self.found.values()) or not all(c.on_wire for c in self.sent)
        return self.stalled or (self.is_full and bool(comes_first))

    def owe(self, copy: Copy) -> None:
        if copy.qos:
            self.waiting.append(copy)
        elif self.connected:
            self.due.append(copy)
