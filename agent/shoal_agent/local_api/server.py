"""The local API as a whole: where it listens, who is inside, and how much memory they hold together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import structlog

from shoal_agent.background import Background
from shoal_agent.config import LocalApiTable
from shoal_agent.errors import ConfigError
from shoal_agent.local_api.access import Access, read_token
from shoal_agent.local_api.connection import Connection
from shoal_agent.local_api.errors import UNAVAILABLE, ApiError
from shoal_agent.local_api.heads import KnownHeads
from shoal_agent.local_api.http import HttpConnection
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
    """Listens until its block is left.

    Attributes:
        port: where.
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

    @classmethod
    @asynccontextmanager
    async def open(cls, config: LocalApiTable, service: Service) -> AsyncIterator[Self]:
        """Listen.

        Raises:
            ConfigError: the address or the token file cannot be used.
        """
        token = None if config.token_file is None else read_token(Path(config.token_file))
        loop = asyncio.get_running_loop()
        async with Background.open() as tasks:
            api = cls(config, service, Access(host=config.host, token=token), tasks)
            try:
                listening = await loop.create_server(
                    lambda: HttpConnection(api), config.host, config.port
                )
            except OSError as exc:
                address = f"{config.host}:{config.port}"
                raise ConfigError(
                    f"[local_api] cannot listen on {address}: {exc.strerror}"
                ) from exc
            try:
                api.port = listening.sockets[0].getsockname()[1]
                yield api
            finally:
                listening.close()
                for connection in (*api._inside, *api._outside):
                    connection.transport.abort()

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
            idle = [other for other in self._inside if _is_idle(other)]
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
        if len(self._outside) < self._max_connections and isinstance(connection, HttpConnection):
            self._outside.add(connection)
            why = f"{self._max_connections} connections are open ([local_api] max_connections)"
            connection.turn_away(ApiError(UNAVAILABLE, why, retry_after_s=_COME_AGAIN_S))
        else:
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


def _is_idle(connection: Connection) -> bool:
    return isinstance(connection, HttpConnection) and connection.is_idle


async def _alone(work: Coroutine[Any, Any, None], connection: Connection) -> None:
    try:
        await work
    except Exception:
        log.exception("a local connection failed")
        connection.transport.abort()
