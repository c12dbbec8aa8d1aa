"""Which of several controllers on one PostgreSQL acts; the others wait, and begin where it stopped.

The leader holds an advisory lock: the server gives it away when the leader's connection ends, also by
`kill -9` or a dead machine. A leader that does not know of its end yet can write nothing: every transaction
checks the number of its term, and whoever leads next waits for the transactions that began before.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NoReturn, Self

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from shoal_fleet.database import Database
from shoal_fleet.database_address import DatabaseAddress, reason
from shoal_fleet.errors import FleetError, StateError

log = structlog.get_logger(__name__)

LOCK_KEY: Final = 0x53686F616C5F0002
"""Of PostgreSQL's advisory locks: `Shoal_`, 2."""

ASK_EVERY_S: Final = 0.5
WATCH_EVERY_S: Final = 2.0
ANSWER_TIMEOUT_S: Final = 10.0


class LeadershipLostError(FleetError):
    """The connection that held the lock has ended: this controller must end, too."""


class WaitEndedError(FleetError):
    """A person stopped a controller that waited for its turn."""


class Leadership:
    """The lock, held. Build it with `Leadership.gained`."""

    def __init__(self, address: DatabaseAddress, connection: AsyncConnection) -> None:
        self._address = address
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def gained(cls, address: DatabaseAddress, *, stop: asyncio.Event) -> AsyncIterator[Self]:
        """Wait until no other controller leads; lead until the block ends.

        Raises:
            StateError: the database cannot be reached.
            WaitEndedError: `stop` was set before.
        """
        engine = address.engine(
            wait_s=ANSWER_TIMEOUT_S, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        async with AsyncExitStack() as stack:
            stack.push_async_callback(engine.dispose)
            try:
                connection = await engine.connect()
                stack.push_async_callback(connection.close)
                await _wait(connection, stop)
            except address.faults as exc:
                why = reason(exc, waited_s=ANSWER_TIMEOUT_S)
                raise StateError(f"{address.name}: cannot be used as a database: {why}") from exc
            log.info("this controller leads", database=address.name)
            yield cls(address, connection)

    async def begin_term(self, database: Database) -> None:
        """From now on `database` writes for this leader only, and no longer for one before it.

        Raises:
            StateError: the database does not take it.
        """
        async with database.write() as change:
            term = await change.scalar(text("UPDATE leadership SET term = term + 1 RETURNING term"))
        database.term = term

    async def watch(self) -> NoReturn:
        """Ask the lock's connection whether it lives, for ever.

        Raises:
            LeadershipLostError: it does not.
        """
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await self._connection.execute(text("SELECT 1"))
            except self._address.faults as exc:
                why = reason(exc, waited_s=ANSWER_TIMEOUT_S)
                raise LeadershipLostError(
                    f"{self._address.name}: this controller leads no longer: {why}"
                ) from exc


async def _wait(connection: AsyncConnection, stop: asyncio.Event) -> None:
    is_told = False
    while not await connection.scalar(text(f"SELECT pg_try_advisory_lock({LOCK_KEY})")):
        if not is_told:
            log.info("another controller leads: this one waits for its turn")
            is_told = True
        try:
            async with asyncio.timeout(ASK_EVERY_S):
                await stop.wait()
        except TimeoutError:
            continue
        raise WaitEndedError("stopped while another controller led")
