"""`shoal mandate`, `shoal key new`, `shoal sign`: what they print, and what they end with."""

import json
import stat

import pytest
from tests.shoal_fleet.test_cli import invoke, shoal

from shoal_contract import envelope, messages
from shoal_contract.errors import EnvelopeError
from shoal_contract.exits import Exit
from shoal_contract.messages import Command
from shoal_contract.signatures import Verifier
from shoal_fleet.cli_mandates import duration_s
from shoal_fleet.errors import UsageError

KEY = envelope.key_text(b"\x07" * 32)


async def test_a_mandate_is_given_listed_changed_and_revoked(site):
    code, out, _ = await shoal(
        site,
        "mandate",
        "grant",
        "alice",
        KEY,
        "--op",
        "device.*",
        "--op",
        "ping",
        "--group",
        "oslo",
    )
    assert (code, out) == (0, "alice: device.* ping in oslo, for good\n")
    code, out, _ = await shoal(
        site, "mandate", "grant", "alice", KEY, "--op", "ping", "--group", "*", "--for", "30d",
        "--may-delegate", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert (found["ops"], found["groups"], found["may_delegate"]) == (["ping"], ["*"], True)
    assert 29.9 * 86_400_000 < found["until_ms"] - found["made_ms"] <= 30 * 86_400_000
    _, out, _ = await shoal(site, "mandate", "list")
    head, row, held = out.splitlines()
    assert head.split("\t") == ["name", "operations", "groups", "delegates", "ends", "revoked"]
    assert row.split("\t")[:4] == ["alice", "ping", "*", "yes"]
    assert held == "0 of 0 nodes that were told hold it"
    code, out, _ = await shoal(site, "mandate", "revoke", "alice")
    assert (code, out) == (0, "alice: revoked; nodes are told as soon as they are there\n")
    code, _, error = await shoal(
        site, "mandate", "grant", "alice", KEY, "--op", "*", "--group", "*"
    )
    assert code == Exit.FAILED
    assert "was revoked" in error


async def test_what_may_run_in_a_group_is_said_and_taken_back(site):
    code, out, _ = await shoal(site, "mandate", "approve", "oslo", "device.*", "ping")
    assert (code, out) == (0, "group oslo: approved device.* ping, denied nothing\n")
    _, out, _ = await shoal(site, "mandate", "deny", "oslo", "device.get")
    assert out == "group oslo: approved device.* ping, denied device.get\n"
    _, out, _ = await shoal(site, "mandate", "approve", "oslo")
    assert out == "group oslo: approved nothing, denied device.get\n"
    _, out, _ = await shoal(site, "mandate", "approve", "oslo", "--everything", "--json")
    assert json.loads(out) == {"group": "oslo", "approved": None, "denied": ["device.get"]}
    _, out, _ = await shoal(site, "mandate", "list")
    assert "group oslo: approved everything, denied device.get" in out
    code, _, error = await shoal(site, "mandate", "approve", "oslo", "ping", "--everything")
    assert (code, error) == (Exit.USAGE, "--everything and operations")


def test_a_key_is_made_in_a_file_of_its_owners_and_never_over_another(tmp_path, quiet_site):
    path = tmp_path / "alice.key"
    code, out, _ = invoke(quiet_site, "key", "new", path)
    assert code == 0
    assert len(envelope.parse_key(out.strip())) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    code, _, error = invoke(quiet_site, "key", "new", path)
    assert code == Exit.FAILED
    assert "there is a file already" in error


def test_a_command_is_signed_without_a_controller_for_its_topic_only(tmp_path, quiet_site):
    path = tmp_path / "alice.key"
    _, public, _ = invoke(quiet_site, "key", "new", path)
    verifier = Verifier([envelope.parse_key(public.strip())])
    code, out, _ = invoke(
        quiet_site, "sign", "press-4", "device.set", "device=valve", "channel=2", "--key", path,
        "--json", "--expires", "5",
    )  # fmt: skip
    assert code == 0
    said = json.loads(out)
    assert said["topic"] == "shoal/n/press-4/c"
    payload, _ = verifier.open(bytes.fromhex(said["payload"]), topic=said["topic"])
    command = messages.decode_as(payload, Command)
    assert (command.id.hex(), command.args) == (said["id"], {"device": "valve", "channel": 2})
    assert command.expires_ms - command.issued_ms == 5000
    with pytest.raises(EnvelopeError):
        verifier.open(bytes.fromhex(said["payload"]), topic="shoal/n/press-5/c")


def test_a_group_may_be_meant_and_another_root(tmp_path, quiet_site):
    path = tmp_path / "alice.key"
    invoke(quiet_site, "key", "new", path)
    _, out, _ = invoke(
        quiet_site, "sign", "ping", "--group", "oslo", "--root", "acme", "--key", path, "--json"
    )
    assert json.loads(out)["topic"] == "acme/g/oslo/c"


@pytest.mark.parametrize("words", [["press-4"], []])
def test_a_command_without_a_node_or_an_operation_is_refused(tmp_path, quiet_site, words):
    code, _, error = invoke(quiet_site, "sign", *words, "--key", tmp_path / "none")
    assert code == Exit.USAGE
    assert error


def test_a_key_that_others_may_read_signs_nothing(tmp_path, quiet_site):
    path = tmp_path / "alice.key"
    invoke(quiet_site, "key", "new", path)
    path.chmod(0o644)
    code, _, error = invoke(quiet_site, "sign", "press-4", "ping", "--key", path)
    assert code == Exit.FAILED
    assert "others may read it" in error


def test_times_are_numbers_with_a_unit():
    assert [duration_s(text) for text in ("90s", "30m", "12h", "30d")] == [90, 1800, 43200, 2592000]
    for text in ("", "30", "d", "-1d", "1w", "1.5h"):
        with pytest.raises(UsageError):
            duration_s(text)
