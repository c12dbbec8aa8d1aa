"""What a durable broker starts with: the rows of its file as sessions, queues and retained messages.

Everything that is stored is loaded, whatever the limits are now: it was acknowledged once.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections import deque
from dataclasses import dataclass
from typing import Any

from shoal_broker.codec import Will
from shoal_broker.server.durable.pending import Pending, Row, Stored
from shoal_broker.server.durable.recorder import Recorder
from shoal_broker.server.durable.rows import Kind, message_of, will_of
from shoal_broker.server.durable.session_recorder import SessionRecorder
from shoal_broker.server.durable.timeline import Timeline
from shoal_broker.server.messages import Delivery, Message
from shoal_broker.server.router import Router
from shoal_broker.server.sessions import LARGEST_PACKET_ID, NEVER_EXPIRES, Session
from shoal_broker.server.subscriptions import SharedGroup, Subscription, split_share

WILL_GRACE_S = 30.0
"""Clients that were connected when the broker ended get this long to come back before their wills go out.

MQTT 5, 3.1.2.5 lets a server defer wills over its own restart.
"""

Fetched = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Stock:
    """The rows of the file, in the order of their keys."""

    clock: tuple[int, int] | None
    sessions: Fetched
    subscriptions: Fetched
    messages: Fetched
    retained: Fetched
    queued: Fetched
    received: Fetched

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> Stock:
        """Read every table."""

        def rows(table: str, order: str) -> Fetched:
            return connection.execute(f"SELECT * FROM {table} ORDER BY {order}").fetchall()  # noqa: S608 - names of ours

        clock = connection.execute("SELECT time_ms, wall_ms FROM clock").fetchone()
        return cls(
            clock,
            rows("session", "id"),
            rows("subscription", "session, filter"),
            rows("message", "id"),
            rows("retained", "message"),
            rows("queued", "id"),
            rows("received", "session, packet_id"),
        )


class Loader:
    """Fills a router that is empty."""

    def __init__(self, router: Router, timeline: Timeline, now_s: float) -> None:
        self._router = router
        self._timeline = timeline
        self._now_s = now_s
        self._recorder: Recorder
        self._messages: dict[int, Stored] = {}
        self._sessions: dict[int, tuple[Session, SessionRecorder]] = {}

    def load(self, stock: Stock) -> Recorder:
        """Make everything what it was; the recorder of what changes from here on.

        Raises KeyError, ValueError and ProtocolError on rows that we did not write.
        """
        self._recorder = Recorder(
            Pending(
                self._timeline,
                next_message=_after(stock.messages),
                next_row=_after(stock.queued),
            ),
            next_session=_after(stock.sessions),
        )
        for row in stock.messages:
            self._load_message(*row)
        for (number,) in stock.retained:
            message = self._messages[number].message
            self._router.retained.restore(message)
            self._recorder.restored_retained(message)
        for row in stock.sessions:
            self._load_session(*row)
        for row in stock.subscriptions:
            self._load_subscription(*row)
        for row in stock.queued:
            self._load_queued(row)
        for number, packet_id in stock.received:
            session, recorder = self._sessions[number]
            recorder.restored_received(packet_id)
            session.receive(packet_id)
        for stored in self._messages.values():
            self._recorder.messages.forget_unneeded(stored)
        for session, recorder in self._sessions.values():
            session.journal = recorder
            # An id that a client may still acknowledge late, from before a crash, is not soon used again.
            session.continue_ids_after(secrets.randbelow(LARGEST_PACKET_ID))
        self._router.write_to(self._recorder)
        self._router.count_queues()
        return self._recorder

    def _load_message(
        self, number: int, publisher: str, expires_at_ms: int | None, packet: bytes
    ) -> None:
        expires_at_s = self._timeline.core(expires_at_ms)
        message = message_of(packet, publisher, expires_at_s, self._router.ledger)
        stored = self._messages[number] = Stored(number, message)
        self._recorder.messages.restored(stored)

    def _load_session(
        self,
        number: int,
        client_id: str,
        identity: str | None,
        interval_s: int,
        expires_at_ms: int | None,
        will: bytes | None,
        will_delay_s: int,
        will_due_at_ms: int | None,
    ) -> None:
        session = self._router.add_session(client_id)
        session.identity = identity
        session.expiry_interval_s = interval_s
        session.expires_at_s = self._timeline.core(expires_at_ms)
        if session.expires_at_s is None and interval_s != NEVER_EXPIRES:
            session.expires_at_s = self._now_s + interval_s
        session.will = None if will is None else will_of(will, will_delay_s)
        session.will_due_at_s = self._will_due_at_s(session.will, will_due_at_ms)
        recorder = SessionRecorder(self._recorder.pending, self._recorder.messages, session, number)
        self._sessions[number] = session, recorder
        # Its clocks run from now on, over the next restarts, too.
        recorder.changed()

    def _will_due_at_s(self, will: Will | None, due_at_ms: int | None) -> float | None:
        if will is None or due_at_ms is not None:
            return self._timeline.core(due_at_ms)
        return self._now_s + max(will.will_delay_interval, WILL_GRACE_S)

    def _load_subscription(
        self,
        number: int,
        pattern: str,
        max_qos: int,
        no_local: int,
        retain_as_published: int,
        identifier: int | None,
    ) -> None:
        session, _ = self._sessions[number]
        share_name, topic_filter = split_share(pattern)
        subscription = Subscription(
            subscriber=session,
            topic_filter=topic_filter,
            share_name=share_name,
            max_qos=max_qos,
            no_local=bool(no_local),
            retain_as_published=bool(retain_as_published),
            identifiers=[] if identifier is None else [identifier],
        )
        session.subscriptions[pattern] = subscription
        self._router.subscriptions.add(subscription)

    def _load_queued(self, values: tuple[Any, ...]) -> None:
        number, session_number, message_number, kind, packet_id, qos, retain, ids, pattern = values
        session, recorder = self._sessions[session_number]
        row = Row(number, session_number, None, Kind(kind))
        row.packet_id, row.pattern = packet_id, pattern
        message: Message | None = None
        if message_number is not None:
            message = self._messages[message_number].message
            row.stored = self._recorder.messages.need(message)
        match row.kind:
            case Kind.MESSAGE if message is not None:
                row.delivery = Delivery(
                    message,
                    qos,
                    bool(retain),
                    [int(word) for word in (ids or "").split()],
                    self._group(pattern),
                )
                _put(session, packet_id, row.delivery)
            case Kind.OWED if message is not None and pattern in session.subscriptions:
                session.backlog.setdefault(pattern, deque()).append(message)
            case Kind.RELEASED if packet_id is not None:
                session.in_flight[packet_id] = None
            case _:
                raise ValueError(f"row {number} of queued makes no sense")
        recorder.restored(row)

    def _group(self, pattern: str | None) -> SharedGroup | None:
        if pattern is None:
            return None
        share_name, topic_filter = split_share(pattern)
        if share_name is None:
            raise ValueError(f"{pattern} is no shared subscription")
        return self._router.subscriptions.group(share_name, topic_filter)


def _put(session: Session, packet_id: int | None, delivery: Delivery) -> None:
    if packet_id is None:
        session.wait(delivery)
    else:
        session.in_flight[packet_id] = delivery
    session.held_bytes += delivery.message.size_bytes


def _after(rows: Fetched) -> int:
    return 1 if not rows else int(rows[-1][0]) + 1
