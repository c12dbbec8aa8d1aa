import asyncio
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, func, select

from shoal_fleet.database import Database
from shoal_fleet.database_address import configured
from shoal_fleet.errors import ConfigError, StateError
from shoal_fleet.identity.tables import CertificateRow
from shoal_fleet.migrations import hand_made
from shoal_fleet.schema import USER_VERSION, VERSION_TABLES, newest_revision
from shoal_fleet.tables import (
    CommandHistoryRow,
    CommandRow,
    DecisionRow,
    FleetBase,
    NodeRow,
    ReadingRow,
    ReadingsBase,
    ReleaseRow,
    ReportRow,
    RolloutMemberRow,
    RolloutRow,
    WantedRow,
)

SCHEMA_4 = Path(__file__).with_name("fleet_schema_4.sql")
EVERY_ROW = (
    *(CertificateRow, CommandHistoryRow, CommandRow, DecisionRow, NodeRow, ReleaseRow, ReportRow),
    *(RolloutMemberRow, RolloutRow, WantedRow),
)


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "fleet.db"
    with closing(sqlite3.connect(path)) as file:
        file.executescript(SCHEMA_4.read_text("utf-8"))
    return path


def user_version(path):
    with closing(sqlite3.connect(path)) as file:
        return file.execute("PRAGMA user_version").fetchone()[0]


def changes(path, base):
    """What today's declarations would change in this file."""
    engine = create_engine(f"sqlite:///{path}")
    try:
        with engine.connect() as connection:
            opts = {
                "version_table": VERSION_TABLES[base.metadata],
                "compare_server_default": False,
            }
            context = MigrationContext.configure(connection, opts=opts)
            return compare_metadata(context, base.metadata)
    finally:
        engine.dispose()


@pytest.mark.parametrize("base", [FleetBase, ReadingsBase])
async def test_the_revisions_make_the_tables_that_the_code_declares(tmp_path, base):
    path = tmp_path / "new.db"
    async with Database.open(path, base):
        pass
    assert changes(path, base) == []
    # A new file has nothing to keep a copy of.
    assert {found.name for found in tmp_path.iterdir()} <= {"new.db", "new.db-wal", "new.db-shm"}


@pytest.mark.slow
@pytest.mark.parametrize("base", [FleetBase, ReadingsBase])
async def test_the_revisions_make_the_same_tables_on_postgresql(postgres, base):
    address = configured(postgres.new())
    async with Database.open(address, FleetBase), Database.open(address, ReadingsBase):
        pass
    engine = address.engine(wait_s=10)
    try:
        async with engine.connect() as connection:
            found = await connection.run_sync(_changes, base)
    finally:
        await engine.dispose()
    assert found == []


def _changes(connection, base):
    def include(_object, name, kind, *_):
        # Both sets of tables lie in one database.
        return kind != "table" or name in base.metadata.tables

    opts = {"version_table": VERSION_TABLES[base.metadata], "include_object": include}
    context = MigrationContext.configure(connection, opts=opts)
    return compare_metadata(context, base.metadata)


@pytest.mark.slow
async def test_a_postgresql_of_a_newer_version_is_refused(postgres):
    address = configured(postgres.new())
    async with Database.open(address, FleetBase):
        pass
    postgres.sql("UPDATE fleet_version SET version_num = '9999_later'", address.url.database)
    with pytest.raises(StateError, match=r"newer version of Shoal \(revision 9999_later\)"):
        async with Database.open(address, FleetBase):
            pass


@pytest.mark.slow
async def test_several_that_start_at_once_on_postgresql_make_the_tables_once(postgres):
    address = configured(postgres.new())

    async def opened():
        async with Database.open(address, FleetBase) as database, database.read() as session:
            return (await session.execute(select(func.count()).select_from(NodeRow))).scalar_one()

    assert await asyncio.gather(*(opened() for _ in range(4))) == [0, 0, 0, 0]


@pytest.mark.slow
async def test_readings_are_counted_once_on_postgresql_and_text_of_any_kind_is_kept(postgres):
    address = configured(postgres.new())
    row = {
        "node": "n1", "device": "meter", "boot": 1, "seq": 1, "label": "a\x00b", "confidence": 0.9,
        "release": b"r", "by": "n1", "at_ms": 1_700_000_000_000, "latency_us": (1 << 63) - 1,
    }  # fmt: skip
    async with Database.open(address, ReadingsBase) as database:
        rows = [row | {"seq": seq} for seq in range(50)]
        assert await database.append(ReadingRow, rows) == 50
        assert await database.append(ReadingRow, [*rows, row | {"seq": 50}]) == 1
        async with database.read() as session:
            assert await session.scalar(select(ReadingRow.label).limit(1)) == "a\ufffdb"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://root:secret@h/d", "begins with mysql://"),
        ("postgresql+asyncpg://u:secret@h", "names no database"),
        ("::secret::", "is not an address like"),
        ("postgresql+asyncpg://u:secret@h:port/d", "is not an address like"),
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(url, said):
    with pytest.raises(ConfigError, match=said) as refused:
        configured(url)
    assert "secret" not in str(refused.value)


