"""Other rollout engines' rules, written again from what they document, under the virtual fleet's events. For rollout.py.

Each with every setting that its documentation gives for stopping by itself. None of them has leases: what is
assigned to a board that is offline waits for it. Boards are taken in the order of their numbers, which is random.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rollout_fleet import Board


class _Peer:
    """What most of them have in common: no timers, no second thoughts about an assignment."""

    _why = ""

    def returned(self, board: int, now_s: float) -> Iterable[int]:
        return ()

    def woke(self, now_s: float) -> Iterable[int]:
        return ()

    def wakes_s(self) -> float | None:
        return None

    def keeps(self, board: int) -> bool:
        return True

    def ended(self) -> str:
        return self._why


class HawkBit(_Peer):
    """Deployment groups: the next begins when enough of the last are finished; too many errors pause it.

    A pause opens no further group; what the open ones have been assigned stays assigned. Nothing times out.
    """

    def __init__(
        self, shares: Sequence[float], *, success_percent: float, error_percent: float
    ) -> None:
        self._shares = shares
        self._success, self._error = success_percent / 100, error_percent / 100

    def begin(self, boards: list[Board]) -> Iterable[int]:
        count = len(boards)
        ends = [
            min(count, math.ceil(count * sum(self._shares[: n + 1])))
            for n in range(len(self._shares))
        ]
        ends[-1] = count
        self._groups = [range(a, b) for a, b in zip([0, *ends], ends, strict=False) if b > a]
        self._good, self._bad = [0] * len(self._groups), [0] * len(self._groups)
        self._open = 1
        return self._groups[0]

    def answered(self, board: int, now_s: float, *, serves: bool) -> Iterable[int]:
        group = next(n for n, members in enumerate(self._groups) if board in members)
        (self._good if serves else self._bad)[group] += 1
        size = len(self._groups[group])
        if self._bad[group] / size >= self._error:
            self._why = "paused"
        if self._why or group != self._open - 1 or self._open == len(self._groups):
            return ()
        if self._good[group] / size < self._success:
            return ()
        self._open += 1
        return self._groups[self._open - 1]


@dataclass(frozen=True, slots=True)
class Abort:
    """A criterion: of at least `executed` jobs, this share failed, or timed out."""

    percent: float
    executed: int
    timed_out: bool = False


class AwsJobs(_Peer):
    """A rate a minute that grows with every so many things; failures and time-outs abort it.

    An abort cancels what was not begun. `grows_by`: "notified" or "succeeded" things.
    """

    def __init__(
        self,
        *,
        base_rate: float,
        factor: float,
        grows_at: int,
        grows_by: str,
        most_rate: float = 1000,
        aborts: Sequence[Abort] = (),
        timeout_min: float | None = None,
    ) -> None:
        self._base_rate, self._factor, self._most_rate = base_rate, factor, most_rate
        self._grows_at, self._grows_by = grows_at, grows_by
        self._aborts, self._timeout_min = aborts, timeout_min

    def begin(self, boards: list[Board]) -> Iterable[int]:
        self._boards = boards
        self._next, self._good, self._bad, self._late = 0, 0, 0, 0
        self._answered: set[int] = set()
        # When each job that was begun times out.
        self._due: list[tuple[float, int]] = []
        self._minute = 0
        return self._notify(0.0)

    def returned(self, board: int, now_s: float) -> Iterable[int]:
        if board < self._next and self.keeps(board):
            self._begun(board, now_s)
        return ()

    def answered(self, board: int, now_s: float, *, serves: bool) -> Iterable[int]:
        if board not in self._answered:
            self._answered.add(board)
            self._good += serves
            self._bad += not serves
            self._judge()
        return ()

    def woke(self, now_s: float) -> Iterable[int]:
        while self._due and self._due[0][0] <= now_s:
            _, board = heapq.heappop(self._due)
            if board not in self._answered:
                self._answered.add(board)
                self._late += 1
                self._judge()
        if self._why or now_s < self._minute * 60:
            return ()
        return self._notify(now_s)

    def wakes_s(self) -> float | None:
        times = [self._due[0][0]] if self._due else []
        if not self._why and self._next < len(self._boards):
            times.append(self._minute * 60.0)
        return min(times, default=None)

    def keeps(self, board: int) -> bool:
        return not self._why

    def _notify(self, now_s: float) -> range:
        grown = self._next if self._grows_by == "notified" else self._good
        rate = self._base_rate * self._factor ** min(60, grown // self._grows_at)
        first = self._next
        self._next = min(len(self._boards), first + round(min(rate, self._most_rate)))
        self._minute += 1
        for board in range(first, self._next):
            if self._boards[board].online_s <= now_s:
                self._begun(board, now_s)
        return range(first, self._next)

    def _begun(self, board: int, now_s: float) -> None:
        if self._timeout_min is not None:
            heapq.heappush(self._due, (now_s + self._timeout_min * 60, board))

    def _judge(self) -> None:
        executed = self._good + self._bad + self._late
        for abort in self._aborts:
            failed = self._late if abort.timed_out else self._bad
            if executed >= abort.executed and failed * 100 >= abort.percent * executed:
                self._why = "aborted"


class Mender(_Peer):
    """Phases by the clock: each takes a share of the boards, some time after the one before. Nothing stops it."""

    def __init__(self, phases: Sequence[tuple[float, float]]) -> None:
        self._phases = phases

    def begin(self, boards: list[Board]) -> Iterable[int]:
        ends, total = [], 0.0
        for share, _ in self._phases:
            total += share
            ends.append(min(len(boards), math.ceil(total * len(boards))))
        ends[-1] = len(boards)
        at_s = 0.0
        self._due: deque[tuple[float, range]] = deque()
        for (_, after_h), first, end in zip(self._phases, [0, *ends], ends, strict=False):
            at_s += after_h * 3600
            self._due.append((at_s, range(first, end)))
        return self._due.popleft()[1]

    def answered(self, board: int, now_s: float, *, serves: bool) -> Iterable[int]:
        return ()

    def woke(self, now_s: float) -> Iterable[int]:
        if self._due and self._due[0][0] <= now_s:
            return self._due.popleft()[1]
        return ()

    def wakes_s(self) -> float | None:
        return self._due[0][0] if self._due else None


class FlightCtl(_Peer):
    """Batches: each begins when all of the last have answered or timed out, and enough of them succeeded.

    Of a batch that falls short the rollout waits for a person. Assignments stay.
    """

    def __init__(
        self, limits: Sequence[float | int], *, success_percent: float, timeout_h: float
    ) -> None:
        self._limits = limits
        self._success, self._timeout_s = success_percent / 100, timeout_h * 3600

    def begin(self, boards: list[Board]) -> Iterable[int]:
        count = len(boards)
        ends = [
            limit if isinstance(limit, int) else math.ceil(limit * count) for limit in self._limits
        ]
        ends = [min(count, end) for end in [*ends, count]]
        self._batches = deque(range(a, b) for a, b in zip([0, *ends], ends, strict=False) if b > a)
        return self._open(0.0)

    def answered(self, board: int, now_s: float, *, serves: bool) -> Iterable[int]:
        if board in self._batch:
            self._good += serves
            self._bad += not serves
            if self._good + self._bad == len(self._batch):
                return self._complete(now_s)
        return ()

    def woke(self, now_s: float) -> Iterable[int]:
        if self._due_s is not None and now_s >= self._due_s:
            return self._complete(now_s)
        return ()

    def wakes_s(self) -> float | None:
        return self._due_s

    def _open(self, now_s: float) -> range:
        self._batch = self._batches.popleft()
        self._good = self._bad = 0
        self._due_s: float | None = now_s + self._timeout_s
        return self._batch

    def _complete(self, now_s: float) -> Iterable[int]:
        self._due_s = None
        if self._good / len(self._batch) < self._success:
            self._why = "waits for approval"
            return ()
        return self._open(now_s) if self._batches else ()
