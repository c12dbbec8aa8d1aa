"""The controller's database and the two ways to use it: `read` and `write`. The tables are in `tables`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import URL, Engine, Insert, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase

from shoal_fleet.errors import StateError
from shoal_fleet.schema import bring_up_to_date

BUSY_TIMEOUT_S: Final = 10.0
POOL_TIMEOUT_S: Final = 30.0
"""How long a read or write waits for one of the connections to the file."""


class Database:
    """One SQLite file. One writer at a time; readers go beside it (write-ahead log)."""

    def __init__(self, engine: AsyncEngine, connection: AsyncConnection) -> None:
        self._connection = connection
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        self._writing = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: Path,
        base: type[DeclarativeBase],
    ) -> AsyncIterator[Self]:
        """Open or create the file with the tables of `base`; what is committed survives a power cut.

        Raises:
            StateError: it cannot be used, or a newer version wrote it.
        """
        url = URL.create("sqlite+aiosqlite", database=str(path))
        await bring_up_to_date(url, base)
        engine = create_async_engine(
            url,
            connect_args={"timeout": BUSY_TIMEOUT_S},
            pool_timeout=POOL_TIMEOUT_S,
        )
        _set_pragmas(engine.sync_engine)
        try:
            async with engine.connect() as connection:
                yield cls(engine, connection)
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that sees the last commit; nothing that is written in it is kept.

        Raises:
            StateError: the file cannot be read.
        """
        try:
            async with self._sessions() as session:
                yield session
        except (DBAPIError, PoolTimeoutError) as exc:
            raise StateError(f"the database cannot be read: {_reason(exc)}") from exc

    async def append(self, statement: Insert, rows: Sequence[dict[str, Any]]) -> int:
        """Insert all of `rows` in one commit; how many were added. Cheaper than `write` by half.

        Raises:
            StateError: the disk does not take it.
        """
        try:
            async with self._writing:
                try:
                    result = await self._connection.execute(statement, rows)
                    await self._connection.commit()
                except BaseException:
                    await self._connection.rollback()
                    raise
        except DBAPIError as exc:
            raise StateError(f"the database cannot be written: {_reason(exc)}") from exc
        return result.rowcount

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A session whose changes are on the disk when the block has ended, or not at all.

        Raises:
            StateError: the disk does not take them.
        """
        try:
            async with self._writing, self._sessions() as session, session.begin():
                yield session
        except (DBAPIError, PoolTimeoutError) as exc:
            raise StateError(f"the database cannot be written: {_reason(exc)}") from exc


def _reason(exc: DBAPIError | PoolTimeoutError) -> str:
    if isinstance(exc, DBAPIError):
        return str(exc.orig)
    return f"every connection to it was in use for {POOL_TIMEOUT_S:g} s"


def _set_pragmas(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()
