"""All rows of one database into another, whatever the two are: SQLite or PostgreSQL.

Both have the tables of this version. The other one is empty, or nothing is done.
"""

from typing import Final

from sqlalchemy import Integer, MetaData, Table, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import DeclarativeBase

from shoal_fleet.database_address import DatabaseAddress, reason
from shoal_fleet.errors import StateError
from shoal_fleet.schema import bring_up_to_date

AT_ONCE: Final = 500
_WAIT_S: Final = 60.0
MADE_BY_REVISIONS: Final = "leadership"
"""Its one row is there from the beginning."""


async def copy_rows(
    source: DatabaseAddress, target: DatabaseAddress, base: type[DeclarativeBase]
) -> int:
    """Copy every row as one snapshot and one commit; how many.

    Raises:
        StateError: one of the two cannot be used, or the target is not empty.
    """
    for address in (source, target):
        await bring_up_to_date(address, base)
    options = {} if source.is_file else {"isolation_level": "REPEATABLE READ"}
    reading, writing = source.engine(wait_s=_WAIT_S, **options), target.engine(wait_s=_WAIT_S)
    try:
        async with reading.begin() as one, writing.begin() as other:
            return await _copy(one, other, base.metadata, target.name)
    except (*source.faults, *target.faults) as exc:
        why = reason(exc, waited_s=_WAIT_S)
        raise StateError(f"rows cannot be copied to {target.name}: {why}") from exc
    finally:
        await reading.dispose()
        await writing.dispose()


async def _copy(one: AsyncConnection, other: AsyncConnection, metadata: MetaData, name: str) -> int:
    copied = 0
    # Parents first.
    for table in metadata.sorted_tables:
        if table.name == MADE_BY_REVISIONS:
            continue
        if await other.scalar(select(func.count()).select_from(table)):
            raise StateError(f"{name} is not empty: there are rows in {table.name}")
        async with one.stream(select(table)) as rows:
            async for some in rows.mappings().partitions(AT_ONCE):
                await other.execute(insert(table), [dict(row) for row in some])
                copied += len(some)
        await _go_on_counting(other, table)
    return copied


async def _go_on_counting(connection: AsyncConnection, table: Table) -> None:
    """PostgreSQL counts apart from the rows: the next number is to be a new one."""
    keys = list(table.primary_key.columns)
    if connection.dialect.name != "postgresql" or len(keys) != 1:
        return
    (key,) = keys
    if not isinstance(key.type, Integer):
        return
    sequence = await connection.scalar(
        text("SELECT pg_get_serial_sequence(:table, :column)"),
        {"table": table.name, "column": key.name},
    )
    highest = await connection.scalar(select(func.max(key)))
    if sequence is not None and highest is not None:
        await connection.execute(
            text("SELECT setval(CAST(:sequence AS regclass), :highest)"),
            {"sequence": sequence, "highest": highest},
        )
