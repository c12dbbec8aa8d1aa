import asyncio
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from shoal_broker.bus_errors import StoreError
from shoal_broker.store import Store

NOTES = "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);"


def add(text: str):
    return lambda connection: (
        connection.execute("INSERT INTO notes (text) VALUES (?)", (text,)).lastrowid
    )


def texts(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT text FROM notes ORDER BY id")]


async def test_a_write_returns_its_result_and_a_read_sees_it(tmp_path):
    async with Store.open(tmp_path / "s.db") as store:
        await store.create("notes", version=1, ddl=NOTES)
        assert await store.write(add("a")) == 1
        assert await store.read(texts) == ["a"]


async def test_writes_that_queue_up_share_one_commit_and_keep_their_order(tmp_path):
    async with Store.open(tmp_path / "s.db") as store:
        await store.create("notes", version=1, ddl=NOTES)
        commits = 0

        def count(statement: str) -> None:
            nonlocal commits
            commits += statement == "COMMIT"

        await store.read(lambda connection: connection.set_trace_callback(count))
        ids = await asyncio.gather(*(store.write(add(f"{n}")) for n in range(200)))
        await store.read(lambda connection: connection.set_trace_callback(None))
        assert ids == sorted(ids)
        assert await store.read(texts) == [f"{n}" for n in range(200)]
        assert commits <= 3


async def test_a_failing_write_is_undone_alone_and_fails_only_its_own_caller(tmp_path):
    def half(connection: sqlite3.Connection) -> None:
        add("half")(connection)
        raise LookupError("changed my mind")

    async with Store.open(tmp_path / "s.db") as store:
        await store.create("notes", version=1, ddl=NOTES)
        outcomes = await asyncio.gather(
            store.write(add("a")),
            store.write(half),
            store.write(add("a")),
            store.write(add("b")),
            return_exceptions=True,
        )
        assert isinstance(outcomes[1], LookupError)
        assert isinstance(outcomes[2], sqlite3.IntegrityError)
        assert await store.read(texts) == ["a", "b"]


async def test_a_cancelled_waiter_neither_loses_nor_repeats_its_write(tmp_path):
    async with Store.open(tmp_path / "s.db") as store:
        await store.create("notes", version=1, ddl=NOTES)
        waiter = asyncio.create_task(store.write(add("once")))
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert await store.read(texts) == ["once"]


async def test_closing_drains_what_is_queued(tmp_path):
    async with Store.open(tmp_path / "s.db") as store:
        await store.create("notes", version=1, ddl=NOTES)
        waiters = [asyncio.create_task(store.write(add(f"{n}"))) for n in range(50)]
        await asyncio.sleep(0)
    assert len(await asyncio.gather(*waiters)) == 50
    with pytest.raises(StoreError, match="closed"):
        await store.write(add("late"))
    async with Store.open(tmp_path / "s.db") as store:
        assert len(await store.read(texts)) == 50


async def test_tables_of_a_newer_program_are_refused_by_name(tmp_path):
    path = tmp_path / "s.db"
    async with Store.open(path) as store:
        await store.create("notes", version=3, ddl=NOTES)
        with pytest.raises(StoreError, match=r"s\.db.*notes.*newer"):
            await store.create("notes", version=2, ddl=NOTES)


async def test_older_tables_are_migrated_step_by_step(tmp_path):
    async with Store.open(tmp_path / "s.db") as store:
        await store.create("notes", version=1, ddl=NOTES)
        await store.write(add("old"))
        steps = {
            2: "ALTER TABLE notes ADD COLUMN kind TEXT; UPDATE notes SET kind = 'a;b';",
            3: "CREATE INDEX kinds ON notes (kind)",
        }
        await store.create("notes", version=3, ddl="-- not used", migrations=steps)
        assert await store.read(lambda c: c.execute("SELECT kind FROM notes").fetchone()) == (
            "a;b",
        )


async def test_a_file_that_is_no_database_is_refused_with_advice(tmp_path):
    path = tmp_path / "s.db"
    path.write_bytes(b"nothing of the kind " * 100)
    with pytest.raises(StoreError, match=r"s\.db: it is not an SQLite file"):
        async with Store.open(path):
            pass


async def test_a_damaged_file_is_refused_with_advice(tmp_path):
    path = tmp_path / "s.db"
    async with Store.open(path) as store:
        await store.create("notes", version=1, ddl=NOTES)
        await asyncio.gather(*(store.write(add("x" * 900 + str(n))) for n in range(100)))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        async with Store.open(path):
            pass


async def test_a_missing_directory_is_refused_with_advice(tmp_path):
    with pytest.raises(StoreError, match="directory"):
        async with Store.open(tmp_path / "nowhere" / "s.db"):
            pass


async def test_a_full_disk_fails_every_write_it_undid_and_the_store_lives_on(tmp_path):
    async with Store.open(tmp_path / "s.db") as store:
        await store.create("notes", version=1, ddl=NOTES)
        (pages,) = await store.read(lambda c: c.execute("PRAGMA page_count").fetchone())
        await store.read(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall())
        outcomes = await asyncio.gather(
            store.write(add("small")),
            store.write(add("y" * 50_000)),
            return_exceptions=True,
        )
        assert isinstance(outcomes[1], StoreError)
        assert "free space" in str(outcomes[1])
        kept = await store.read(texts)
        assert kept == ([] if isinstance(outcomes[0], StoreError) else ["small"])
        assert await store.write(add("after")) is not None


async def test_a_write_that_ends_the_transaction_is_told_so(tmp_path):
    async with Store.open(tmp_path / "s.db") as store:
        await store.create("notes", version=1, ddl=NOTES)
        with pytest.raises(StoreError, match="ended the transaction"):
            await store.write(lambda connection: connection.execute("COMMIT"))
        await store.write(add("after"))
        assert await store.read(texts) == ["after"]


CHILD = """
import asyncio, sys
from shoal_broker.store import Store

async def main():
    async with Store.open(sys.argv[1]) as store:
        await store.create("notes", version=1, ddl="CREATE TABLE notes (n INTEGER PRIMARY KEY)")
        async def writer(first):
            for n in range(first, 1_000_000, 8):
                await store.write(lambda c: c.execute("INSERT INTO notes VALUES (?)", (n,)))
                print(n, flush=True)
        async with asyncio.TaskGroup() as tasks:
            for first in range(8):
                tasks.create_task(writer(first))

asyncio.run(main())
"""


@pytest.mark.system
def test_every_write_that_returned_is_there_after_kill_9(tmp_path: Path):
    path = tmp_path / "s.db"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        returned = [int(child.stdout.readline()) for _ in range(300)]
        child.send_signal(signal.SIGKILL)
        returned += [
            int(line)
            for line in child.stdout.read().splitlines(keepends=True)
            if line.endswith("\n")
        ]
    with sqlite3.connect(path) as connection:
        kept = {row[0] for row in connection.execute("SELECT n FROM notes")}
    connection.close()
    assert set(returned) <= kept
