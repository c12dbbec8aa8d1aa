"""Brings a database to the tables that this version of the code needs, under a lock, or refuses it.

One transaction: a power cut leaves the database as it was. A file of SQLite is copied first.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, event
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import NullPool

from shoal_broker.durable import sync_directory
from shoal_fleet import migrations
from shoal_fleet.database_address import DatabaseAddress, reason
from shoal_fleet.errors import StateError
from shoal_fleet.tables import FleetBase, ReadingsBase

log = structlog.get_logger(__name__)

VERSION_TABLES: Final[dict[MetaData, str]] = {
    FleetBase.metadata: "fleet_version",
    ReadingsBase.metadata: "readings_version",
}
"""Where the revision of these tables stands. PostgreSQL has both in one database."""

LOCK_TIMEOUT_S: Final = 60.0
"""A migration that another process is at may take so long."""

USER_VERSION: Final = 5
"""What SQLite files say since there are revisions. Versions of Shoal before that know up to 4, and refuse it."""

LOCK_KEY: Final = 0x53686F616C5F0001
"""Of PostgreSQL's advisory locks: `Shoal_`, 1."""

_MIGRATIONS: Final = Path(migrations.__file__).parent
_FOLDERS: Final = {FleetBase.metadata: "fleet", ReadingsBase.metadata: "readings"}


async def bring_up_to_date(address: DatabaseAddress, base: type[DeclarativeBase]) -> None:
    """Make the tables of `base`, or lead them from any older version to today's.

    Raises:
        StateError: it cannot be used, or a newer version wrote it.
    """
    engine = address.engine(wait_s=LOCK_TIMEOUT_S, poolclass=NullPool)
    if address.is_file:
        _own_transactions(engine.sync_engine)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade, base.metadata, address.name)
    except address.faults as exc:
        why = reason(exc, waited_s=LOCK_TIMEOUT_S)
        raise StateError(f"{address.name}: cannot be used as a database: {why}") from exc
    finally:
        await engine.dispose()


def newest_revision(metadata: MetaData) -> str:
    """What the version table says when the tables are as the code needs them."""
    head = _script(metadata).get_current_head()
    if head is None:
        raise StateError("this installation of Shoal is broken: it has no migrations")
    return head


def _upgrade(connection: Connection, metadata: MetaData, name: str) -> None:
    is_file = connection.dialect.name == "sqlite"
    if not is_file:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")
    elif (version := connection.exec_driver_sql("PRAGMA user_version").scalar_one()) > USER_VERSION:
        raise StateError(f"{name}: written by a newer version of Shoal (schema {version})")
    context = MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLES[metadata]}
    )
    found = context.get_current_heads()
    newest = newest_revision(metadata)
    if found == (newest,):
        return
    known = {revision.revision for revision in _script(metadata).walk_revisions()}
    if unknown := sorted(set(found) - known):
        raise StateError(f"{name}: written by a newer version of Shoal (revision {unknown[0]})")
    if is_file and connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one():
        copy = _copy(Path(name), newest)
        log.warning("database is changed to a newer version", file=name, to=newest, copy=str(copy))
    orphans = _orphans(connection) if is_file else []
    config = _config(metadata)
    config.attributes |= {"connection": connection, "metadata": metadata}
    try:
        command.upgrade(config, "head")
    except CommandError as exc:
        raise StateError(f"{name}: cannot be brought to revision {newest}: {exc}") from exc
    if is_file:
        if len(left := _orphans(connection)) > len(orphans):
            table, _, parent, _ = left[-1]
            raise StateError(f"{name}: at revision {newest} rows of {table} would have no {parent}")
        connection.exec_driver_sql(f"PRAGMA user_version = {USER_VERSION}")


def _orphans(connection: Connection) -> Sequence[Any]:
    """Rows whose parent is gone. Nothing checks them on the way: a table that is made anew is away for a moment."""
    return connection.exec_driver_sql("PRAGMA foreign_key_check").all()


def _config(metadata: MetaData) -> Config:
    config = Config()
    # The separator can be in no file name.
    for key, value in {
        "script_location": str(_MIGRATIONS),
        "path_separator": "newline",
        "version_locations": str(_MIGRATIONS / _FOLDERS[metadata]),
    }.items():
        config.set_main_option(key, value.replace("%", "%%"))
    return config


def _script(metadata: MetaData) -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(metadata))


def _copy(path: Path, newest: str) -> Path:
    """The file as the last commit left it, beside it; nobody else writes now."""
    copy = path.with_name(f"{path.name}.before-{newest}")
    partial = copy.with_name(f"{copy.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as target:
            source.backup(target)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(copy)
        sync_directory(copy.parent)
    except (sqlite3.Error, OSError) as exc:
        partial.unlink(missing_ok=True)
        raise StateError(
            f"{path}: is of an older version, and no copy of it can be made: {exc}"
        ) from exc
    return copy


def _own_transactions(engine: Any) -> None:
    """The driver would begin none for changes of tables; ours holds other writers off from its first moment."""

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        with _cursor(connection) as cursor:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA foreign_keys = OFF")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _cursor(connection: Any) -> Iterator[Any]:
    cursor = connection.cursor()
    try:
        yield cursor
    finally:
        cursor.close()
