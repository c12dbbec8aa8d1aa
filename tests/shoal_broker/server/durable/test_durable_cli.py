"""`shoal-broker run --durable`, as people run it."""

import fcntl
import sqlite3

import pytest
from tests.support.programs import running

from shoal_broker import cli
from shoal_broker.server import config_file


def complaint(capsys, *arguments):
    """The one line on stderr of a broker that does not start."""
    assert cli.run(["run", "--port", "0", *map(str, arguments)]) == 1
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("shoal-broker:")
    ]
    assert len(lines) == 1
    return lines[0]


def test_a_directory_that_another_broker_uses_is_one_line_and_exit_1(tmp_path, capsys):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = complaint(capsys, "--durable", tmp_path)
    assert words == f"shoal-broker: another broker keeps its state in {tmp_path}"


def test_a_file_that_is_no_database_is_one_line_and_exit_1(tmp_path, capsys):
    (tmp_path / "broker.db").write_bytes(b"nothing of the kind " * 500)
    assert "it is not an SQLite file" in complaint(capsys, "--durable", tmp_path)


def test_a_file_of_a_newer_version_is_one_line_and_exit_1(tmp_path, capsys):
    with sqlite3.connect(tmp_path / "broker.db") as connection:
        connection.execute("CREATE TABLE shoal_schema (component TEXT, version INTEGER)")
        connection.execute("INSERT INTO shoal_schema VALUES ('broker', 999)")
    connection.close()
    assert "version 999, newer than this program" in complaint(capsys, "--durable", tmp_path)


def test_the_directory_may_stand_in_the_file_and_is_looked_for_beside_it(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text('durable_dir = "state"\n')
    assert config_file.load(path).durable_dir == tmp_path / "state"


@pytest.mark.system
async def test_it_makes_the_directory_and_leaves_a_whole_file(tmp_path):
    ready, state = tmp_path / "ready", tmp_path / "deep" / "state"
    arguments = ("run", "--port", 0, "--durable", state)
    async with running(
        "shoal_broker", *arguments, log=tmp_path / "log", ready_file=ready
    ) as broker:
        assert await broker.end() == 0
    with sqlite3.connect(state / "broker.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
