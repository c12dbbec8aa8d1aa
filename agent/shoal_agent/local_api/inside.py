"""Who is inside the local API, and how much memory they hold together. It does not listen."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from shoal_agent.background import Background
from shoal_agent.config import LocalApiTable
from shoal_agent.local_api.access import Access
from shoal_agent.local_api.connection import Connection
from shoal_agent.local_api.errors import UNAVAILABLE, ApiError
from shoal_agent.local_api.heads import KnownHeads
from shoal_agent.local_api.service import Service

log = structlog.get_logger()

BODIES_AT_ONCE: Final = 4
"""So many bodies of the largest size are held at a time, whatever the number of connections."""
_COME_AGAIN_S: Final = 1.0


@dataclass(slots=True)
class ApiStats:
    """Counters since the start; `answers` by HTTP status."""

    connections: int = 0
    turned_away: int = 0
    answers: Counter[int] = field(default_factory=Counter)


class LocalApi:
    """What the connections of one local API share.

    Attributes:
        port: where it listens.
        service: answers.
        access: who may ask.
        stats: counters since the start.
        known_heads: of requests that came before.
        held_bytes: of requests that are arriving or under way.
    """

    def __init__(
        self, config: LocalApiTable, service: Service, access: Access, tasks: Background
    ) -> None:
        self.port = 0
        self.service = service
        self.access = access
        self.stats = ApiStats()
        self.known_heads = KnownHeads()
        self.max_body_bytes = config.max_body_bytes
        self._max_connections = config.max_connections
        self._tasks = tasks
        # In the order in which they came, or were last idle.
        self._inside: dict[Connection, None] = {}
        self._outside: set[Connection] = set()
        self.held_bytes = 0

    @property
    def connections(self) -> int:
        """How many are inside."""
        return len(self._inside)

    def start(
        self, work: Coroutine[Any, Any, None], connection: Connection, *, name: str
    ) -> asyncio.Task[None]:
        """Run the work of one request; should it fail, its connection is all that ends."""
        return self._tasks.hold(_alone(work, connection), name=name)

    # ------------------------------------------------------------------ who is inside
    def enter(self, connection: Connection) -> None:
        """Somebody came: one that only waits makes room, or there is none."""
        self.stats.connections += 1
        if len(self._inside) >= self._max_connections:
            idle = [other for other in self._inside if other.is_idle]
            if not idle:
                self._turn_away(connection)
                return
            self.leave(idle[0])
            idle[0].transport.close()
        self._inside[connection] = None

    def leave(self, connection: Connection) -> None:
        """Somebody is gone."""
        self._inside.pop(connection, None)
        self._outside.discard(connection)

    def replace(self, old: Connection, new: Connection) -> None:
        """The same socket speaks another protocol from now on."""
        self.leave(old)
        self._inside[new] = None

    def _turn_away(self, connection: Connection) -> None:
        """With a word, unless there are too many even for that."""
        self.stats.turned_away += 1
        if len(self._outside) < self._max_connections:
            self._outside.add(connection)
            why = f"{self._max_connections} connections are open ([local_api] max_connections)"
            connection.turn_away(ApiError(UNAVAILABLE, why, retry_after_s=_COME_AGAIN_S))
        else:
            connection.transport.abort()

    def end(self) -> None:
        """Cut everybody off."""
        for connection in (*self._inside, *self._outside):
            connection.transport.abort()

    # ------------------------------------------------------------------ the memory of bodies
    def reserve(self, size_bytes: int) -> None:
        """Hold so many bytes of requests more. Raises ApiError (503): others hold too many."""
        if self.held_bytes + size_bytes > BODIES_AT_ONCE * self.max_body_bytes:
            raise ApiError(
                UNAVAILABLE, "too many bytes of requests are held", retry_after_s=_COME_AGAIN_S
            )
        self.held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Those bytes are held no more."""
        self.held_bytes -= size_bytes


async def _alone(work: Coroutine[Any, Any, None], connection: Connection) -> None:
    try:
        await work
    except Exception:
        log.exception("a local connection failed")
        connection.transport.abort()
