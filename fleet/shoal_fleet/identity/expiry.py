"""The alarm for certificates that should have been renewed long ago: said once each, at level error."""

import asyncio
from collections.abc import Callable
from typing import Final, NoReturn, Protocol

import structlog

from shoal_fleet.clock import now_ms
from shoal_fleet.identity.inventory import Inventory

log = structlog.get_logger(__name__)

LOOK_EVERY_S: Final = 60.0


class Tell(Protocol):
    """Brings an alarm to people, as `Alarms.tell` does."""

    def __call__(self, event: str, node: str, **facts: object) -> None:
        """Say it."""
        ...


class Expiry:
    """Looks at the book.

    Attributes:
        soon: nodes whose certificate has less than a third of its life left.
        over: those of them whose certificate has run out.
    """

    def __init__(
        self, inventory: Inventory, *, tell: Tell, clock_ms: Callable[[], int] = now_ms
    ) -> None:
        self.soon: set[str] = set()
        self.over: set[str] = set()
        self._inventory = inventory
        self._tell = tell
        self._clock_ms = clock_ms
        self._said: set[tuple[str, str]] = set()

    def look(self) -> None:
        """Raise what is to be raised now."""
        at_ms = self._clock_ms()
        found = list(self._inventory.expiring(at_ms))
        self.soon = {identity.node for identity in found}
        self.over = {identity.node for identity in found if identity.not_after_ms <= at_ms}
        said: set[tuple[str, str]] = set()
        for identity in found:
            event = "certificate expires soon"
            if identity.node in self.over:
                event = "certificate has expired"
            said.add((identity.serial, event))
            if (identity.serial, event) not in self._said:
                log.error(event, node=identity.node, not_after_ms=identity.not_after_ms)
                self._tell(event, identity.node, not_after_ms=identity.not_after_ms)
        self._said = said

    async def run(self) -> NoReturn:
        """Look for ever."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)
