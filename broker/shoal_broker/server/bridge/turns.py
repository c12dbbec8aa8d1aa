"""Messages that are in work side by side leave in the order in which they came, on each connection anew. Pure."""

from __future__ import annotations

import asyncio


class Turns:
    """Who came when, and on which connection it was last sent: any number that no other one has."""

    def __init__(self) -> None:
        self._sent_on: dict[int, float | None] = {}
        self._last = 0
        self._waiting: list[asyncio.Future[None]] = []

    def come(self) -> int:
        """A message came: its turn, until `gone`."""
        self._last += 1
        self._sent_on[self._last] = None
        return self._last

    async def wait(self, turn: int, connection: float | None) -> bool:
        """True when everybody who came earlier is gone or was sent on this connection, and it is ours.

        False when things have changed while we waited: it may be another connection by now.
        """
        for earlier, sent_on in self._sent_on.items():
            if earlier == turn:
                break
            if sent_on != connection:
                change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(change)
                await change
                return False
        self._sent_on[turn] = connection
        self._wake()
        return True

    def gone(self, turn: int) -> None:
        """It has been taken, or given up."""
        del self._sent_on[turn]
        self._wake()

    def _wake(self) -> None:
        for change in self._waiting:
            if not change.done():
                change.set_result(None)
        self._waiting.clear()
