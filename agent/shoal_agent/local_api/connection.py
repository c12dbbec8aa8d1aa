"""One accepted socket of the local API: its place, its timer, and what waits to be written. Knows no protocol."""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from typing import Final, Protocol, cast

from shoal_agent.local_api.errors import ApiError

GRACE_S: Final = 10.0
SLOWEST_BYTES_S: Final = 64 * 1024
"""Who sends or reads more slowly than this, beyond the grace, is cut off."""


def time_for(size_bytes: int) -> float:
    """How long so much may take on the line."""
    return GRACE_S + size_bytes / SLOWEST_BYTES_S


class Places(Protocol):
    """Where a connection says that it is there, and that it is gone."""

    def enter(self, connection: Connection) -> None:
        """It came; it may be turned away at once."""

    def leave(self, connection: Connection) -> None:
        """It is gone."""


class Connection(asyncio.Protocol):
    """What every connection has. Subclasses speak."""

    transport: asyncio.Transport

    def __init__(self, places: Places) -> None:
        self._places = places
        self._loop = asyncio.get_running_loop()
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------ asyncio's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a socket was accepted."""
        self.take_over(cast("asyncio.Transport", transport))
        self._places.enter(self)

    def connection_lost(self, _: Exception | None) -> None:
        """asyncio: it is gone, whoever ended it."""
        self.no_due()
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        self._places.leave(self)
        self.gone()

    def pause_writing(self) -> None:
        """asyncio: the other side does not read as fast as we write."""
        if self._drained is None:
            self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """asyncio: everything is on its way."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # ------------------------------------------------------------------ what subclasses say
    @property
    def is_idle(self) -> bool:
        """Whether nobody would miss it: between two requests."""
        return False

    @abstractmethod
    def turn_away(self, why: ApiError) -> None:
        """There is no place for it: say so and close."""

    @abstractmethod
    def gone(self) -> None:
        """The connection is lost: give everything back."""

    @abstractmethod
    def timed_out(self) -> None:
        """What was due has not come."""

    # ------------------------------------------------------------------ what subclasses use
    def take_over(self, transport: asyncio.Transport) -> None:
        """Speak on this transport from now on."""
        self.transport = transport
        # Zero: told when everything has left, so that nothing piles up for who does not read.
        transport.set_write_buffer_limits(high=0)

    @property
    def is_behind(self) -> bool:
        """Whether something waits to be written."""
        return self._drained is not None

    async def drained(self) -> None:
        """Return when nothing waits to be written."""
        while self._drained is not None:
            await asyncio.shield(self._drained)

    def due_in(self, seconds: float) -> None:
        """`timed_out` is called then, unless another time is set before."""
        self._due = self._loop.time() + seconds
        if self._timer is not None and self._timer.when() <= self._due:
            return  # It looks again by itself.
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due, self._look)

    def no_due(self) -> None:
        """Nothing is expected of the other side."""
        self._due = math.inf

    def _look(self) -> None:
        self._timer = None
        if self._due == math.inf:
            return
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._look)
            return
        self._due = math.inf
        self.timed_out()
