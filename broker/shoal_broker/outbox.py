"""Messages that must leave, kept on disk until the other side has them.

Rows live in a `Store`; an index in memory tells the pump what to send next without asking SQLite.
Higher lane first, order kept within a lane. Nothing here sends: `shoal_broker.pump` takes rows and
says what became of them (`done`, `put_back`). For now a row is done at PUBACK; who wants the
application's own acknowledgement calls `done` later, nothing else changes.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Self

from shoal_broker.bus_errors import MessageTooLargeError, OutboxFullError
from shoal_broker.outbox_index import Entry, Index
from shoal_broker.outbox_rows import (
    COMPONENT,
    DDL,
    VERSION,
    Lane,
    OutboxMessage,
    OutboxRow,
    delete,
    fetch,
    insert,
)
from shoal_broker.store import Store

__all__ = ["Lane", "Outbox", "OutboxMessage", "OutboxRow", "OutboxStats", "insert"]

# Most rows deleted in one write: enough to make deletions free, few enough not to stall others.
DELETION_BATCH = 256


@dataclass(slots=True)
class OutboxStats:
    """Counters since the process started."""

    put: int = 0
    done: int = 0
    dropped: int = 0
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
    ) -> None:
        self.store = store
        self.stats = OutboxStats()
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self.clock_ms = clock_ms
        self._index = Index()
        self._indexed_through = 0
        # Rows that are through but still on disk: deleted many at a time, spared on a re-read.
        self._to_delete: dict[int, None] = {}
        self._deleting: dict[int, None] = {}
        self._reserved_rows = 0
        self._reserved_bytes = 0
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
    ) -> Self:
        """Create the table if need be and index what an earlier process left."""
        await store.create(COMPONENT, version=VERSION, ddl=DDL)
        outbox = cls(store, max_rows=max_rows, max_bytes=max_bytes, clock_ms=clock_ms)
        await outbox.refresh()
        return outbox

    def __len__(self) -> int:
        """Rows that are not through yet."""
        return len(self._index.entries)

    @property
    def size_bytes(self) -> int:
        """What the rows that are not through count against the limit."""
        return self._index.size_bytes

    async def put(self, message: OutboxMessage) -> None:
        """Return once the message is on the medium.

        A full outbox drops its oldest droppable rows first, then a droppable `message` itself.

        Raises OutboxFullError, MessageTooLargeError, StoreError.
        """
        if not self._make_room(message):
            self.stats.dropped += 1
            return
        deleted = self._claim_deletions()

        def run(connection: sqlite3.Connection) -> int:
            delete(connection, deleted)
            return insert(connection, message)

        self._reserved_rows += 1
        self._reserved_bytes += message.size_bytes
        try:
            row_id = await self.store.write(run)
        except BaseException as exc:
            self._to_delete |= dict.fromkeys(deleted)
            if isinstance(exc, asyncio.CancelledError):
                # The write happens all the same: the next look finds the row.
                self.changed()
            raise
        finally:
            self._reserved_rows -= 1
            self._reserved_bytes -= message.size_bytes
            self._forget_claimed(deleted)
        # A look that shared the commit has found the row already: it may even be on its way.
        if row_id > self._indexed_through:
            self._adopt(_entry(row_id, message))
        self.stats.put += 1

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
                "SELECT id, lane, size_bytes, expires_at_ms, coalesce_key, droppable"
                " FROM outbox WHERE id > ? ORDER BY id",
                (since,),
            ).fetchall()
        )
        for row in rows:
            entry = Entry(row[0], row[1], row[2], row[3], row[4], bool(row[5]))
            known = entry.id in self._index.entries
            if not known and entry.id not in self._to_delete and entry.id not in self._deleting:
                self._adopt(entry)
        if rows:
            self._indexed_through = max(self._indexed_through, rows[-1][0])

    async def wait(self) -> None:
        """Return when there may be something to take."""
        while not self._stale and self._index.peek_ready() is None:
            self._changed.clear()
            await self._changed.wait()

    async def wait_empty(self) -> None:
        """Return when every row is through."""
        while self._stale or self._index.entries:
            self._finished.clear()
            await self._finished.wait()

    async def wait_deletions(self) -> None:
        """Return when there is something for `flush_deletions`."""
        while not self._to_delete:
            self._finished.clear()
            await self._finished.wait()

    async def take(self, *, max_rows: int, max_bytes: int) -> list[OutboxRow]:
        """Return what to send next, in order, and mark it as in flight.

        At least one row if there is any, else no more than `max_rows` and `max_bytes`.
        Rows that have expired are dropped and counted.
        """
        if self._stale:
            await self.refresh()
        taken: list[Entry] = []
        size_bytes = 0
        now_ms = self.clock_ms()
        while len(taken) < max_rows and (entry := self._index.peek_ready()) is not None:
            if entry.expires_at_ms is not None and entry.expires_at_ms <= now_ms:
                self._finish(entry.id)
                self.stats.expired += 1
                continue
            if taken and size_bytes + entry.size_bytes > max_bytes:
                break
            entry.in_flight = True
            size_bytes += entry.size_bytes
            taken.append(entry)
        if not taken:
            self._finished.set()
            return []
        try:
            rows = await self.store.read(partial(fetch, row_ids=[entry.id for entry in taken]))
        except BaseException:
            self.put_back(entry.id for entry in taken)
            raise
        # A row that a newer one has replaced meanwhile is gone from the table.
        for gone in {entry.id for entry in taken} - {row.id for row in rows}:
            self._index.discard(gone)
            self._finished.set()
        return rows

    def done(self, row_id: int) -> None:
        """The row is through: it is forgotten now and deleted with the next batch."""
        if self._index.entries.get(row_id) is not None:
            self.stats.done += 1
        self._finish(row_id)

    def refuse(self, row_id: int) -> None:
        """The row can never be delivered: it is dropped and counted."""
        if self._index.entries.get(row_id) is not None:
            self.stats.dropped += 1
        self._finish(row_id)

    def put_back(self, row_ids: Iterable[int]) -> None:
        """These were not delivered: they are next again, in their old order."""
        for row_id in row_ids:
            entry = self._index.entries.get(row_id)
            if entry is not None and entry.in_flight:
                self._index.put_back(entry)
        self._changed.set()

    def put_back_all(self) -> None:
        """The connection is gone: whatever was in flight is next again."""
        self.put_back([entry.id for entry in self._index.entries.values() if entry.in_flight])

    @property
    def deletions_due(self) -> int:
        """Rows that are through and still on disk."""
        return len(self._to_delete)

    async def flush_deletions(self) -> None:
        """Delete from the disk what is through. All that a crash before it costs is a repeat."""
        while deleted := self._claim_deletions():
            try:
                await self.store.write(partial(delete, row_ids=deleted))
            except BaseException:
                self._to_delete |= dict.fromkeys(deleted)
                raise
            finally:
                self._forget_claimed(deleted)

    def _make_room(self, message: OutboxMessage) -> bool:
        """Drop what must go for `message`; False when it is the one to drop itself."""
        size_bytes = message.size_bytes
        if size_bytes > self._max_bytes:
            raise MessageTooLargeError(
                f"a message of {size_bytes} bytes for {message.topic} never fits the outbox"
                f" ({self._max_bytes} bytes)",
                size_bytes=size_bytes,
                limit_bytes=self._max_bytes,
            )
        replaced = self._index.by_key.get(message.coalesce_key or "")
        spare = 0 if replaced is None else self._index.entries[replaced].size_bytes
        spare_rows = 0 if replaced is None else 1
        while (
            len(self) + self._reserved_rows - spare_rows >= self._max_rows
            or self.size_bytes + self._reserved_bytes - spare + size_bytes > self._max_bytes
        ):
            oldest = next(
                (i for i in self._index.droppable if not self._index.entries[i].in_flight), None
            )
            if oldest is None:
                if message.droppable:
                    return False
                raise OutboxFullError(
                    f"the outbox is full ({len(self)} rows, {self.size_bytes} bytes): the broker"
                    " has been away for long, or the limits are too low",
                    rows=len(self),
                    size_bytes=self.size_bytes,
                )
            self._finish(oldest)
            self.stats.dropped += 1
        return True

    def _adopt(self, entry: Entry) -> None:
        key = entry.coalesce_key
        if key is not None and (older := self._index.by_key.get(key)) is not None:
            if older > entry.id:
                # A refresh may find rows out of turn; the newer one has won already.
                return
            self._index.discard(older)
            self.stats.coalesced += 1
        self._index.add(entry)
        if entry.id == self._indexed_through + 1:
            self._indexed_through = entry.id
        else:
            # Rows between came in by `insert`: look for them before sending this one.
            self._stale = True
        self._changed.set()

    def _finish(self, row_id: int) -> None:
        if self._index.discard(row_id) is not None:
            self._to_delete[row_id] = None
            self._finished.set()

    def _claim_deletions(self) -> list[int]:
        """Rows that the caller deletes now; nobody else does so meanwhile."""
        claimed = list(itertools.islice(self._to_delete, DELETION_BATCH))
        for row_id in claimed:
            del self._to_delete[row_id]
            self._deleting[row_id] = None
        return claimed

    def _forget_claimed(self, row_ids: Iterable[int]) -> None:
        for row_id in row_ids:
            self._deleting.pop(row_id, None)


def _entry(row_id: int, message: OutboxMessage) -> Entry:
    return Entry(
        row_id,
        int(message.lane),
        message.size_bytes,
        message.expires_at_ms,
        message.coalesce_key,
        message.droppable,
    )
