"""Receipts to the nodes: what was committed here, so that they need not keep it.

Receipts of one moment go out as one message, at QoS 0: a node whose receipt got lost sends the message
again and gets another one. It commits nothing.
"""

import asyncio
from collections import defaultdict
from typing import Final, NoReturn

from shoal_broker.bus_errors import BusError
from shoal_broker.session import Session
from shoal_contract import messages, receipts
from shoal_contract.messages import Receipt
from shoal_contract.topics import Topics
from shoal_fleet.issuer import Issuer

GATHER_S: Final = 0.02
"""A node waits that much longer, and one message serves all that came meanwhile."""
AT_MOST: Final = 1024
"""Names in one message: 8 KiB."""


class Receipts:
    """Gathers and sends. `given` counts since the start."""

    def __init__(self, session: Session, topics: Topics, *, issuer: Issuer) -> None:
        self.given = 0
        self._session = session
        self._topics = topics
        self._issuer = issuer
        self._due: defaultdict[str, list[bytes]] = defaultdict(list)
        self._wake = asyncio.Event()

    def give(self, node: str, topic: str, payload: bytes) -> None:
        """This message of the node need not be sent again."""
        self._due[node].append(receipts.name(topic, payload))
        self._wake.set()

    async def run(self) -> NoReturn:
        """Send what is due, for ever."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            self._wake.clear()
            due, self._due = self._due, defaultdict(list)
            for node, names in due.items():
                await self._send(node, names)

    async def _send(self, node: str, names: list[bytes]) -> None:
        topic = self._topics.commands(node)
        for start in range(0, len(names), AT_MOST):
            some = names[start : start + AT_MOST]
            receipt = messages.encode(Receipt(b"".join(some)))
            payload = self._issuer.sealed(receipt, topic=topic)
            try:
                await self._session.publish(topic, payload, qos=0, durable=False)
            except BusError:
                # The line is gone: the node will ask again.
                return
            self.given += len(some)
