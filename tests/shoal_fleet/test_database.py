from contextlib import AsyncExitStack

import pytest
from sqlalchemy import text
from sqlalchemy.dialects.sqlite import insert

from shoal_fleet import database as module
from shoal_fleet.database import Database, ReadingRow, ReadingsBase
from shoal_fleet.errors import StateError

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
    statement = insert(ReadingRow).on_conflict_do_nothing()
    rows = [ROW | {"seq": seq, "label": "x" * 1000} for seq in range(100)]
    connection = database._connection
    await connection.execute(text("PRAGMA max_page_count = 1"))
    with pytest.raises(StateError, match="full"):
        await database.append(statement, rows)
    await connection.execute(text("PRAGMA max_page_count = 100000"))
    assert await database.append(statement, rows) == 100
    assert await database.append(statement, rows) == 0
