"""How late the event loop is: what a busy or blocked broker makes everybody wait. Pure."""

from collections import deque

WINDOW = 60
"""Looks that are remembered, one a second."""


class LoopLag:
    """The lag of the newest looks."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=WINDOW)

    def note(self, *, due_s: float, now_s: float) -> None:
        """What was to happen at `due_s` happens now."""
        self._newest.append(max(0.0, now_s - due_s))

    @property
    def largest_s(self) -> float:
        """Within the last minute."""
        return max(tuple(self._newest), default=0.0)
