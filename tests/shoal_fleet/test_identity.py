"""Enrolment in a running controller: commands, API, metrics, and what a revoked node is to it."""

import asyncio
import http.client
import json
import ssl
import stat
from contextlib import asynccontextmanager

import pytest
from tests.shoal_fleet.test_cli import invoke, shoal
from tests.support.enrolling import BoardKey
from tests.support.node_simulator import NodeSimulator

from shoal_contract import enrolment as wire
from shoal_contract.enrolment import sha256_text
from shoal_contract.exits import Exit
from shoal_fleet import metrics
from shoal_fleet.errors import ConfigError
from shoal_fleet.identity.config import IdentityTable, check


@asynccontextmanager
async def enrolling(site, **changes):
    """A controller with an authority and an open door."""
    folder = site.folder / "ca"
    if not folder.exists():
        assert invoke(site, "ca", "init", "--dir", folder)[0] == 0
    table = IdentityTable(
        ca_dir=str(folder), listen="127.0.0.1:0", names=("localhost", "127.0.0.1"), **changes
    )
    async with site.controlled(identity=table):
        yield site


@pytest.fixture
async def enrolling_site(quiet_site):
    async with enrolling(quiet_site):
        yield quiet_site


def at_the_door(site, request):
    """Status and answer of the door."""
    context = ssl.create_default_context(cafile=site.folder / "ca" / "ca.crt")
    connection = http.client.HTTPSConnection(
        "localhost", site.controller.identity.door.port, context=context, timeout=10
    )
    connection.request("POST", wire.ENROL_PATH, wire.encode(request))
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


async def knock(site, request):
    return await asyncio.to_thread(at_the_door, site, request)


def test_an_authority_is_made_shown_and_issues_by_command(quiet_site, tmp_path):
    folder = tmp_path / "plant"
    code, pin, _ = invoke(quiet_site, "ca", "init", "--dir", folder, "--name", "plant 7")
    assert code == 0
    assert pin.startswith("sha256:")
    code, out, _ = invoke(quiet_site, "ca", "show", "--dir", folder, "--json")
    assert json.loads(out) == {"dir": str(folder), "ca_pin": pin.strip()}
    code, _, error = invoke(quiet_site, "ca", "init", "--dir", folder)
    assert (code, "nothing was changed" in error) == (Exit.FAILED, True)
    code, _, error = invoke(quiet_site, "ca", "init", "--dir", tmp_path / "x", "--name", "x" * 65)
    assert code == Exit.USAGE
    code, out, _ = invoke(
        quiet_site, "ca", "issue", "broker", "--dir", folder, "--out", tmp_path,
        "--host", "broker.example.net", "--host", "192.0.2.7",
    )  # fmt: skip
    assert (code, "broker.crt" in out) == (0, True)
    code, _, error = invoke(quiet_site, "ca", "issue", "a/b", "--dir", folder)
    assert (code, "is not a user" in error) == (Exit.USAGE, True)
    code, _, error = invoke(quiet_site, "ca", "show", "--dir", tmp_path / "nowhere")
    assert (code, "shoal ca init" in error) == (Exit.FAILED, True)
    code, pin, _ = invoke(quiet_site, "ca", "init")
    assert (code, (quiet_site.state_dir / "ca" / "ca.key").exists()) == (0, True)
    assert invoke(quiet_site, "ca", "show")[1] == pin
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    code, _, _ = invoke(
        quiet_site, "ca", "init", "--dir", tmp_path / "locked", "--passphrase-file", secret
    )
    assert code == 0
    code, _, error = invoke(quiet_site, "ca", "issue", "b", "--dir", tmp_path / "locked")
    assert (code, "passphrase" in error) == (Exit.FAILED, True)


