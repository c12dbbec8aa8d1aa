"""Records the changes of one session in the batch that is gathering. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from shoal_broker.server.durable.batch import Values
from shoal_broker.server.durable.pending import Pending, Row
from shoal_broker.server.durable.rows import Kind, packet_of_will
from shoal_broker.server.durable.stored_messages import StoredMessages
from shoal_broker.server.messages import Delivery, Message
from shoal_broker.server.sessions import Session
from shoal_broker.server.subscriptions import SharedGroup, Subscription

EXACTLY_ONCE = 2


class SessionRecorder:
    """A SessionJournal."""

    def __init__(
        self, pending: Pending, messages: StoredMessages, session: Session, number: int
    ) -> None:
        self.number = number
        self._pending = pending
        self._messages = messages
        self._session = session
        self._rows: dict[int, Row] = {}
        """By the identity of the delivery."""
        self._owed: dict[str, dict[int, Row]] = {}
        """By pattern and the identity of the message."""
        self._released: dict[int, Row] = {}
        """By packet id."""
        self._received: set[int] = set()
        self._last_sent = 0
        """The row that was sent last."""

    def values(self) -> Values:
        """The row of the session."""
        session, stored = self._session, self._pending.timeline.stored
        will = session.will
        return (
            self.number,
            session.client_id,
            session.identity,
            session.expiry_interval_s,
            stored(session.expires_at_s),
            None if will is None else packet_of_will(will),
            0 if will is None else will.will_delay_interval,
            stored(session.will_due_at_s),
        )

    # --- the session itself

    def connected(self) -> None:
        """As SessionJournal."""
        self.changed()
        self._pending.mark()

    def changed(self) -> None:
        """As SessionJournal."""
        self._pending.sessions[self.number] = self.values

    def ended(self) -> None:
        """As SessionJournal."""
        pending = self._pending
        pending.sessions[self.number] = None
        pending.mark()
        for pattern in self._session.subscriptions:
            pending.subscriptions[self.number, pattern] = None
        for row in self._rows.values():
            self._drop(row)
        for pattern in list(self._owed):
            self._owes_nothing(pattern)
        for row in self._released.values():
            self._drop(row)
        for packet_id in self._received:
            pending.forget_received(self.number, packet_id, told=False)

    def subscribed(self, pattern: str, subscription: Subscription) -> None:
        """As SessionJournal."""
        identifiers = subscription.identifiers
        pending = self._pending
        pending.subscriptions[self.number, pattern] = (
            self.number,
            pattern,
            subscription.max_qos,
            int(subscription.no_local),
            int(subscription.retain_as_published),
            identifiers[0] if identifiers else None,
        )
        pending.mark()

    def unsubscribed(self, pattern: str) -> None:
        """As SessionJournal."""
        self._pending.subscriptions[self.number, pattern] = None
        self._pending.mark()
        self._owes_nothing(pattern)

    # --- retained messages that are due

    def owes(self, pattern: str, messages: Iterable[Message]) -> None:
        """As SessionJournal. Those of QoS 0 are not stored."""
        self._owes_nothing(pattern)
        owed = {}
        for message in messages:
            if int(message.content.qos):
                stored = self._messages.need(message)
                owed[id(message)] = self._pending.new_row(
                    self.number, stored, Kind.OWED, pattern=pattern
                )
        if owed:
            self._owed[pattern] = owed

    def gave(self, pattern: str, message: Message) -> None:
        """As SessionJournal."""
        owed = self._owed.get(pattern)
        row = None if owed is None else owed.pop(id(message), None)
        if row is None:
            return
        self._drop(row)
        if not owed:
            del self._owed[pattern]

    def _owes_nothing(self, pattern: str) -> None:
        for row in self._owed.pop(pattern, {}).values():
            self._drop(row)

    # --- messages to the client

    def queued(self, delivery: Delivery) -> None:
        """As SessionJournal."""
        self._new_row(delivery)

    def sent(self, packet_id: int, delivery: Delivery) -> None:
        """As SessionJournal."""
        pending = self._pending
        row = self._rows.get(id(delivery))
        # MQTT 5, 4.6: repeats come in the order of sending, which is that of the rows.
        if row is None:
            row = self._new_row(delivery)
        elif row.number < self._last_sent:
            self.settled(delivery)
            row = self._new_row(delivery)
        self._last_sent = row.number
        pending.change_row(row, packet_id)
        if delivery.qos == EXACTLY_ONCE:
            pending.mark()

    def settled(self, delivery: Delivery) -> None:
        """As SessionJournal."""
        row = self._rows.pop(id(delivery), None)
        if row is not None:
            self._drop(row)

    def released(self, packet_id: int, delivery: Delivery) -> None:
        """As SessionJournal."""
        row = self._rows.pop(id(delivery), None)
        if row is None:
            return
        pending = self._pending
        pending.change_row(row, packet_id)
        pending.mark()
        stored, row.stored, row.delivery, row.pattern = row.stored, None, None, None
        row.kind = Kind.RELEASED
        self._released[packet_id] = row
        if stored is not None:
            self._messages.need_no_more(stored)

    def completed(self, packet_id: int) -> None:
        """As SessionJournal."""
        row = self._released.pop(packet_id, None)
        if row is not None:
            self._drop(row)

    # --- messages from the client

    def received(self, packet_id: int) -> None:
        """As SessionJournal."""
        self._received.add(packet_id)
        self._pending.receive(self.number, packet_id)

    def finished(self, packet_id: int) -> None:
        """As SessionJournal."""
        if packet_id in self._received:
            self._received.remove(packet_id)
            self._pending.forget_received(self.number, packet_id, told=True)

    # --- what was stored before

    def restored(self, row: Row) -> None:
        """Know a row that is in the file already."""
        if row.packet_id is not None:
            self._last_sent = max(self._last_sent, row.number)
        match row.kind:
            case Kind.MESSAGE:
                self._rows[id(row.delivery)] = row
            case Kind.OWED:
                message = None if row.stored is None else row.stored.message
                self._owed.setdefault(row.pattern or "", {})[id(message)] = row
            case Kind.RELEASED:
                self._released[row.packet_id or 0] = row

    def restored_received(self, packet_id: int) -> None:
        """Know an id that is in the file already."""
        self._received.add(packet_id)

    def _new_row(self, delivery: Delivery) -> Row:
        row = self._pending.new_row(
            self.number,
            self._messages.need(delivery.message),
            Kind.MESSAGE,
            delivery=delivery,
            pattern=_share_pattern(delivery.group),
        )
        self._rows[id(delivery)] = row
        return row

    def _drop(self, row: Row) -> None:
        self._pending.drop_row(row)
        if row.stored is not None:
            self._messages.need_no_more(row.stored)


def _share_pattern(group: SharedGroup | None) -> str | None:
    return None if group is None else f"$share/{group.name}/{group.topic_filter}"
