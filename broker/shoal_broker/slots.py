"""A number of places that are taken and given back, in the order of asking.

What asyncio.Semaphore does, but taking a free place needs no coroutine: it happens for every message.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class Slots:
    """`count` places."""

    __slots__ = ("_free", "_waiting")

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[asyncio.Future[None]] | None = None

    def try_take(self) -> bool:
        """Take a place if one is free and nobody has asked before."""
        if self._free and not self._waiting:
            self._free -= 1
            return True
        return False

    async def take(self) -> None:
        """Return with a place taken."""
        if self.try_take():
            return
        if self._waiting is None:
            self._waiting = deque()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # It was given a place in the same moment.
                self.give()
            else:
                # Gone from the line already when a place came by after the cancel.
                with contextlib.suppress(ValueError):
                    self._waiting.remove(turn)
            raise

    def give(self) -> None:
        """Give a place back: whoever has waited longest has it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
