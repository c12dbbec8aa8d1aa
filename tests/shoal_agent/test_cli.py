"""The command line as a person meets it: exit codes and one line."""

import signal
import subprocess
import sys

import pytest
from tests.support.board import Board, short_folder
from tests.support.programs import output_of


@pytest.fixture
def board():
    with short_folder() as folder:
        yield Board(folder)


async def test_check_says_that_a_file_is_good_and_starts_nothing(board):
    path = board.agent_toml(1883)
    assert await output_of("shoal_agent", "--config", path, "--check") == (
        0,
        f"{path}: good, node board-1\n",
        "",
    )
    assert not board.state.exists()


async def test_check_says_what_is_wrong_with_a_file(board):
    path = board.agent_toml(1883)
    path.write_text("colour = 1\n" + path.read_text())
    code, out, err = await output_of("shoal_agent", "--config", path, "--check")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "unknown key `colour`" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "--config"),
        (("--config", "/no/such/agent.toml"), 2, "No such file"),
        (("--config", "/"), 2, "Is a directory"),
        (("--help",), 0, ""),
        (("--version",), 0, ""),
    ],
)
async def test_exit_codes_mean_something(arguments, code, says):
    found, out, err = await output_of("shoal_agent", *arguments)
    assert found == code
    assert says in err
    assert "Traceback" not in out + err


async def test_a_ready_file_that_cannot_be_written_is_one_line(board):
    path = board.agent_toml(1)
    code, _, err = await output_of(
        "shoal_agent", "--config", path, "--ready-file", board.folder / "none" / "ready"
    )
    assert code == 1
    assert err.splitlines()[-1].startswith("shoal-agent: --ready-file ")
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_it_politely(board, number):
    async with board.agent(1) as agent:
        agent.signal(number)
        assert await agent.ended() == 0
        assert "Traceback" not in agent.log


async def test_a_ready_file_of_an_earlier_run_is_gone_before_the_next_is_ready(board):
    path, ready = board.agent_toml(1), board.folder / "agent.ready"
    ready.write_text("4711\n")
    board.state.write_text("not a directory")
    code, _, _ = await output_of("shoal_agent", "--config", path, "--ready-file", ready)
    assert code == 1
    assert not ready.exists()


def test_a_full_collection_does_not_look_through_what_the_start_has_made():
    program = (
        "import gc, shoal_agent.app\n"
        "from shoal_agent import cli\n"
        "before = len(gc.get_objects())\n"
        "cli._freeze()\n"
        "print(before, len(gc.get_objects()))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    before, after = map(int, said.stdout.split())
    assert before > 10_000
    assert after < before / 20