async def test_tokens_are_made_listed_and_revoked_by_command(enrolling_site, tmp_path):
    site = enrolling_site
    code, out, _ = await shoal(site, "token", "create", "--ttl", "2h", "--label", "site=oslo")
    assert code == 0
    token = out.strip()
    assert len(token) == 43
    file = tmp_path / "tokens"
    code, out, _ = await shoal(
        site, "token", "create", "--count", "3", "--group", "press", "--out", file, "--json"
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    made = json.loads(out)
    assert ({"token"} & made[0].keys(), made[0]["labels"]) == (set(), {"group": "press"})
    texts = file.read_text().splitlines()
    assert len(set(texts)) == 3
    code, _, error = await shoal(site, "token", "create", "--out", file)
    assert (code, "there is a file already" in error) == (Exit.USAGE, True)
    code, _, error = await shoal(site, "token", "create", "--node", "a", "--count", "2")
    assert code == Exit.FAILED
    code, _, error = await shoal(site, "token", "create", "--node", "Not A Node")
    assert (code, "is not a node id" in error) == (Exit.FAILED, True)
    code, out, _ = await shoal(site, "token", "list", "--json")
    listed = json.loads(out)
    assert len(listed) == 4
    assert not any(text in out for text in [token, *texts])
    code, out, _ = await shoal(site, "token", "revoke", made[0]["id"])
    assert (code, out) == (0, f"{made[0]['id']}: revoked\n")
    assert (await knock(site, BoardKey().asks("press-4", token=texts[0])))[0] == 403
    assert (await knock(site, BoardKey().asks("press-4", token=token)))[0] == 200
    assert site.controller.registry.get("press-4").labels == {"site": "oslo"}
    _, out, _ = await shoal(site, "token", "list")
    assert "\tused\tany new node\tsite=oslo\t" in out
    code, _, error = await shoal(site, "token", "revoke", "nonsense")
    assert (code, "there is no token" in error) == (Exit.FAILED, True)
    stored = b"".join(path.read_bytes() for path in site.state_dir.glob("fleet.db*"))
    assert not any(text.encode() in stored for text in [token, *texts])


async def test_a_board_that_waits_is_listed_accepted_and_shown_with_its_certificate(enrolling_site):
    site, board, thief = enrolling_site, BoardKey(), BoardKey()
    for one in (board, thief):
        assert (await knock(site, one.asks("press-4")))[0] == 202
    _, out, _ = await shoal(site, "nodes", "pending")
    assert len(out.splitlines()) == 3
    assert f"press-4\twaiting\t{sha256_text(board.digest)}\t127.0.0.1\t" in out
    code, _, error = await shoal(site, "nodes", "accept", "press-4")
    assert (code, "--fingerprint" in error) == (Exit.FAILED, True)
    code, out, _ = await shoal(
        site, "nodes", "accept", "press-4", "--fingerprint", board.digest.hex()[:16]
    )
    assert (code, out) == (0, f"press-4: accepted, key {sha256_text(board.digest)}\n")
    assert (await knock(site, board.asks("press-4")))[0] == 200
    _, out, _ = await shoal(site, "nodes", "show", "press-4")
    assert f"(accepted), key {sha256_text(board.digest)}" in out
    assert (await knock(site, thief.asks("other")))[0] == 202
    code, out, _ = await shoal(site, "nodes", "reject", "other")
    assert (code, out) == (0, "other: rejected (1)\n")
    assert (await knock(site, thief.asks("other")))[0] == 403


async def test_a_revoked_node_is_heard_no_more_and_nothing_is_asked_of_it(enrolling_site):
    site = enrolling_site
    async with (
        NodeSimulator.open("press-4", site.broker_port, site.folder) as node,
        NodeSimulator.open("press-5", site.broker_port, site.folder),
    ):
        await site.until(lambda: site._is_known("press-4") and site._is_known("press-5"))
        code, out, _ = await shoal(site, "nodes", "revoke", "press-4", "--reason", "stolen")
        assert (code, out) == (0, "press-4: revoked, 0 certificates\n")
        assert not site.controller.registry.get("press-4").online
        seen_ms = site.controller.registry.last_seen_ms["press-4"]
        await node.session.publish(node.topics.presence("press-4"), b"anything", durable=False)
        await site.until(lambda: site.controller.inbox.of_revoked > 0)
        assert site.controller.registry.last_seen_ms["press-4"] == seen_ms
        _, out, _ = await shoal(site, "nodes")
        assert "press-4\trevoked\t" in out
        code, _, error = await shoal(site, "send", "press-4", "ping")
        assert (code, "was revoked" in error) == (Exit.FAILED, True)
        _, out, _ = await shoal(site, "send", "--group", "all", "ping", "--json")
        assert list(json.loads(out)["nodes"]) == ["press-5"]
        text = (await metrics.render(site.controller)).decode()
        assert "shoal_nodes_revoked 1.0" in text
    code, _, error = await shoal(site, "nodes", "revoke", "nobody")
    assert (code, "there is no node" in error) == (Exit.FAILED, True)


async def test_a_revoked_node_stays_out_when_the_controller_starts_anew(quiet_site):
    board = BoardKey()
    async with enrolling(quiet_site) as site:
        (token,) = (await shoal(site, "token", "create"))[1].splitlines()
        assert (await knock(site, board.asks("press-4", token=token)))[0] == 200
        await shoal(site, "nodes", "revoke", "press-4")
    async with enrolling(quiet_site) as site:
        status, refusal = await knock(site, BoardKey().asks("press-4", known=board))
        assert (status, refusal["why"]) == (403, "revoked")
        assert site.controller.is_revoked("press-4")


async def test_without_its_authority_too_a_controller_keeps_out_who_was_revoked(quiet_site):
    async with enrolling(quiet_site) as site, site.node("press-4"):
        await shoal(site, "nodes", "revoke", "press-4")
    async with quiet_site.controlled() as site:
        async with NodeSimulator.open("press-4", site.broker_port, site.folder):
            await site.until(lambda: site.controller.inbox.of_revoked > 0)
        assert not site.controller.registry.get("press-4").online
        code, _, error = await shoal(site, "send", "press-4", "ping")
        assert (code, "was revoked" in error) == (Exit.FAILED, True)


async def test_labels_that_a_node_has_no_room_for_cost_it_no_certificate(enrolling_site):
    site = enrolling_site
    async with site.node("press-4"):
        full = {f"l{n}": "x" for n in range(32)}
        await site.api.patch("/api/nodes/press-4/labels", json={"labels": full})
        _, token, _ = await shoal(site, "token", "create", "--node", "press-4", "--group", "oslo")
        assert (await knock(site, BoardKey().asks("press-4", token=token.strip())))[0] == 200
        assert site.controller.registry.get("press-4").labels == full


async def test_names_of_the_brokers_other_clients_are_no_nodes(quiet_site):
    async with enrolling(quiet_site, reserved=("alice",)) as site:
        invoke(site, "ca", "issue", "grafana", "--dir", site.folder / "ca", "--out", site.folder)
        for name in ("shoal-controller", "alice", "grafana"):
            status, refusal = await knock(site, BoardKey().asks(name))
            assert (status, refusal["why"]) == (403, "reserved"), name


async def test_without_an_authority_the_commands_say_what_to_do(site):
    for words in (("token", "list"), ("nodes", "pending"), ("nodes", "revoke", "a")):
        code, _, error = await shoal(site, *words)
        assert (code, "shoal ca init" in error) == (Exit.FAILED, True)


@pytest.mark.parametrize(
    "table",
    [
        {"listen": "8884"},
        {"listen": "a:b"},
        {"listen": "127.0.0.1:70000"},
        {"names": ()},
        {"names": ("",)},
        {"names": ("ö",)},
    ],
)
def test_a_table_that_cannot_be_used_names_its_key(table):
    key = next(iter(table))
    with pytest.raises(ConfigError, match=rf"\[identity\] {key}"):
        check(IdentityTable(**({"ca_dir": "ca", "names": ("localhost",)} | table)))


async def test_a_new_board_enrols_under_the_name_of_a_dead_one_whose_key_is_good_no_more(
    enrolling_site,
):
    site = enrolling_site
    dead, new = BoardKey(), BoardKey()
    code, out, _ = await shoal(site, "token", "create", "--node", "press-4")
    assert code == 0
    status, _ = await knock(site, dead.asks("press-4", token=out.strip()))
    assert status == 200
    await site.api.patch("/api/nodes/press-4/labels", json={"labels": {"site": "oslo"}})
    code, out, error = await shoal(site, "nodes", "replace", "press-4")
    assert (code, "1 certificates revoked" in error) == (0, True)
    status, answer = await knock(site, dead.asks("press-4", known=dead))
    assert status != 200, answer
    status, answer = await knock(site, new.asks("press-4", token=out.strip()))
    assert status == 200, answer
    assert dict(site.controller.registry.labels("press-4")) == {"site": "oslo"}
    assert not site.controller.is_revoked("press-4")
