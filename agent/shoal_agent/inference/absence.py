"""One time that a release is away for its successor, where memory does not hold both. States only; `admission` walks them.

LEAVING -> DRAINING -> AWAY; from each of them it may be called back.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum


class Stay(Enum):
    """How far a release has gone.

    LEAVING: it is asked who serves meanwhile. Requests still run here, but who is about to leave, too, is told so:
    two nodes must never count on each other. DRAINING: others serve what comes now, what was accepted is answered here.
    AWAY: its memory is given back.
    """

    LEAVING = "leaving"
    DRAINING = "draining"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Cover:
    """Who serves a model while it is away here.

    Attributes:
        by: the node that has just answered a request for it; empty: nobody did.
        said: what each said that was asked.
    """

    by: str
    said: tuple[str, ...] = ()


FindCover = Callable[[str], Awaitable[Cover]]
"""Who else serves this model, now."""


async def nobody(_: str) -> Cover:
    """Of a node that knows no others."""
    return Cover("", ("no neighbour and no upstream is known",))


class Absence:
    """From the first question until it is back, or its successor is there.

    Attributes:
        stay: how far it has gone.
        may_fail: the operator allows that nobody serves meanwhile.
    """

    def __init__(self, swap: asyncio.Timeout, *, may_fail: bool) -> None:
        self.stay = Stay.LEAVING
        self.may_fail = may_fail
        self._swap = swap
        self._over = asyncio.Event()

    @property
    def is_gone(self) -> bool:
        """New requests are not for it."""
        return self.stay is not Stay.LEAVING

    def end(self) -> None:
        """The release takes requests again, or its successor does."""
        self._over.set()

    async def call_off(self, within_s: float) -> bool:
        """Nobody else serves: give the swap up. Returns whether requests are taken here again, within this time.

        Where the successor is loaded already, it is due at once, and this waits for it.
        """
        if self.may_fail:
            return False
        # `when` is None while nobody has done this: a swap that ends at this moment cannot be ended twice.
        if self._swap.when() is None and not self._over.is_set():
            with contextlib.suppress(RuntimeError):  # it is done, and about to be switched to
                self._swap.reschedule(asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(within_s):
                await self._over.wait()
        except TimeoutError:
            return False
        return True
