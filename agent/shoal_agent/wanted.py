"""What the fleet wants here: one document a node, the newest that counts, kept in the journal as it came.

With keys it counts when one of the configuration's has signed it for this node's topic, and never after a newer
one. Whether it counts is asked again whenever it is read: a key that left the configuration wants nothing any
more. Without keys whatever comes is wanted.
"""

import asyncio

from shoal_agent.journal import Journal
from shoal_agent.trust import Trust
from shoal_contract import messages
from shoal_contract.errors import EnvelopeError
from shoal_contract.messages import Wanted


class WantedState:
    """Takes wanted states from the bus."""

    def __init__(self, journal: Journal, trust: Trust, *, topic: str) -> None:
        self._journal = journal
        self._trust = trust
        self._topic = topic
        self._turn = asyncio.Lock()

    async def take(self, message: bytes) -> Wanted | None:
        """What is wanted from now on, also after a power cut; None: refused, which is counted and said.

        Raises:
            ContractError: malformed.
            StoreError: it cannot be kept now.
        """
        async with self._turn:
            try:
                wanted = messages.decode_as(
                    self._trust.open_as_root(message, topic=self._topic), Wanted
                )
                if self._trust.asks_for_signatures:
                    await self._check_newer(wanted)
            except EnvelopeError as exc:
                self._trust.refuse(exc, topic=self._topic, event="wanted state refused")
                return None
            await self._journal.set_wanted(message)
            return wanted

    async def _check_newer(self, wanted: Wanted) -> None:
        held = await self._journal.wanted()
        if held is not None and wanted.revision < held.revision:
            raise EnvelopeError(
                "old", f"wanted state {wanted.revision} comes after {held.revision}"
            )
