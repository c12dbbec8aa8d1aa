"""What waits for one release: a bounded queue, most urgent first, taken in batches of one form. Pure; times come in.

A class of priority is worth AGEING_S seconds of waiting: whoever waits for so long goes before what comes now in
the class above, so that nothing waits for ever. The order therefore never changes while something waits.
"""

import asyncio
import heapq
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import msgspec

from shoal_agent.inference.signature import Form
from shoal_agent.inference.tensors import Tensor

AGEING_S: Final = 0.5


class Priority(IntEnum):
    """The classes of requests."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


# These two are made for every request: as dataclasses they take two and five times as long to make.
class Request(msgspec.Struct, eq=False):
    """One request: its tensors, in the order of `form.inputs`, and how far it is.

    Attributes:
        done: where the outputs are waited for.
        bucket: where its deadline is watched.
        retry: once, when the worker dies of it, or with it.
        over: nobody waits for it any more: what is left of it is skipped.
        is_running: some of it was given to a worker.
        parts: outputs by the row where they begin.
    """

    form: Form
    inputs: Sequence[Tensor]
    rows: int
    deadline: float
    priority: int
    arrived: float
    done: asyncio.Future[list[Tensor]]
    retry: bool = True
    bucket: set["Request"] | None = None
    over: bool = False
    is_running: bool = False
    rows_done: int = 0
    parts: dict[int, list[Tensor]] | None = None

    @property
    def urgency(self) -> float:
        """The lower, the sooner."""
        return self.arrived - self.priority * AGEING_S


class Piece(msgspec.Struct, frozen=True, gc=False):
    """Some rows of a request: all of them, unless the request is larger than what was left of a batch."""

    request: Request
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start


_Entry = tuple[float, int, int, Piece]


class Backlog:
    """At most `limit` rows.

    Attributes:
        rows: how many wait.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rows = 0
        self._heaps: dict[Form, list[_Entry]] = {}
        self._last_form: Form | None = None
        self._last_heap: list[_Entry] = []
        self._rows_of_class = [0] * len(Priority)
        self._arrivals = 0
        self._returns = 0

    def __len__(self) -> int:
        return self.rows

    def has_room(self, rows: int) -> bool:
        """Whether so many more may come; what nobody waits for any more is thrown out first."""
        if self.rows + rows > self.limit:
            self._throw_out()
        return self.rows + rows <= self.limit

    def push(self, request: Request) -> None:
        """Queue a request; ask `has_room` first."""
        self._arrivals += 1
        urgency = request.arrived - request.priority * AGEING_S
        self._put((urgency, self._arrivals, 0, Piece(request, 0, request.rows)))

    def take(self, limit: int, now: float) -> list[Piece]:
        """The most urgent rows of one form, at most `limit`, of requests that are still wanted."""
        batch: list[Piece] = []
        heap = self._most_urgent(now)
        # What has no batch dimension is a batch of its own.
        room = limit if heap and heap[0][3].request.form.is_batched else 1
        rows_of_class = self._rows_of_class
        while heap and room:
            urgency, arrival, _, piece = heapq.heappop(heap)
            rows = piece.stop - piece.start
            request = piece.request
            self.rows -= rows
            rows_of_class[request.priority] -= rows
            if request.over or request.deadline <= now:
                continue
            request.is_running = True
            if rows > room:
                rest = Piece(request, piece.start + room, piece.stop)
                self._put((urgency, arrival, rest.start, rest))
                piece, rows = Piece(request, piece.start, rest.start), room
            batch.append(piece)
            room -= rows
        return batch

    def put_back(self, batch: Sequence[Piece]) -> None:
        """Before what arrived later, whatever the limit: their requests were accepted."""
        for piece in reversed(batch):
            self._returns -= 1
            self._put((piece.request.urgency, self._returns, piece.start, piece))

    def first_class(self, now: float) -> int:
        """The class of the most urgent request, ageing included; -1: nothing waits."""
        if not self.rows:
            return -1
        urgency = min(heap[0][0] for heap in self._heaps.values() if heap)
        return min(Priority.HIGH, max(0, int((now - urgency) / AGEING_S)))

    def rows_before(self, priority: int) -> int:
        """How many rows wait in this class and above it."""
        low, normal, high = self._rows_of_class
        return high + (normal if priority < Priority.HIGH else 0) + (low if priority <= 0 else 0)

    def _most_urgent(self, now: float) -> list[_Entry]:
        """The heap whose first entry is wanted and goes before those of the others; empty: there is none."""
        best: list[_Entry] = []
        for form, heap in list(self._heaps.items()):
            while heap and (heap[0][3].request.over or heap[0][3].request.deadline <= now):
                piece = heapq.heappop(heap)[3]
                self._count(piece.request, -piece.rows)
            if not heap:
                self._drop(form)
            elif not best or heap[0] < best[0]:
                best = heap
        return best

    def _put(self, entry: _Entry) -> None:
        piece = entry[3]
        request = piece.request
        rows = piece.stop - piece.start
        self.rows += rows
        self._rows_of_class[request.priority] += rows
        if request.form is not self._last_form:  # most are of the same: no hashing for each
            self._last_form = request.form
            self._last_heap = self._heaps.setdefault(request.form, [])
        heapq.heappush(self._last_heap, entry)

    def _drop(self, form: Form) -> None:
        del self._heaps[form]
        self._last_form = None

    def _count(self, request: Request, rows: int) -> None:
        self.rows += rows
        self._rows_of_class[request.priority] += rows

    def _throw_out(self) -> None:
        for form, heap in list(self._heaps.items()):
            kept: list[_Entry] = []
            for entry in heap:
                if entry[3].request.over:
                    self._count(entry[3].request, -entry[3].rows)
                else:
                    kept.append(entry)
            heapq.heapify(kept)
            self._heaps[form] = kept
            self._last_form = None
            if not kept:
                self._drop(form)
