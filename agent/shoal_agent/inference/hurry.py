"""How soon answers are needed: the shortest deadline that was lately given. Pure; the time comes in."""

from typing import Final

WINDOW_S: Final = 60.0
"""A deadline counts for this long, and for less than three times as long."""


class Hurry:
    """Of one model's requests."""

    def __init__(self) -> None:
        self._since = 0.0
        self._shortest_s = self._before_s = float("inf")

    def note(self, deadline_s: float, now: float) -> None:
        """A request has so many seconds."""
        if now - self._since >= WINDOW_S:
            self._turn(now)
        self._shortest_s = min(self._shortest_s, deadline_s)

    def shortest_s(self, now: float) -> float:
        """The shortest of the last window; infinity: there was no request."""
        if now - self._since >= WINDOW_S:
            self._turn(now)
        return min(self._shortest_s, self._before_s)

    def _turn(self, now: float) -> None:
        is_next = now - self._since < 2 * WINDOW_S
        self._before_s = self._shortest_s if is_next else float("inf")
        self._shortest_s = float("inf")
        self._since = now
