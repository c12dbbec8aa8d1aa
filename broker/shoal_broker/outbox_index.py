"""Which row of the outbox is next: what the pump needs to know, in memory, without payloads.

Pure: it neither reads the table nor sends anything. `shoal_broker.outbox` keeps it in step with both.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field


@dataclass(slots=True)
class Entry:
    """What the index knows of a row; the payload stays on disk."""

    id: int
    lane: int
    size_bytes: int
    expires_at_ms: int | None
    coalesce_key: str | None
    droppable: bool
    in_flight: bool = False


@dataclass(slots=True)
class Index:
    """The rows in memory: by id, by key, droppable ones by age, and the heap of what is next.

    The heap may name rows that are gone or in flight; `peek_ready` skips them.
    """

    entries: dict[int, Entry] = field(default_factory=dict)
    by_key: dict[str, int] = field(default_factory=dict)
    droppable: dict[int, None] = field(default_factory=dict)
    ready: list[tuple[int, int]] = field(default_factory=list)
    size_bytes: int = 0

    def add(self, entry: Entry) -> None:
        """Take up a row; it is ready to be sent."""
        self.entries[entry.id] = entry
        self.size_bytes += entry.size_bytes
        if entry.droppable:
            self.droppable[entry.id] = None
        if entry.coalesce_key is not None:
            self.by_key[entry.coalesce_key] = entry.id
        heapq.heappush(self.ready, (-entry.lane, entry.id))

    def discard(self, row_id: int) -> Entry | None:
        """Forget a row; None when it was not known."""
        entry = self.entries.pop(row_id, None)
        if entry is None:
            return None
        self.size_bytes -= entry.size_bytes
        self.droppable.pop(row_id, None)
        if entry.coalesce_key is not None and self.by_key.get(entry.coalesce_key) == row_id:
            del self.by_key[entry.coalesce_key]
        return entry

    def put_back(self, entry: Entry) -> None:
        """A row that was in flight is ready again, in its old place."""
        entry.in_flight = False
        heapq.heappush(self.ready, (-entry.lane, entry.id))

    def peek_ready(self) -> Entry | None:
        """Return the next row that is not in flight."""
        while self.ready:
            entry = self.entries.get(self.ready[0][1])
            if entry is not None and not entry.in_flight:
                return entry
            heapq.heappop(self.ready)
        return None
