"""The controller's database and the two ways to use it: `read` and `write`. The tables are in `tables`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import Engine, event, inspect, text
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
)
from sqlalchemy.orm import DeclarativeBase

from shoal_fleet.database_address import DatabaseAddress, reason
from shoal_fleet.errors import StateError
from shoal_fleet.schema import bring_up_to_date
from shoal_fleet.upsert import insert_into

BUSY_TIMEOUT_S: Final = 10.0
POOL_TIMEOUT_S: Final = 30.0
"""How long a read or write waits for one of the connections to the database."""


class Database:
    """A file of SQLite, or a PostgreSQL. One writer at a time; readers go beside it.

    Attributes:
        term: of this controller's leadership. None: nobody else can be at this database.
    """

    def __init__(
        self, address: DatabaseAddress, engine: AsyncEngine, connection: AsyncConnection
    ) -> None:
        self.term: int | None = None
        self._address = address
        self._faults = address.faults
        self._connection = connection
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        self._writing = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        place: Path | DatabaseAddress,
        base: type[DeclarativeBase],
    ) -> AsyncIterator[Self]:
        """Open or create the database with the tables of `base`; what is committed survives a power cut.

        Raises:
            StateError: it cannot be used, or a newer version wrote it.
        """
        address = DatabaseAddress.file(place) if isinstance(place, Path) else place
        await bring_up_to_date(address, base)
        engine = address.engine(
            wait_s=BUSY_TIMEOUT_S,
            pool_timeout=POOL_TIMEOUT_S,
            # A server that was restarted left dead connections.
            pool_pre_ping=not address.is_file,
        )
        if address.is_file:
            _set_pragmas(engine.sync_engine)
        try:
            async with engine.connect() as connection:
                yield cls(address, engine, connection)
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that sees the last commit; nothing that is written in it is kept.

        Raises:
            StateError: the database cannot be read.
        """
        try:
            async with self._sessions() as session:
                yield session
        except self._faults as exc:
            why = reason(exc, waited_s=POOL_TIMEOUT_S)
            raise StateError(f"the database cannot be read: {why}") from exc

    async def append(self, row: type[DeclarativeBase], values: Sequence[dict[str, Any]]) -> int:
        """Insert all rows that are not here yet in one commit; how many were. Cheaper than `write` by half.

        Raises:
            StateError: the disk does not take it.
        """
        try:
            async with self._writing:
                try:
                    added = await self._append(row, values)
                    await self._connection.commit()
                except BaseException:
                    await self._connection.rollback()
                    raise
        except self._faults as exc:
            why = reason(exc, waited_s=POOL_TIMEOUT_S)
            raise StateError(f"the database cannot be written: {why}") from exc
        return added

    async def _append(self, row: type[DeclarativeBase], values: Sequence[dict[str, Any]]) -> int:
        statement = insert_into(self._connection, row).on_conflict_do_nothing()
        if self._address.is_file:
            return (await self._connection.execute(statement, values)).rowcount
        # Its driver counts nothing for many rows at once.
        keys = inspect(row).primary_key
        found = await self._connection.execute(statement.returning(*keys), values)
        return len(found.all())

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A session whose changes are on the disk when the block has ended, or not at all.

        Raises:
            StateError: the disk does not take them, or another controller leads now.
        """
        try:
            async with self._writing, self._sessions() as session, session.begin():
                if self.term is not None:
                    await self._check_term(session, self.term)
                yield session
        except self._faults as exc:
            why = reason(exc, waited_s=POOL_TIMEOUT_S)
            raise StateError(f"the database cannot be written: {why}") from exc

    async def _check_term(self, session: AsyncSession, term: int) -> None:
        """Whoever begins the next term waits for the end of this transaction, and all later ones see it."""
        current = await session.scalar(text("SELECT term FROM leadership FOR SHARE"))
        if current != term:
            raise StateError(f"another controller leads (term {current}, ours was {term})")


def _set_pragmas(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()