async def test_a_postgresql_that_is_not_there_is_one_line_without_the_password(tmp_path):
    address = configured(f"postgresql+asyncpg://u:secret@/d?host={tmp_path}")
    with pytest.raises(StateError, match="cannot be used as a database") as refused:
        async with Database.open(address, FleetBase):
            pass
    assert "secret" not in str(refused.value)


async def test_a_database_of_the_last_hand_made_version_is_led_on_and_nothing_is_lost(old):
    for _ in range(2):
        async with Database.open(old, FleetBase) as database, database.read() as session:
            for row in EVERY_ROW:
                count = (await session.execute(select(func.count()).select_from(row))).scalar_one()
                assert count == 1, row
            node = (await session.scalars(select(NodeRow))).one()
            assert (node.labels, node.last_seen_ms) == ({"site": "oslo"}, 1_700_000_000_001)
            member = (await session.scalars(select(RolloutMemberRow))).one()
            assert (member.standing, member.offered_ms) == ("offered", 1_700_000_000_003)
    assert changes(old, FleetBase) == []
    assert user_version(old) == USER_VERSION


async def test_a_copy_of_the_old_file_stays_beside_the_new_one(old):
    async with Database.open(old, FleetBase):
        pass
    copy = old.with_name(f"fleet.db.before-{newest_revision(FleetBase.metadata)}")
    assert copy.stat().st_mode & 0o777 == 0o600
    assert user_version(copy) == 4
    with closing(sqlite3.connect(copy)) as file:
        assert file.execute("SELECT name FROM nodes").fetchall() == [("n0",)]
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master")}
    assert "fleet_version" not in tables


async def test_a_file_that_cannot_be_copied_is_not_changed(old):
    obstacle = old.with_name(f"fleet.db.before-{newest_revision(FleetBase.metadata)}")
    (obstacle / "in the way").mkdir(parents=True)
    with pytest.raises(StateError, match="no copy of it can be made"):
        async with Database.open(old, FleetBase):
            pass
    assert user_version(old) == 4
    assert not list(old.parent.glob("*.partial"))


async def test_a_migration_that_fails_leaves_the_file_as_it_was(old, monkeypatch):
    with closing(sqlite3.connect(old)) as file:
        before = "\n".join(file.iterdump())
    steps = hand_made.Steps(
        before=("ALTER TABLE nodes RENAME TO nodes_1",), after=("INSERT INTO nowhere VALUES (1)",)
    )
    monkeypatch.setattr(hand_made, "steps_from", lambda _: steps)
    with pytest.raises(StateError, match="nowhere"):
        async with Database.open(old, FleetBase):
            pass
    with closing(sqlite3.connect(old)) as file:
        assert "\n".join(file.iterdump()) == before
    assert user_version(old) == 4


async def test_several_that_start_at_once_change_the_file_once(old):
    async def opened():
        async with Database.open(old, FleetBase) as database, database.read() as session:
            return (await session.execute(select(func.count()).select_from(NodeRow))).scalar_one()

    assert await asyncio.gather(*(opened() for _ in range(4))) == [1, 1, 1, 1]
    assert changes(old, FleetBase) == []


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (f"PRAGMA user_version = {USER_VERSION + 1}", f"schema {USER_VERSION + 1}"),
        ("UPDATE fleet_version SET version_num = '9999_later'", "revision 9999_later"),
    ],
)
async def test_a_file_of_a_newer_version_is_refused_in_one_line_and_left_alone(
    tmp_path, statement, said
):
    path = tmp_path / "fleet.db"
    async with Database.open(path, FleetBase):
        pass
    with closing(sqlite3.connect(path)) as file:
        file.execute(statement)
        file.commit()
    with pytest.raises(StateError) as refused:
        async with Database.open(path, FleetBase):
            pass
    assert re.fullmatch(
        rf"\S+fleet\.db: written by a newer version of Shoal \({said}\)", str(refused.value)
    )
    assert not list(tmp_path.glob("*.before-*"))


async def test_a_file_that_is_no_database_is_a_state_error(tmp_path):
    path = tmp_path / "fleet.db"
    path.write_bytes(b"no database" * 500)
    with pytest.raises(StateError, match="not a database"):
        async with Database.open(path, FleetBase):
            pass
