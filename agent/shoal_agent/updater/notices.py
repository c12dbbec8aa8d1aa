"""The update metadata that the broker retains: the newest timestamp is always at hand, the rest is read when asked for."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from shoal_agent.updater.retained import retained
from shoal_agent.updater.wire import Given
from shoal_broker.bus_errors import BusError
from shoal_broker.session import Inbound, Session
from shoal_contract.errors import ContractError
from shoal_contract.release_targets import MAX_METADATA_BYTES, TIMESTAMP_FILE
from shoal_contract.topics import Topics

FILE_TIMEOUT_S: Final = 10.0


class Notices:
    """What the session delivers of it, from its first moment.

    Args:
        is_followed: whether anybody here wants to know; else nothing is subscribed to.

    Attributes:
        is_new: set when the timestamp is another one.
    """

    def __init__(self, topics: Topics, *, is_followed: bool) -> None:
        self.is_new = asyncio.Event()
        self._topics = topics
        self._is_followed = is_followed
        self._timestamp: bytes | None = None

    @property
    def subscriptions(self) -> Mapping[str, Callable[[Inbound], Awaitable[None]]]:
        """Filter -> subscriber."""
        return {self._topics.update(TIMESTAMP_FILE): self.take} if self._is_followed else {}

    async def take(self, message: Inbound) -> None:
        """The broker's timestamp, at every connection and whenever there is a newer one."""
        if 0 < len(message.payload) <= MAX_METADATA_BYTES and message.payload != self._timestamp:
            self._timestamp = message.payload
            self.is_new.set()

    async def give(self, session: Session, name: str) -> Given:
        """The file of this name as the broker has it."""
        if name == TIMESTAMP_FILE and self._is_followed:
            # When there is one it comes by itself, and wakes whoever goes without it now.
            return Given(self._timestamp)
        try:
            data = await retained(session, self._topics.update(name), timeout_s=FILE_TIMEOUT_S)
        except ContractError:
            return Given()
        except BusError as exc:
            return Given(failure=str(exc))
        if data is not None and len(data) > MAX_METADATA_BYTES:
            return Given(failure=f"{len(data)} bytes are too many for metadata")
        return Given(data)
