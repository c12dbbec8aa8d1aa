import os
from contextlib import asynccontextmanager

import pytest

from shoal_agent import journal
from shoal_agent.journal import Journal, add_command, find_answer, forget_old_commands, set_answer
from shoal_broker.store import Store
from shoal_contract import messages
from shoal_contract.messages import Command, CommandUpdate, State

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
FINAL = [state for state in State if state.is_final]


@asynccontextmanager
async def opened(path):
    async with Store.open(path / "agent.db") as store:
        yield await Journal.load(store)


def command() -> Command:
    return Command(os.urandom(8), "ping", {}, NOW_MS, NOW_MS + DAY_MS)


async def accept(journal: Journal, sent: Command, at_ms: int) -> None:
    def run(db):
        add_command(db, sent, CommandUpdate(sent.id, State.ACCEPTED, at_ms))
        forget_old_commands(db, FINAL)

    await journal.store.write(run)


async def finish(journal: Journal, sent: Command, at_ms: int) -> None:
    answer = CommandUpdate(sent.id, State.SUCCEEDED, at_ms)
    assert await journal.store.write(lambda db: set_answer(db, answer))


@pytest.mark.parametrize("step_ms", [1, 0, -DAY_MS], ids=["goes on", "stands", "jumps back"])
async def test_commands_that_a_restart_left_come_back_in_their_order_whatever_the_clock_does(
    tmp_path, step_ms
):
    sent = [command() for _ in range(20)]
    async with opened(tmp_path) as journal:
        for number, one in enumerate(sent):
            await accept(journal, one, NOW_MS + number * step_ms)
    async with opened(tmp_path) as journal:
        left = await journal.unfinished_commands()
    assert [one.id for one, _ in left] == [one.id for one in sent]


@pytest.mark.parametrize("jump_ms", [0, DAY_MS, -DAY_MS], ids=["goes on", "jumps on", "jumps back"])
async def test_the_newest_answers_are_kept_for_a_repeat_whatever_the_clock_does(
    tmp_path, monkeypatch, jump_ms
):
    monkeypatch.setattr(journal, "KEPT_COMMANDS", 5)
    sent = [command() for _ in range(20)]
    async with opened(tmp_path) as opened_journal:
        for number, one in enumerate(sent):
            at_ms = NOW_MS + number + (jump_ms if number >= 10 else 0)
            await accept(opened_journal, one, at_ms)
            await finish(opened_journal, one, at_ms)

        def answered(db):
            return [find_answer(db, one.id) is not None for one in sent]

        kept = await opened_journal.store.read(answered)
    assert kept == [False] * 15 + [True] * 5


# The tables of version 1, as boards in the field have them.
FIRST_TABLES = """
CREATE TABLE wanted (only INTEGER PRIMARY KEY CHECK (only = 1), message BLOB NOT NULL);
CREATE TABLE serving (model TEXT PRIMARY KEY, release BLOB NOT NULL, previous BLOB) WITHOUT ROWID;
CREATE TABLE steps (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, release BLOB NOT NULL,
    step TEXT NOT NULL, at_ms INTEGER NOT NULL
);
CREATE TABLE refused (release BLOB PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE commands (
    id BLOB PRIMARY KEY, command BLOB NOT NULL, state INTEGER NOT NULL, answer BLOB NOT NULL,
    received_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX commands_by_age ON commands (received_ms);
"""


async def test_a_journal_of_the_first_version_is_taken_over_with_its_commands(tmp_path):
    old = command()
    update = CommandUpdate(old.id, State.SUCCEEDED, NOW_MS, "", {"uptime_s": 1})
    async with Store.open(tmp_path / "agent.db") as store:
        await store.create(journal.COMPONENT, version=1, ddl=FIRST_TABLES)
        row = (old.id, messages.encode(old), update.state, messages.encode(update), NOW_MS)
        await store.write(lambda db: db.execute("INSERT INTO commands VALUES (?, ?, ?, ?, ?)", row))
    async with opened(tmp_path) as made:
        assert await made.store.read(lambda db: find_answer(db, old.id)) == update
        assert await made.policies() == {}
        assert await made.clock_floor_ms() == 0
        await accept(made, command(), NOW_MS)
