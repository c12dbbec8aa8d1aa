"""Which row of the outbox is next: what the pump needs to know, in memory, mostly without payloads.

Pure: it neither reads the table nor sends anything, and time comes in as an argument.
`shoal_broker.outbox` keeps it in step with both.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from shoal_broker.outbox.rows import OutboxMessage


class Stage(Enum):
    """Where a message stands."""

    READY = auto()
    """To be sent, in its turn."""
    IN_FLIGHT = auto()
    LATER = auto()
    """Sent, and its receipt is awaited until `due_s`; or not to be sent before `due_s`."""


@dataclass(slots=True, eq=False)
class Entry:
    """What the index knows of a message.

    `handle` names it for the life of the process: its row id, or, of one that was held in memory
    first, a negative number. `order` is its place within the lane. `stream` is the topic of a
    droppable message. `message` is there while the disk does not have it. `sends` counts PUBACKs;
    `was_tried` says that it was taken to be sent.
    """

    handle: int
    order: tuple[int, int]
    lane: int
    size_bytes: int
    expires_at_ms: int | None = None
    coalesce_key: str | None = None
    receipt: bytes | None = None
    stream: str | None = None
    row_id: int | None = None
    message: OutboxMessage | None = None
    stage: Stage = Stage.READY
    sends: int = 0
    was_tried: bool = False
    due_s: float = 0.0


@dataclass(slots=True)
class Stream:
    """The droppable messages of one topic, oldest first."""

    handles: dict[int, None] = field(default_factory=dict)
    size_bytes: int = 0


@dataclass(slots=True)
class Index:
    """The messages in memory: by handle, key, receipt and stream, and the heaps of what is next.

    The heaps may name messages that are gone or stand elsewhere; looking at them skips those.
    """

    entries: dict[int, Entry] = field(default_factory=dict)
    by_key: dict[str, int] = field(default_factory=dict)
    by_receipt: dict[bytes, int] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    size_bytes: int = 0
    later: int = 0
    """How many stand at Stage.LATER."""
    _droppable: dict[int, None] = field(default_factory=dict)
    _held_rows: dict[int, int] = field(default_factory=dict)
    _ready: list[tuple[int, tuple[int, int], int]] = field(default_factory=list)
    _due: list[tuple[float, int]] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Take up a message; it is ready to be sent."""
        self.entries[entry.handle] = entry
        self.size_bytes += entry.size_bytes
        if entry.stream is not None:
            self._droppable[entry.handle] = None
            stream = self.streams.setdefault(entry.stream, Stream())
            stream.handles[entry.handle] = None
            stream.size_bytes += entry.size_bytes
        if entry.coalesce_key is not None:
            self.by_key[entry.coalesce_key] = entry.handle
        if entry.receipt is not None:
            self.by_receipt[entry.receipt] = entry.handle
        self.make_ready(entry)

    def discard(self, handle: int) -> Entry | None:
        """Forget a message; None when it was not known."""
        entry = self.entries.pop(handle, None)
        if entry is None:
            return None
        self.size_bytes -= entry.size_bytes
        if entry.stage is Stage.LATER:
            self.later -= 1
        if entry.stream is not None:
            del self._droppable[handle]
            stream = self.streams[entry.stream]
            del stream.handles[handle]
            stream.size_bytes -= entry.size_bytes
            if not stream.handles:
                del self.streams[entry.stream]
        if entry.coalesce_key is not None and self.by_key.get(entry.coalesce_key) == handle:
            del self.by_key[entry.coalesce_key]
        if entry.receipt is not None and self.by_receipt.get(entry.receipt) == handle:
            del self.by_receipt[entry.receipt]
        if entry.row_id is not None:
            self._held_rows.pop(entry.row_id, None)
        return entry

    def written(self, entry: Entry, row_id: int) -> None:
        """A message that was held in memory stands on the disk now."""
        entry.row_id = row_id
        entry.message = None
        self._held_rows[row_id] = entry.handle

    def knows_row(self, row_id: int) -> bool:
        """Whether this row is one of the messages."""
        return row_id in self.entries or row_id in self._held_rows

    def make_ready(self, entry: Entry) -> None:
        """It is to be sent, in its old place."""
        self._leave_stage(entry, Stage.READY)
        heapq.heappush(self._ready, (-entry.lane, entry.order, entry.handle))

    def launch(self, entry: Entry) -> None:
        """It is being sent."""
        self._leave_stage(entry, Stage.IN_FLIGHT)
        entry.was_tried = True

    def postpone(self, entry: Entry, due_s: float) -> None:
        """It is not to be sent before `due_s`."""
        self._leave_stage(entry, Stage.LATER)
        self.later += 1
        entry.due_s = due_s
        heapq.heappush(self._due, (due_s, entry.handle))

    def wake(self, now_s: float) -> None:
        """What is due becomes ready."""
        while (due_s := self.next_due_s()) is not None and due_s <= now_s:
            _, handle = heapq.heappop(self._due)
            self.make_ready(self.entries[handle])

    def next_due_s(self) -> float | None:
        """When the next message is due."""
        while self._due:
            due_s, handle = self._due[0]
            entry = self.entries.get(handle)
            if entry is not None and entry.stage is Stage.LATER and entry.due_s == due_s:
                return due_s
            heapq.heappop(self._due)
        return None

    def peek_ready(self) -> Entry | None:
        """Return the next message that is ready."""
        while self._ready:
            entry = self.entries.get(self._ready[0][2])
            if entry is not None and entry.stage is Stage.READY:
                return entry
            heapq.heappop(self._ready)
        return None

    def oldest_droppable(self, stream: str | None = None) -> int | None:
        """The oldest droppable message that is not in flight, of one stream or of all."""
        handles: Iterator[int] = iter(self._droppable)
        if stream is not None:
            handles = iter(self.streams[stream].handles if stream in self.streams else ())
        return next((h for h in handles if self.entries[h].stage is not Stage.IN_FLIGHT), None)

    def _leave_stage(self, entry: Entry, stage: Stage) -> None:
        if entry.stage is Stage.LATER:
            self.later -= 1
        entry.stage = stage
