"""`shoal-agent enrol`: what it prints, and what it ends with."""

import asyncio
import json
import sys

import pytest
from tests.support.enrolment_door import open_door

from shoal_agent import cli as agent_cli
from shoal_agent.identity import cli
from shoal_agent.identity.store import IdentityStore
from shoal_contract.exits import Exit


@pytest.fixture
async def door(tmp_path):
    async with open_door(tmp_path) as door:
        yield door


async def enrol(door, *more, node="press-4"):
    return await asyncio.to_thread(
        cli.main,
        [
            *("--url", door.url, "--ca-pin", door.authority.pin, "--node-id", node),
            *("--state-dir", str(door.folder / node), *map(str, more)),
        ],
    )


async def test_a_board_is_enrolled_by_hand_with_a_token(door, capfd):
    token = await door.token_file()
    assert await enrol(door, "--token-file", token) == Exit.OK
    out, error = capfd.readouterr()
    assert "press-4: enrolled until " in out
    facts = IdentityStore(door.folder / "press-4").facts()
    assert f"key sha256:{facts.key}" in out
    assert error == ""
    assert not token.exists()


async def test_without_a_token_it_says_which_key_waits_for_a_person(door, capfd):
    assert await enrol(door, "--json") == Exit.TIMED_OUT
    outcome = json.loads(capfd.readouterr().out)
    (row,) = await door.pending.list_all()
    assert (outcome["kind"], outcome["key"]) == ("pending", row["fingerprint"])
    await door.pending.reject("press-4", None)
    assert await enrol(door) == Exit.FAILED
    assert "refused: press-4 was rejected with this key" in capfd.readouterr().err
    await door.pending.accept("press-4", None)
    assert await enrol(door, "--wait", "30") == Exit.OK


async def test_it_takes_what_is_not_said_from_the_configuration_of_the_agent(door, capfd):
    path = door.folder / "agent.toml"
    path.write_text(
        f"node = 'press-4'\nstate_dir = '{door.folder}/press-4'\n[broker]\nhost = 'localhost'\n"
        f"[enrolment]\nurl = '{door.url}'\nca_file = '{door.folder}/ca/ca.crt'\n"
        f"token_file = '{await door.token_file()}'\n[peers]\nenabled = false\n"
    )
    assert await asyncio.to_thread(cli.main, ["--config", str(path)]) == Exit.OK
    assert "press-4: enrolled" in capfd.readouterr().out


async def test_nobody_there_is_another_exit_code(door, capfd):
    door.door.port = 1
    assert await enrol(door) == Exit.UNREACHABLE
    assert capfd.readouterr().err.startswith("shoal-agent: unreachable: localhost:1 is not reached")


PIN = "sha256:" + "00" * 32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "enrol needs --node-id, --state-dir and --url"),
        (["--node-id", "No Node", "--state-dir", "s", "--url", "https://a"], "is not a node id"),
        (["--node-id", "a", "--state-dir", "s", "--url", "http://a", "--ca-pin", PIN], "is not https"),
        (["--node-id", "a", "--state-dir", "s", "--url", "https://a"], "which authority"),
        (["--node-id", "a", "--state-dir", "s", "--url", "https://a", "--ca-pin", "x"], "no sha256"),
        (
            ["--node-id", "a", "--state-dir", "s", "--url", "https://a", "--ca-pin", PIN,
             "--token-file", "/nowhere"],
            "there is no such file",
        ),
        (["--config", "/nowhere.toml"], "/nowhere.toml"),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_said_in_a_line(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["shoal-agent", "enrol", *arguments])
    with pytest.raises(SystemExit) as ended:
        agent_cli.main()
    assert ended.value.code == Exit.USAGE
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
