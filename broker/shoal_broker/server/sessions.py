"""One client's session: what it subscribed to, what waits for it, what it has not acknowledged yet.

Outlives connections. Pure; it decides what is kept at the limits and never sends.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from shoal_broker.codec import Will
from shoal_broker.errors import ProtocolError
from shoal_broker.server.counters import Counters, Dropped
from shoal_broker.server.messages import Delivery, Message
from shoal_broker.server.subscriptions import Subscription

if TYPE_CHECKING:
    from shoal_broker.server.access import Rights
    from shoal_broker.server.connection import Connection
    from shoal_broker.server.journal import SessionJournal

NOTHING: tuple[()] = ()
"""A queue of nothing: an empty deque takes 600 bytes, and of most sessions nothing ever waits."""

LARGEST_PACKET_ID = 65_535
NEVER_EXPIRES = 0xFFFFFFFF
PROTOCOL_VIOLATION = 0x82


class Session:
    """The state of one client id (MQTT 5, 4.1).

    Limits count what waits and what is unacknowledged together. At a limit QoS 0 messages go, oldest
    first; when that is not enough the newest message is refused.
    """

    __slots__ = (
        "_counters",
        "_last_packet_id",
        "_max_bytes",
        "_max_messages",
        "backlog",
        "best_effort",
        "client_id",
        "connection",
        "expires_at_s",
        "expiry_interval_s",
        "held_bytes",
        "identity",
        "in_flight",
        "journal",
        "queue",
        "repeats",
        "rights",
        "subscriptions",
        "unreleased",
        "will",
        "will_due_at_s",
    )

    def __init__(
        self, client_id: str, *, max_messages: int, max_bytes: int, counters: Counters
    ) -> None:
        self.client_id = client_id
        self.identity: str | None = None
        """Whose session it is; None: of whoever asks for this client id."""
        self.rights: Rights | None = None
        """None: every topic."""
        self.connection: Connection | None = None
        self.journal: SessionJournal | None = None
        """Told of every change, if the session is to survive the process."""
        self.expiry_interval_s = 0
        self.expires_at_s: float | None = None
        """Set while no connection is there; None then: never."""
        self.will: Will | None = None
        self.will_due_at_s: float | None = None
        """Set while no connection is there and a will waits."""
        self.subscriptions: dict[str, Subscription] = {}
        """By filter as the client wrote it, `$share/...` included."""
        self.in_flight: dict[int, Delivery | None] = {}
        """By packet id, in the order they were sent.

        None: the client has this QoS 2 message (PUBREC), and PUBREL is due until its PUBCOMP.
        """
        self.unreleased: set[int] | None = None
        """Packet ids of QoS 2 messages that came from the client and whose PUBREL has not come."""
        self.repeats: deque[int] | tuple[()] = NOTHING
        """Packet ids in flight that this connection was not sent yet: they come first."""
        self.queue: deque[Delivery] | tuple[()] = NOTHING
        """QoS 1 and 2."""
        self.best_effort: deque[Delivery] | tuple[()] = NOTHING
        """QoS 0."""
        self.backlog: dict[str, deque[Message]] = {}
        """Retained messages that new subscriptions still are to get, by filter as in `subscriptions`.

        They count against the limit of the retained store, which holds them anyway.
        """
        self.held_bytes = 0
        self._last_packet_id = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._counters = counters

    @property
    def connected(self) -> bool:
        """Whether it can be sent to now."""
        return self.connection is not None

    @property
    def is_persistent(self) -> bool:
        """Whether it is to outlive its connection."""
        return self.expiry_interval_s > 0

    @property
    def held_messages(self) -> int:
        """How many messages count against the limit."""
        return len(self.queue) + len(self.best_effort) + len(self.in_flight)

    @property
    def backlog_messages(self) -> int:
        """How many retained messages wait for this session."""
        return sum(map(len, self.backlog.values()))

    @property
    def has_waiting(self) -> bool:
        """Whether something is to be sent before a message that comes now."""
        return bool(self.queue or self.best_effort or self.backlog or self.repeats)

    def admit(self, delivery: Delivery, now_s: float) -> bool:
        """Take `delivery`, making room as the limits say. False when it was refused."""
        size_bytes = delivery.message.size_bytes
        if not self._has_room(size_bytes) and not self.make_room(size_bytes, now_s):
            self._counters.dropped[Dropped.QUEUE_FULL] += 1
            return False
        self.held_bytes += size_bytes
        if delivery.qos and self.journal is not None:
            self.journal.queued(delivery)
        return True

    def wait(self, delivery: Delivery) -> None:
        """Queue what was admitted."""
        if delivery.qos:
            self.queue = self.queue or deque()
            self.queue.append(delivery)
        else:
            self.best_effort = self.best_effort or deque()
            self.best_effort.append(delivery)

    # --- messages to the client

    def send(self, delivery: Delivery) -> int:
        """Put `delivery` in flight; the packet id that it goes by, which nothing in flight has."""
        in_flight = self.in_flight
        packet_id = self._last_packet_id
        while True:
            packet_id = packet_id % LARGEST_PACKET_ID + 1
            if packet_id not in in_flight:
                self._last_packet_id = packet_id
                in_flight[packet_id] = delivery
                if self.journal is not None:
                    self.journal.sent(packet_id, delivery)
                return packet_id

    def drop(self, delivery: Delivery) -> None:
        """What was taken from a queue is not going to be sent."""
        self.held_bytes -= delivery.message.size_bytes
        if self.journal is not None:
            self.journal.settled(delivery)

    def continue_ids_after(self, packet_id: int) -> None:
        """The next packet id is a later one."""
        self._last_packet_id = packet_id

    def acknowledge(self, packet_id: int) -> None:
        """PUBACK: the client has this message; an unknown id is an answer to something long settled.

        Raises ProtocolError where that is no answer to what was sent.
        """
        delivery = self.in_flight.get(packet_id)
        if delivery is None and packet_id not in self.in_flight:
            return
        if delivery is None or delivery.qos != 1:
            raise ProtocolError(PROTOCOL_VIOLATION, f"PUBACK for the QoS 2 message {packet_id}")
        self.settle(packet_id)

    def hand_over(self, packet_id: int) -> bool:
        """PUBREC: the client has this QoS 2 message, PUBREL is due. False when the id is unknown.

        Raises ProtocolError as `acknowledge` does.
        """
        delivery = self.in_flight.get(packet_id)
        if delivery is None:
            return packet_id in self.in_flight
        if delivery.qos == 1:
            raise ProtocolError(PROTOCOL_VIOLATION, f"PUBREC for the QoS 1 message {packet_id}")
        self.held_bytes -= delivery.message.size_bytes
        # In its place: repeats keep the order in which the messages were sent.
        self.in_flight[packet_id] = None
        if self.journal is not None:
            self.journal.released(packet_id, delivery)
        if self.repeats and packet_id in self.repeats:
            self.repeats.remove(packet_id)
        return True

    def complete(self, packet_id: int) -> None:
        """PUBCOMP: the exchange is over. An unknown id as in `acknowledge`."""
        if self.in_flight.get(packet_id) is not None:
            raise ProtocolError(PROTOCOL_VIOLATION, f"PUBCOMP without PUBREC for {packet_id}")
        self.settle(packet_id)

    def settle(self, packet_id: int) -> None:
        """Nothing more is to be done for what went by this id, if anything did."""
        delivery = self.in_flight.pop(packet_id, None)
        if delivery is not None:
            self.held_bytes -= delivery.message.size_bytes
        if self.journal is not None:
            if delivery is None:
                self.journal.completed(packet_id)
            else:
                self.journal.settled(delivery)
        if self.repeats and packet_id in self.repeats:
            self.repeats.remove(packet_id)

    # --- messages from the client

    def is_unreleased(self, packet_id: int) -> bool:
        """Whether the QoS 2 message of this id came before and its PUBREL did not."""
        return self.unreleased is not None and packet_id in self.unreleased

    def receive(self, packet_id: int) -> None:
        """A QoS 2 message came with this id, and was taken."""
        if self.unreleased is None:
            self.unreleased = set()
        self.unreleased.add(packet_id)
        if self.journal is not None:
            self.journal.received(packet_id)

    def release(self, packet_id: int) -> bool:
        """PUBREL. False when no message waits for it."""
        if self.unreleased is None or packet_id not in self.unreleased:
            return False
        self.unreleased.remove(packet_id)
        if self.journal is not None:
            self.journal.finished(packet_id)
        return True

    # --- endings

    def unacknowledged(self) -> list[tuple[Delivery, bool]]:
        """What the client may never have got, oldest first, each with whether somebody else may have it.

        MQTT 5, 4.8.2: a QoS 2 message that was sent to one member of a share goes to no other.
        """
        sent = [delivery for delivery in self.in_flight.values() if delivery is not None]
        return [
            *((delivery, delivery.qos == 1) for delivery in sent),
            *((delivery, True) for delivery in self.queue),
        ]

    def forget_unreadable(self, *, in_flight: bool = False) -> None:
        """Drop what waits and may no longer be read; `in_flight`: what was sent to somebody else, too."""
        rights = self.rights
        if rights is None:
            return
        waiting = [*self.queue, *self.best_effort]
        self.queue = self.best_effort = NOTHING
        for each in waiting:
            if rights.may_read(each.message.topic):
                self.wait(each)
            else:
                self._counters.dropped[Dropped.NOT_AUTHORIZED] += 1
                self.drop(each)
        if in_flight:
            for packet_id, sent in list(self.in_flight.items()):
                if sent is not None and not rights.may_read(sent.message.topic):
                    self.settle(packet_id)
        for pattern, messages in list(self.backlog.items()):
            readable = self.backlog[pattern] = deque(
                m for m in messages if rights.may_read(m.topic)
            )
            if self.journal is not None:
                self.journal.owes(pattern, readable)

    def forget_messages(self) -> None:
        """Drop everything that waits or is unacknowledged."""
        self.in_flight.clear()
        self.repeats = self.queue = self.best_effort = NOTHING
        self.backlog.clear()
        self.held_bytes = 0

    def make_room(self, size_bytes: int, now_s: float) -> bool:
        """Whether `size_bytes` more can be admitted, after dropping what goes first."""
        if not self._has_room(size_bytes):
            self._make_room(size_bytes, now_s)
        return self._has_room(size_bytes)

    def _has_room(self, size_bytes: int) -> bool:
        return (
            self.held_bytes + size_bytes <= self._max_bytes
            and self.held_messages < self._max_messages
        )

    def _make_room(self, size_bytes: int, now_s: float) -> None:
        while self.best_effort and not self._has_room(size_bytes):
            self.held_bytes -= self.best_effort.popleft().message.size_bytes
            self._counters.dropped[Dropped.QUEUE_FULL] += 1
        if self._has_room(size_bytes):
            return
        # A look at everything costs: what expires soonest is at the front more often than not.
        while self.queue and self.queue[0].message.has_expired(now_s):
            self.drop(self.queue.popleft())
            self._counters.dropped[Dropped.EXPIRED] += 1
