"""What waits for one release: a bounded queue of items, most urgent first. Pure; times come in."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal_contract.messages import Answer


@dataclass(slots=True, eq=False)
class Waiting:
    """One request's items and their results so far.

    `over` is set when nobody waits for the results any more: its items are then skipped.
    """

    items: Sequence[bytes]
    deadline: float
    priority: int
    retried: bool = False
    over: bool = False
    results: dict[int, Answer] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Every item has its result."""
        return len(self.results) == len(self.items)


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One item in the queue; sorts by urgency (higher priority first), then by arrival."""

    urgency: int
    arrival: int
    index: int
    request: Waiting = field(compare=False)

    @property
    def item(self) -> bytes:
        """The encoded item."""
        return self.request.items[self.index]


class Backlog:
    """At most `limit` items; a batch is taken whole or not at all by the one who runs it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._heap: list[Entry] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._heap)

    def has_room(self, items: int) -> bool:
        """Whether so many more may come; what nobody waits for any more is thrown out first."""
        if len(self._heap) + items > self.limit:
            self._heap = [entry for entry in self._heap if not entry.request.over]
            heapq.heapify(self._heap)
        return len(self._heap) + items <= self.limit

    def push(self, request: Waiting) -> None:
        """Queue every item of a request; ask `has_room` first."""
        self._arrivals += 1
        for index in range(len(request.items)):
            heapq.heappush(self._heap, Entry(-request.priority, self._arrivals, index, request))

    def take(self, limit: int, now: float) -> list[Entry]:
        """The most urgent items, at most `limit`, of requests that are still wanted."""
        batch: list[Entry] = []
        while self._heap and len(batch) < limit:
            entry = heapq.heappop(self._heap)
            if not entry.request.over and entry.request.deadline > now:
                batch.append(entry)
        return batch

    def put_back(self, batch: Sequence[Entry]) -> None:
        """Back to the places they were taken from, whatever the limit: their request was accepted."""
        for entry in batch:
            heapq.heappush(self._heap, entry)
