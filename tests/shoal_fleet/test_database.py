import sqlite3
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
from sqlalchemy import text

from shoal_fleet import database as module
from shoal_fleet.database import Database
from shoal_fleet.errors import StateError
from shoal_fleet.rollout_rows import load_roster, state_of
from shoal_fleet.rollout_state import Member, Options, Standing, Status
from shoal_fleet.tables import FleetBase, ReadingRow, ReadingsBase, RolloutRow

SOME_READER = text("SELECT count(*) FROM readings")
CONNECTIONS = 14  # SQLAlchemy's pool: 5, and 10 more when they are needed; one is for `append`
ROW = {
    "node": "n1",
    "device": "meter",
    "boot": 1,
    "seq": 1,
    "label": "7",
    "confidence": 0.9,
    "release": b"r",
    "by": "n1",
    "at_ms": 1,
    "latency_us": 1,
}


@pytest.fixture
async def database(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "POOL_TIMEOUT_S", 0.05)
    async with Database.open(tmp_path / "r.db", ReadingsBase) as database:
        yield database


async def test_a_file_whose_connections_are_all_in_use_is_a_state_error_and_no_defect(database):
    # What is no StateError counts as a message that cannot be worked on: it would be acknowledged and lost.
    async with AsyncExitStack() as readers:
        for _ in range(CONNECTIONS):
            session = await readers.enter_async_context(database.read())
            await session.execute(SOME_READER)
        with pytest.raises(StateError, match=r"in use for 0\.05 s"):
            async with database.write() as session:
                await session.execute(SOME_READER)
        with pytest.raises(StateError, match=r"in use for 0\.05 s"):
            async with database.read() as session:
                await session.execute(SOME_READER)
    async with database.write() as session:
        await session.execute(SOME_READER)


async def test_a_full_disk_is_a_state_error_and_the_next_append_works(database):
    rows = [ROW | {"seq": seq, "label": "x" * 1000} for seq in range(100)]
    connection = database._connection
    await connection.execute(text("PRAGMA max_page_count = 1"))
    with pytest.raises(StateError, match="full"):
        await database.append(ReadingRow, rows)
    await connection.execute(text("PRAGMA max_page_count = 100000"))
    assert await database.append(ReadingRow, rows) == 100
    assert await database.append(ReadingRow, rows) == 0


OLD_STATE = (
    '{"options":{"first_wave":6,"factor":2.0,"overdue_s":600.0},"members":{'
    '"n2":{"standing":"serving","wave":1,"offered_ms":10,"resolved_ms":20,"reason":"","seen":false,"grace_ms":7},'
    '"n1":{"standing":"failed","wave":1,"offered_ms":11,"resolved_ms":21,"reason":"no answer","seen":true,'
    '"grace_ms":0},'
    '"n0":{"standing":"waiting","wave":0,"offered_ms":null,"resolved_ms":null,"reason":"","seen":false,"grace_ms":0}'
    '},"status":"held","reason":"n1 failed: no answer","wave":1,"wave_size":6}'
)


async def test_a_rollout_that_an_older_version_began_goes_on_where_it_stood(tmp_path):
    path = tmp_path / "fleet.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(Path(__file__).with_name("fleet_schema_4.sql").read_text("utf-8"))
        old.execute("DROP TABLE rollout_members")
        old.execute("DELETE FROM decisions")
        old.execute("UPDATE rollouts SET id = 3, status = 'held', state = ?", (OLD_STATE.encode(),))
        old.execute("PRAGMA user_version = 3")
        old.commit()
    async with Database.open(path, FleetBase) as database, database.read() as session:
        row = await session.get(RolloutRow, 3)
        roster = await load_roster(session, 3)
    state = state_of(row)
    assert (state.status, state.wave, state.wave_size) == (Status.HELD, 1, 6)
    assert state.options == Options(first_wave=6, factor=2.0, overdue_s=600.0)
    assert b"members" not in row.state
    assert dict(roster.members) == {
        "n2": Member(Standing.SERVING, 1, 10, 20, "", seen=False, unheard_ms=-7),
        "n1": Member(Standing.FAILED, 1, 11, 21, "no answer", seen=True),
        "n0": Member(),
    }
    assert list(roster.members) == ["n2", "n1", "n0"]
