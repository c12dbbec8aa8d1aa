"""How old the oldest message of a queue is, without a time for each: the queue is first in, first out. Pure."""

from __future__ import annotations

from collections import deque


class Ages:
    """Looks at a queue now and then, and remembers how many messages had come until when."""

    def __init__(self, *, waiting: int, now_s: float) -> None:
        """`waiting` from before: counted from now."""
        self._put_before = waiting
        self._looks: deque[tuple[int, float]] = deque([(waiting, now_s)])

    def look(self, *, put: int, waiting: int, now_s: float) -> None:
        """`put` messages have come since the start, `waiting` are there."""
        total = self._put_before + put
        if total > self._looks[-1][0]:
            self._looks.append((total, now_s))
        gone = total - waiting
        while len(self._looks) > 1 and self._looks[0][0] <= gone:
            self._looks.popleft()

    def oldest_s(self, *, put: int, waiting: int, now_s: float) -> float:
        """The age of the oldest that waits, give or take the time between two looks."""
        if not waiting:
            return 0.0
        gone = self._put_before + put - waiting
        for total, came_s in tuple(self._looks):
            if total > gone:
                return now_s - came_s
        return 0.0
