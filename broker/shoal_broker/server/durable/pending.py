"""The changes since the last batch was taken, coalesced as they come. Pure.

A row that came and went meanwhile was never there. `promises` says whether somebody waits for the rest.
"""

from __future__ import annotations

from collections.abc import Callable

from shoal_broker.server.durable.batch import Batch, Values
from shoal_broker.server.durable.rows import Kind
from shoal_broker.server.durable.timeline import Timeline
from shoal_broker.server.messages import Delivery, Message

ROW_BYTES = 256
"""What a queued row costs in memory until it is written, its message apart."""


class Stored:
    """A message that is to be stored, once for everybody who needs it."""

    __slots__ = ("message", "needed_by", "number")

    def __init__(self, number: int, message: Message) -> None:
        self.number = number
        self.message = message
        self.needed_by = 0


class Row:
    """A row of `queued`."""

    __slots__ = ("delivery", "kind", "number", "packet_id", "pattern", "session", "stored")

    def __init__(
        self,
        number: int,
        session: int,
        stored: Stored | None,
        kind: Kind,
        *,
        delivery: Delivery | None = None,
        pattern: str | None = None,
    ) -> None:
        self.number = number
        self.session = session
        self.stored = stored
        self.kind = kind
        self.packet_id: int | None = None
        self.delivery = delivery
        """Kept alive, for rows are found by its identity."""
        self.pattern = pattern

    def values(self) -> Values:
        """As they are stored."""
        delivery = self.delivery
        qos, retain, identifiers = 0, False, None
        if delivery is not None:
            qos, retain = delivery.qos, delivery.retain
            if delivery.identifiers:
                identifiers = " ".join(map(str, delivery.identifiers))
        return (
            self.number,
            self.session,
            None if self.stored is None else self.stored.number,
            int(self.kind),
            self.packet_id,
            qos,
            int(retain),
            identifiers,
            self.pattern,
        )


class Pending:
    """What the next batch is to write."""

    def __init__(self, timeline: Timeline, *, next_message: int = 1, next_row: int = 1) -> None:
        self.timeline = timeline
        self.size_bytes = 0
        """What the changes cost in memory until they are written."""
        self._next_message = self._first_message = next_message
        self._next_row = self._first_row = next_row
        self._clock: tuple[int, int] | None = None
        self._clear()

    def _clear(self) -> None:
        self.size_bytes = 0
        self._marks = 0
        self._new_waiting = 0
        self._new_rows: dict[int, Row] = {}
        self._clock = None
        self.sessions: dict[int, Callable[[], Values] | None] = {}
        """What gives the row of a changed one; None: it is gone."""
        self.subscriptions: dict[tuple[int, str], Values | None] = {}
        self._messages: dict[int, Message | None] = {}
        self._retained: dict[int, Values | None] = {}
        self._old_rows: dict[int, Row | None] = {}
        self._received: dict[tuple[int, int], Values | None] = {}

    @property
    def promises(self) -> bool:
        """Whether anything must be on the disk before those who caused it are answered.

        What a client acknowledged, and times, can wait for the next batch: at the worst a message goes
        out again.
        """
        return self._marks > 0 or len(self._new_rows) > 0

    @property
    def may_vanish(self) -> bool:
        """Whether acknowledgements of clients that are connected could take all promises back."""
        return self._marks == 0 and self._new_waiting == 0

    @property
    def oldest_row(self) -> int:
        """The number of the oldest new row; that of the next one if there is none."""
        return next(iter(self._new_rows), self._next_row)

    @property
    def next_row(self) -> int:
        """The number of the next new row."""
        return self._next_row

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write at all."""
        return not (
            self._clock
            or self.sessions
            or self.subscriptions
            or self._messages
            or self._retained
            or self._new_rows
            or self._old_rows
            or self._received
        )

    def mark(self) -> None:
        """Something changed that a client is told about."""
        self._marks += 1

    def keep_clock(self, time_ms: int, wall_ms: int) -> None:
        """Write what the clocks say."""
        self._clock = (time_ms, wall_ms)

    # --- messages

    def new_message(self, message: Message) -> Stored:
        """A message that nobody needed before."""
        stored = Stored(self._next_message, message)
        self._next_message += 1
        self._messages[stored.number] = message
        self.size_bytes += message.size_bytes
        return stored

    def drop_message(self, stored: Stored) -> None:
        """Nobody needs it any more."""
        if stored.number >= self._first_message:
            del self._messages[stored.number]
            self.size_bytes -= stored.message.size_bytes
        else:
            self._messages[stored.number] = None

    def retain(self, stored: Stored) -> None:
        """It is the retained message of its topic."""
        self._retained[stored.number] = (stored.number,)
        self._marks += 1

    def unretain(self, stored: Stored) -> None:
        """It is that no more."""
        if stored.number >= self._first_message:
            del self._retained[stored.number]
        else:
            self._retained[stored.number] = None

    # --- rows

    def new_row(
        self,
        session: int,
        stored: Stored,
        kind: Kind,
        *,
        delivery: Delivery | None = None,
        pattern: str | None = None,
    ) -> Row:
        """A message waits for a session."""
        row = Row(self._next_row, session, stored, kind, delivery=delivery, pattern=pattern)
        self._next_row += 1
        self._new_rows[row.number] = row
        self._new_waiting += 1
        self.size_bytes += ROW_BYTES
        return row

    def change_row(self, row: Row, packet_id: int) -> None:
        """It is sent, or only its PUBREL is due."""
        if row.number >= self._first_row:
            self._new_waiting -= row.packet_id is None
        else:
            self._old_rows[row.number] = row
        row.packet_id = packet_id

    def drop_row(self, row: Row) -> None:
        """It is settled."""
        if row.number >= self._first_row:
            del self._new_rows[row.number]
            self._new_waiting -= row.packet_id is None
            self.size_bytes -= ROW_BYTES
        else:
            self._old_rows[row.number] = None

    def receive(self, session: int, packet_id: int) -> None:
        """A QoS 2 message came under this id."""
        self._received[session, packet_id] = (session, packet_id)
        self._marks += 1

    def forget_received(self, session: int, packet_id: int, *, told: bool) -> None:
        """The id is free again; `told` when the client is waiting to hear so."""
        self._received[session, packet_id] = None
        self._marks += told

    # --- taking it away

    def take(self) -> Batch:
        """Everything, as it is now; later changes belong to the next batch."""
        batch = Batch(
            self.timeline,
            self._clock,
            {
                number: None if values is None else values()
                for number, values in self.sessions.items()
            },
            self.subscriptions,
            self._messages,
            self._retained,
            {
                number: None if row is None else row.values()
                for number, row in (*self._old_rows.items(), *self._new_rows.items())
            },
            self._received,
        )
        self._first_message = self._next_message
        self._first_row = self._next_row
        self._clear()
        return batch
