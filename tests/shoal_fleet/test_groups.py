import sqlite3

import pytest
from tests.shoal_fleet.test_cli import shoal

from shoal_broker.session import Session, SessionConfig
from shoal_contract.messages import State
from shoal_fleet import orders
from shoal_fleet.database import Database
from shoal_fleet.errors import RequestError
from shoal_fleet.selection import parse_group, topic_group
from shoal_fleet.tables import FleetBase


async def label(at, *names, **labels):
    for name in names:
        answer = await at.api.patch(f"/api/nodes/{name}/labels", json={"labels": labels})
        assert answer.status_code == 200, answer.text


async def send(site, group, op="ping", **body):
    answer = await site.api.post("/api/commands", json={"group": group, "op": op, **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def final(site, command, wait_s=5):
    return (await site.api.get(f"/api/commands/{command}", params={"wait_s": wait_s})).json()


async def ovens(site, count=3):
    """Nodes of which the first `count` - 1 are in the group `oven` and know it."""
    nodes = await site.nodes(count)
    members = nodes[:-1]
    await label(site, *(node.name for node in members), group="oven")
    await site.until(lambda: all(node.groups == {"oven"} for node in members))
    return nodes


async def test_a_command_to_a_group_is_published_once_and_done_once_by_each_member(site):
    first, second, other = await ovens(site)
    sent = site.controller.session.stats.published
    command = await final(site, (await send(site, "oven", args={"n": 1}))["id"])
    assert site.controller.session.stats.published == sent + 1
    assert (command["state"], command["states"], command["final"]) == (
        "succeeded",
        {"succeeded": 2},
        True,
    )
    assert command["nodes"]["n0"]["result"] == {"pong": {"n": 1}}
    assert {step["node"] for step in command["history"]} == {"n0", "n1"}
    assert [len(node.done) for node in (first, second, other)] == [1, 1, 0]
    # Nobody is told a second time.
    assert len(site.controller.session.outbox) == 0


async def test_a_member_that_the_group_does_not_reach_is_told_itself(site, monkeypatch):
    monkeypatch.setattr(orders, "GROUP_GRACE_S", 0.2)
    first, second, _ = await ovens(site)
    await second.session.unsubscribe("shoal/g/oven/c")
    command = await final(site, (await send(site, "oven"))["id"])
    assert command["states"] == {"succeeded": 2}
    assert [len(node.done) for node in (first, second)] == [1, 1]


async def test_a_member_that_hears_of_it_twice_does_it_once(site, monkeypatch):
    monkeypatch.setattr(orders, "GROUP_GRACE_S", 0.0)
    first, second, _ = await ovens(site)
    for _ in range(5):
        command = await final(site, (await send(site, "oven"))["id"])
        assert command["states"] == {"succeeded": 2}
    assert [len(node.done) for node in (first, second)] == [5, 5]


@pytest.mark.parametrize("group", ["", "all"])
async def test_everybody_is_a_group_that_nobody_has_to_join(site, group):
    nodes = await site.nodes(2)
    command = await final(site, (await send(site, group))["id"])
    assert (command["group"], command["states"]) == ("all", {"succeeded": 2})
    assert [len(node.done) for node in nodes] == [1, 1]


async def test_nodes_that_several_labels_name_are_told_one_by_one(site):
    nodes = await site.nodes(3)
    await label(site, "n0", "n1", site="oslo", line="2")
    await label(site, "n2", site="oslo")
    command = await final(site, (await send(site, "site=oslo,line=2"))["id"])
    assert set(command["nodes"]) == {"n0", "n1"}
    assert [len(node.done) for node in nodes] == [1, 1, 0]


async def test_a_command_to_a_group_is_cancelled_on_every_member(site):
    first, second, _ = await ovens(site)
    command = (await send(site, "oven", op="slow"))["id"]
    await site.until(lambda: bool(first.running and second.running))
    answer = (await site.api.post(f"/api/commands/{command}/cancel")).json()
    assert (answer["answer"], set(answer["nodes"])) == ("cancelled", {"n0", "n1"})
    found = await final(site, command)
    assert (found["state"], found["states"]) == ("cancelled", {"cancelled": 2})


async def test_different_ends_on_different_members_are_told_apart(site):
    first, second, _ = await ovens(site)
    command = (await send(site, "oven", op="slow"))["id"]
    await site.until(lambda: bool(first.running and second.running))
    await first.answer(bytes.fromhex(command), State.SUCCEEDED)
    await second.answer(bytes.fromhex(command), State.FAILED, reason="stuck")
    found = await final(site, command)
    assert (found["state"], found["states"]) == ("mixed", {"succeeded": 1, "failed": 1})
    assert found["nodes"]["n1"]["reason"] == "stuck"


async def test_what_names_nobody_or_both_is_refused(site):
    await site.nodes(1)
    for body in (
        {"group": "nobody", "op": "ping"},
        {"op": "ping"},
        {"node": "n0", "group": "all", "op": "ping"},
        {"group": "all", "op": "ping", "publish": False},
        {"group": "a=b=c d", "op": "ping"},
    ):
        answer = await site.api.post("/api/commands", json=body)
        assert answer.status_code == 400, body
        assert list(answer.json()) == ["error"]
    answer = await site.api.patch("/api/nodes/n0/labels", json={"labels": {"group": "all"}})
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "'all' is the group that every node is in",
    )


def test_only_a_group_of_one_word_has_a_topic():
    assert topic_group(parse_group("oven")) == "oven"
    assert topic_group(parse_group("group=oven")) == "oven"
    assert topic_group(parse_group("")) == "all"
    assert topic_group(parse_group("site=oslo")) is None
    assert topic_group(parse_group("oven,site=oslo")) is None
    with pytest.raises(RequestError, match="group"):
        parse_group("a:b")


async def test_the_command_line_sends_to_groups_and_shows_each_member(site):
    await ovens(site)
    code, out, _ = await shoal(site, "send", "--group", "oven", "ping", "n=1")
    assert code == 0
    assert [line.split("\t")[:2] for line in out.splitlines()[1:]] == [
        ["n0", "succeeded"],
        ["n1", "succeeded"],
    ]
    code, _, error = await shoal(site, "send", "--group", "oven", "fail")
    assert (code, "2 failed" in error) == (1, True)
    code, _, error = await shoal(site, "send", "ping")
    assert (code, "node" in error) == (2, True)


async def test_a_printed_command_is_sent_by_whoever_publishes_it_and_followed_here(site):
    (node,) = await site.nodes(1)
    code, out, _ = await shoal(site, "send", "n0", "ping", "n=1", "--print")
    assert code == 0
    topic, payload = out.split()
    assert node.commands == []
    (command,) = (await site.api.get("/api/commands")).json()
    config = SessionConfig(host="127.0.0.1", port=site.broker_port, client_id="anybody")
    async with Session.open(config) as session:
        await session.wait_connected(5)
        await session.publish(topic, bytes.fromhex(payload), durable=False)
    assert (await final(site, command["id"]))["state"] == "succeeded"


async def test_a_restart_sends_what_a_crash_kept_from_the_bus_but_not_what_was_printed(quiet_site):
    async with quiet_site.controlled() as site, site.node("n0"):
        pass
    async with quiet_site.controlled() as site:
        for publish in (True, False):
            body = {"node": "n0", "op": "ping", "args": {"sent": publish}, "publish": publish}
            assert (await site.api.post("/api/commands", json=body)).status_code == 201
        # As if the process had ended between the two commits.
        outbox = site.controller.session.outbox
        await outbox.store.write(lambda db: db.execute("DELETE FROM outbox"))
    async with quiet_site.controlled() as site, site.node("n0") as node:
        await site.until(lambda: bool(node.done))
        assert all(command.args == {"sent": True} for command in node.commands)
        assert len(node.done) == 1


FIRST_VERSION = """
CREATE TABLE commands (
    id BLOB NOT NULL, node VARCHAR NOT NULL, op VARCHAR NOT NULL, args BLOB NOT NULL,
    issued_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, priority INTEGER NOT NULL,
    state INTEGER NOT NULL, presumed BOOLEAN NOT NULL, progress INTEGER NOT NULL,
    reason VARCHAR NOT NULL, result BLOB, PRIMARY KEY (id)
);
CREATE INDEX ix_commands_state ON commands (state);
CREATE INDEX ix_commands_issued_ms ON commands (issued_ms);
CREATE INDEX ix_commands_node ON commands (node);
CREATE TABLE command_history (
    id INTEGER NOT NULL, command BLOB NOT NULL, state INTEGER NOT NULL, at_ms INTEGER NOT NULL,
    reason VARCHAR NOT NULL, PRIMARY KEY (id), FOREIGN KEY(command) REFERENCES commands (id)
);
CREATE INDEX ix_command_history_command ON command_history (command);
INSERT INTO commands VALUES (x'0011223344556677', 'n0', 'ping', x'a0', 1, 2, 4, 3, 0, 0, '', NULL);
INSERT INTO command_history VALUES (1, x'0011223344556677', 0, 1, '');
INSERT INTO command_history VALUES (2, x'0011223344556677', 3, 2, 'done');
PRAGMA user_version = 1;
"""


async def test_commands_of_the_first_version_of_the_database_are_kept(quiet_site):
    quiet_site.database_url = None  # it was a file
    quiet_site.state_dir.mkdir()
    path = quiet_site.state_dir / "fleet.db"
    with sqlite3.connect(path) as old:
        old.executescript(FIRST_VERSION)
    old.close()
    async with quiet_site.controlled() as site:
        command = await final(site, "0011223344556677", wait_s=0)
        assert [(step["node"], step["state"]) for step in command["history"]] == [
            ("n0", "sent"),
            ("n0", "succeeded"),
        ]
        await site.nodes(1)
        sent = await site.api.post("/api/commands", json={"node": "n0", "op": "ping"})
        assert (await final(site, sent.json()["id"]))["state"] == "succeeded"
    # It opens again as what it is now.
    async with Database.open(path, FleetBase):
        pass
