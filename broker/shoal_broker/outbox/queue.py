"""Messages that must leave, kept until the other side has them.

Rows live in a `Store`; an index in memory tells the pump what to send next without asking SQLite.
Higher lane first, order kept within a lane. Nothing here sends: `shoal_broker.pump` takes messages
and says what became of them (`sent`, `put_back`). A message without a receipt is through at PUBACK;
one with a receipt when the application at the other end has said so (`received`), and until then it
is sent again, ever more rarely. What may be held in memory first is `held`'s business.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeVar

from shoal_broker.outbox.absences import Absences
from shoal_broker.outbox.deletions import Deletions
from shoal_broker.outbox.held import HOLD_S, Held
from shoal_broker.outbox.index import Entry, Index, Stage
from shoal_broker.outbox.room import Room
from shoal_broker.outbox.rows import (
    COMPONENT,
    DDL,
    MIGRATIONS,
    VERSION,
    OutboxMessage,
    OutboxRow,
    delete,
    fetch,
    insert,
)
from shoal_broker.store import Store

T = TypeVar("T")


# A receipt takes a round trip and a commit: what has none after this long was lost on the way.
RESEND_S = 10.0
RESEND_MAX_S = 3600.0
# Sent so often, about a week has passed: nobody will ever say that he has it.
MAX_SENDS = 180


@dataclass(slots=True)
class OutboxStats:
    """Counters since the process started.

    `received`: ended by a receipt. `resent`: sent again because there was none. `unconfirmed`: given
    up although the broker had taken them, for want of a receipt or of room. `dropped`: given up
    before the broker had them; of these `refused`: because it never takes them.
    """

    put: int = 0
    done: int = 0
    received: int = 0
    resent: int = 0
    unconfirmed: int = 0
    dropped: int = 0
    refused: int = 0
    expired: int = 0
    coalesced: int = 0


class Outbox:
    """The outgoing messages of one process. Build it with `await Outbox.load(store)`."""

    def __init__(
        self,
        store: Store,
        *,
        max_rows: int,
        max_bytes: int,
        clock_ms: Callable[[], int],
        clock_s: Callable[[], float],
    ) -> None:
        self.store = store
        self.stats = OutboxStats()
        self.clock_ms = clock_ms
        self._clock_s = clock_s
        self._index = Index()
        self._room = Room(self._index, max_rows=max_rows, max_bytes=max_bytes, drop=self._drop)
        self._deletions = Deletions()
        self._held = Held(self._write_held)
        self._absences = Absences()
        self._indexed_through = 0
        self._newest_row = 0
        self._changed = asyncio.Event()
        self._finished = asyncio.Event()
        self._stale = False

    @classmethod
    async def load(
        cls,
        store: Store,
        *,
        max_rows: int = 100_000,
        max_bytes: int = 64 << 20,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Create the table if need be and index what an earlier process left."""
        await store.create(COMPONENT, version=VERSION, ddl=DDL, migrations=MIGRATIONS)
        outbox = cls(
            store, max_rows=max_rows, max_bytes=max_bytes, clock_ms=clock_ms, clock_s=clock_s
        )
        await outbox.refresh()
        for entry in outbox._index.entries.values():
            # It may have been sent before, and its receiver may owe the receipt.
            entry.sends = int(entry.receipt is not None)
        return outbox

    def __len__(self) -> int:
        """Messages that are not through yet."""
        return len(self._index.entries)

    @property
    def size_bytes(self) -> int:
        """What the messages that are not through count against the limit."""
        return self._index.size_bytes

    @property
    def unsent(self) -> int:
        """Messages that the broker does not have, or that are to be sent again now."""
        return len(self._index.entries) - self._index.later

    async def put(
        self,
        message: OutboxMessage,
        *,
        hold: bool = False,
        not_before_s: float = 0.0,
        stream_bytes: int | None = None,
    ) -> None:
        """Return once the message is safe: on the medium, or, with `hold`, at its receiver.

        A full outbox drops its oldest droppable messages first, then a droppable `message` itself;
        `stream_bytes` bounds in the same way what waits for its topic. A message whose receipt is
        awaited already is that same message. `not_before_s`: from now, not sent before.

        Raises OutboxFullError, MessageTooLargeError, StoreError.
        """
        if message.receipt is not None and message.receipt in self._index.by_receipt:
            await self._held.wait_safe(self._index.by_receipt[message.receipt])
            return
        if not self._room.make(message, stream_bytes=stream_bytes):
            self.stats.dropped += 1
            return
        if hold and message.receipt is not None and self._held.may_hold:
            await self._hold(message)
        else:
            await self._put_on_disk(message, not_before_s)
        self.stats.put += 1

    async def _put_on_disk(self, message: OutboxMessage, not_before_s: float) -> None:
        with self._room.reserved(message), self._deletions.claimed() as deleted:

            def run(connection: sqlite3.Connection) -> int:
                delete(connection, deleted)
                return insert(connection, message)

            row_id = await self._write(run)
        # A look that shared the commit has found the row already: it may even be on its way.
        if row_id > self._indexed_through:
            entry = self._adopt(_entry(row_id, message))
            if entry is not None and not_before_s > 0:
                self._index.postpone(entry, self._clock_s() + not_before_s)

    async def _hold(self, message: OutboxMessage) -> None:
        entry = self._held.entry(message, after=self._newest_row)
        self._index.add(entry)
        self._changed.set()
        try:
            await self._held.wait_received_or_write(entry, HOLD_S)
        except BaseException:
            # Nobody was told that it is safe: who wanted it sent will say so again.
            if self._index.discard(entry.handle) is not None and entry.row_id is not None:
                self._deletions.add(entry.row_id)
            raise

    async def _write_held(self, group: list[Entry]) -> None:
        """Put these on the disk, in one commit."""
        held = [entry.message for entry in group if entry.message is not None]
        with self._deletions.claimed() as deleted:

            def run(connection: sqlite3.Connection) -> list[int]:
                delete(connection, deleted)
                return [insert(connection, message) for message in held]

            row_ids = await self._write(run)
        for entry, row_id in zip(group, row_ids, strict=True):
            self._note_row(row_id)
            if entry.handle in self._index.entries and entry.row_id is None:
                self._index.written(entry, row_id)
            elif entry.row_id != row_id:
                # Its receipt came while it was written.
                self._deletions.add(row_id)

    async def _write(self, run: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self.store.write(run)
        except asyncio.CancelledError:
            # The write happens all the same: the next look finds the rows.
            self.changed()
            raise

    def changed(self) -> None:
        """Note that rows came in by `insert`; the next `wait` or `take` looks for them."""
        self._stale = True
        self._changed.set()

    async def refresh(self) -> None:
        """Index the rows that were added since the last look."""
        self._stale = False
        since = self._indexed_through
        rows = await self.store.read(
            lambda connection: connection.execute(
                "SELECT id, lane, size_bytes, MIN(COALESCE(expires_at_ms, keep_until_ms),"
                " COALESCE(keep_until_ms, expires_at_ms)), coalesce_key, receipt,"
                " CASE WHEN droppable THEN topic END, id FROM outbox WHERE id > ? ORDER BY id",
                (since,),
            ).fetchall()
        )
        for row_id, *columns in rows:
            if self._index.knows_row(row_id) or row_id in self._deletions:
                continue
            entry = Entry(row_id, (row_id, 0), *columns)
            twin = self._index.by_receipt.get(entry.receipt or b"")
            if twin is None:
                self._adopt(entry)
            elif self._index.entries[twin].row_id is None:
                # It was held, and is found before its write has returned.
                self._index.written(self._index.entries[twin], row_id)
                self._held.forget(twin)
            else:
                self._deletions.add(row_id)
        if rows:
            self._indexed_through = max(self._indexed_through, rows[-1][0])
            self._newest_row = max(self._newest_row, rows[-1][0])

    async def wait(self) -> None:
        """Return when there may be something to take."""
        while True:
            self._index.wake(self._clock_s())
            if self._stale or self._index.peek_ready() is not None:
                return
            self._changed.clear()
            due_s = self._index.next_due_s()
            try:
                async with asyncio.timeout(None if due_s is None else due_s - self._clock_s()):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def wait_sent(self) -> None:
        """Return when the broker has every message."""
        while self._stale or self.unsent:
            self._finished.clear()
            await self._finished.wait()

    async def wait_deletions(self) -> None:
        """Return when there is something for `flush_deletions`."""
        while not self._deletions:
            self._finished.clear()
            await self._finished.wait()

    async def take(self, *, max_rows: int, max_bytes: int) -> list[OutboxRow]:
        """Return what to send next, in order, and mark it as in flight.

        At least one message if there is any, else no more than `max_rows` and `max_bytes`.
        What has expired is dropped and counted.
        """
        if self._stale:
            await self.refresh()
        self._index.wake(self._clock_s())
        taken = self._choose(max_rows=max_rows, max_bytes=max_bytes)
        if not taken:
            self._finished.set()
            return []
        try:
            found = await self._messages(taken)
        except BaseException:
            self.put_back(entry.handle for entry in taken)
            raise
        rows = []
        now_s = self._clock_s()
        for entry in taken:
            message = found.get(entry.handle)
            if message is None:
                # A row that a newer one has replaced meanwhile is gone from the table.
                self._index.discard(entry.handle)
                self._finished.set()
            elif entry.receipt and (until_s := self._absences.until_s(message.topic)) > now_s:
                # Not ahead of those that wait already.
                self._index.postpone(entry, until_s)
                self._finished.set()
            else:
                rows.append(OutboxRow(entry.handle, message))
        return rows

    def _choose(self, *, max_rows: int, max_bytes: int) -> list[Entry]:
        taken: list[Entry] = []
        size_bytes = 0
        now_ms = self.clock_ms()
        while len(taken) < max_rows and (entry := self._index.peek_ready()) is not None:
            if _has_expired(entry, now_ms):
                self._finish(entry.handle)
                self.stats.expired += 1
                continue
            if taken and size_bytes + entry.size_bytes > max_bytes:
                break
            self._index.launch(entry)
            size_bytes += entry.size_bytes
            taken.append(entry)
        return taken

    async def _messages(self, entries: Iterable[Entry]) -> dict[int, OutboxMessage]:
        """The messages by handle, from memory or from the disk."""
        found = {entry.handle: entry.message for entry in entries if entry.message is not None}
        rows = {e.row_id: e.handle for e in entries if e.message is None and e.row_id is not None}
        if rows:
            on_disk = await self.store.read(partial(fetch, row_ids=list(rows)))
            found |= {rows[row_id]: message for row_id, message in on_disk.items()}
        return found

    def sent(self, handle: int, topic: str, *, anybody: bool = True) -> None:
        """The broker has the message; `anybody`: and somebody who has subscribed to its topic."""
        if anybody:
            self._absences.ended(topic)
        entry = self._index.entries.get(handle)
        if entry is None:
            return
        entry.sends += 1
        self.stats.resent += entry.sends > 1
        if entry.receipt is None:
            self.stats.done += 1
            self._finish(handle)
        elif entry.sends > MAX_SENDS:
            self.stats.unconfirmed += 1
            self._finish(handle)
        else:
            now_s = self._clock_s()
            delay_s = min(RESEND_MAX_S, RESEND_S * 2.0 ** (entry.sends - 1))
            self._postpone(entry, now_s + delay_s if anybody else self._absences.met(topic, now_s))
            self._finished.set()

    def received(self, receipts: Iterable[bytes]) -> None:
        """The application at the other end has committed these messages: they are through."""
        for receipt in receipts:
            handle = self._index.by_receipt.get(receipt)
            if handle is not None:
                self.stats.received += 1
                self._finish(handle)
        self._held.receipts_are_prompt = True

    def hurry(self, receipts: Iterable[bytes], *, in_s: float) -> None:
        """Whoever is to receive these has come back: send them again, unless their receipts come."""
        self._absences.forget()
        due_s = self._clock_s() + in_s
        for receipt in receipts:
            handle = self._index.by_receipt.get(receipt)
            entry = None if handle is None else self._index.entries[handle]
            if entry is not None and entry.stage is Stage.LATER:
                self._postpone(entry, min(due_s, entry.due_s))

    def refuse(self, handle: int) -> None:
        """The message can never be delivered: it is dropped and counted."""
        if handle in self._index.entries:
            self.stats.dropped += 1
            self.stats.refused += 1
        self._finish(handle)

    def put_back(self, handles: Iterable[int]) -> None:
        """These were not delivered: they are next again, in their old order."""
        for handle in handles:
            entry = self._index.entries.get(handle)
            if entry is not None and entry.stage is Stage.IN_FLIGHT:
                self._index.make_ready(entry)
        self._changed.set()

    def link_opened(self, *, session_present: bool) -> None:
        """A connection is there: what the last one left in doubt is next again, in its old order.

        That is what was in flight, and of what awaits a receipt everything if the broker has
        forgotten us, else what was sent once: a broker that died may have forgotten the newest.
        """
        self._held.receipts_are_prompt = False
        self._absences.forget()
        for entry in self._index.entries.values():
            in_doubt = entry.stage is Stage.LATER and entry.was_tried
            if entry.stage is Stage.IN_FLIGHT or (
                in_doubt and (not session_present or entry.sends <= 1)
            ):
                self._index.make_ready(entry)
        self._changed.set()

    @property
    def deletions_due(self) -> int:
        """Rows that are through and still on disk."""
        return len(self._deletions)

    async def flush(self) -> None:
        """Put on the disk what is held, delete from it what is through.

        All that a crash before it costs is a repeat.
        """
        await self._held.write_now()
        await self.flush_deletions()

    async def flush_deletions(self) -> None:
        """Delete from the disk what is through. All that a crash before it costs is a repeat."""
        while self._deletions:
            with self._deletions.claimed() as deleted:
                await self.store.write(partial(delete, row_ids=deleted))

    def _drop(self, handle: int) -> None:
        if self._index.entries[handle].sends:
            self.stats.unconfirmed += 1
        else:
            self.stats.dropped += 1
        self._finish(handle)

    def _adopt(self, entry: Entry) -> Entry | None:
        """Take up a row that is new; None when it has been replaced already."""
        key = entry.coalesce_key
        if key is not None and (older := self._index.by_key.get(key)) is not None:
            if older > entry.handle:
                # A refresh may find rows out of turn; the newer one has won already.
                return None
            self._index.discard(older)
            self.stats.coalesced += 1
        self._index.add(entry)
        self._note_row(entry.handle)
        self._changed.set()
        return entry

    def _note_row(self, row_id: int) -> None:
        self._newest_row = max(self._newest_row, row_id)
        if row_id == self._indexed_through + 1:
            self._indexed_through = row_id
        elif row_id > self._indexed_through:
            # Rows between came in by `insert`: look for them before sending this one.
            self._stale = True

    def _postpone(self, entry: Entry, due_s: float) -> None:
        earlier_s = self._index.next_due_s()
        self._index.postpone(entry, due_s)
        if earlier_s is None or entry.due_s < earlier_s:
            # Whoever waits for the next one waits too long now.
            self._changed.set()

    def _finish(self, handle: int) -> None:
        entry = self._index.discard(handle)
        if entry is not None:
            self._held.forget(handle)
            if entry.row_id is not None:
                self._deletions.add(entry.row_id)
            self._finished.set()


def _entry(row_id: int, message: OutboxMessage) -> Entry:
    return Entry(
        row_id,
        (row_id, 0),
        int(message.lane),
        message.size_bytes,
        message.gone_at_ms,
        message.coalesce_key,
        message.receipt,
        message.topic if message.droppable else None,
        row_id,
    )


def _has_expired(entry: Entry, now_ms: int) -> bool:
    """One that was sent before is asked about even so: its receiver may owe the receipt."""
    if entry.expires_at_ms is None or entry.expires_at_ms > now_ms:
        return False
    return entry.stream is not None or not entry.sends
