"""INSERT … ON CONFLICT, which SQLite and PostgreSQL write alike and SQLAlchemy in two modules."""

from typing import cast

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase


def insert_into(
    change: AsyncSession | AsyncConnection, row: type[DeclarativeBase]
) -> sqlite.Insert:
    """An INSERT that has `on_conflict_do_nothing` and `on_conflict_do_update`."""
    dialect = change.get_bind().dialect if isinstance(change, AsyncSession) else change.dialect
    if dialect.name == "postgresql":
        # It has the same two methods, with the same arguments.
        return cast("sqlite.Insert", postgresql.insert(row))
    return sqlite.insert(row)
