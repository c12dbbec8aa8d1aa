import asyncio
import os

import pytest

from shoal_broker.session import Session, SessionConfig
from shoal_contract import messages
from shoal_contract.messages import CommandUpdate, State
from shoal_contract.topics import Topics
from shoal_fleet.access import Door
from shoal_fleet.clock import now_ms
from shoal_fleet.commands import GRACE_MS
from shoal_fleet.errors import StateError


async def send(site, node="n0", op="ping", **body):
    answer = await site.api.post("/api/commands", json={"node": node, "op": op, **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def final(site, command, wait_s=5):
    return (await site.api.get(f"/api/commands/{command}", params={"wait_s": wait_s})).json()


async def test_a_node_that_reports_is_listed_with_its_hardware(site):
    await site.nodes(1)
    (node,) = (await site.api.get("/api/nodes")).json()
    assert node["node"] == "n0"
    assert node["online"]
    assert node["reported"]["hardware"]["model"] == "Raspberry Pi 4"
    assert node["reported"]["hardware"]["temperature_c"] == 48.5


async def test_a_node_that_leaves_is_offline_and_stays_known(site):
    async with site.node("n7"):
        pass
    await site.until(lambda: not site.controller.registry.nodes["n7"].online)
    assert (await site.api.get("/api/nodes/n7")).json()["reported"]["version"] == "0.1.0"


async def test_what_is_known_survives_a_restart_of_the_controller(quiet_site):
    async with quiet_site.controlled() as site, site.node("n0"):
        await site.api.patch("/api/nodes/n0/labels", json={"labels": {"site": "oslo"}})
        command = (await send(site))["id"]
        await final(site, command)
    async with quiet_site.controlled() as site:
        assert (await site.api.get("/api/nodes/n0")).json()["labels"] == {"site": "oslo"}
        assert (await final(site, command))["state"] == "succeeded"


async def test_labels_are_set_and_taken_away(site):
    await site.nodes(1)
    path = "/api/nodes/n0/labels"
    await site.api.patch(path, json={"labels": {"site": "oslo", "line": "2"}})
    answer = await site.api.patch(path, json={"labels": {"line": None}})
    assert answer.json()["labels"] == {"site": "oslo"}
    wrong = await site.api.patch(path, json={"labels": {"site": "oslo, bergen"}})
    assert wrong.status_code == 400
    assert "is not a label's value" in wrong.json()["error"]


async def test_a_command_goes_through_its_states_to_one_result(site):
    await site.nodes(1)
    sent = await send(site, args={"n": 1})
    assert sent["state"] == "sent"
    command = await final(site, sent["id"])
    assert command["state"] == "succeeded"
    assert command["result"] == {"pong": {"n": 1}}
    assert [step["state"] for step in command["history"]] == [
        "sent",
        "accepted",
        "running",
        "succeeded",
    ]


async def test_updates_that_come_together_share_a_commit_and_keep_their_order(site, monkeypatch):
    (node,) = await site.nodes(1, mute=True)
    sent = [(await send(site))["id"] for _ in range(10)]
    commands, commits = site.controller.commands, 0
    commit = commands._commit_arrived

    async def counted():
        nonlocal commits
        commits += 1
        await commit()

    monkeypatch.setattr(commands, "_commit_arrived", counted)
    states = (State.ACCEPTED, State.RUNNING, State.SUCCEEDED)
    await asyncio.gather(
        *(
            commands.update(node.name, CommandUpdate(bytes.fromhex(command), state, now_ms()))
            for command in sent
            for state in states
        )
    )
    assert commits <= 3
    for command in sent:
        history = (await final(site, command))["history"]
        assert [step["state"] for step in history] == ["sent", "accepted", "running", "succeeded"]


async def test_an_update_that_the_disk_does_not_take_is_asked_for_again(site, monkeypatch):
    (node,) = await site.nodes(1, mute=True)
    command = bytes.fromhex((await send(site))["id"])
    update = CommandUpdate(command, State.SUCCEEDED, now_ms())

    def full():
        raise StateError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(site.controller.commands._database, "write", full)
        with pytest.raises(StateError, match="full"):
            await site.controller.commands.update(node.name, update)
    await site.controller.commands.update(node.name, update)
    assert (await final(site, command.hex()))["state"] == "succeeded"


async def test_waiting_returns_at_the_next_state(site):
    await site.nodes(1)
    command = (await send(site, op="slow"))["id"]
    async with asyncio.timeout(5):
        seen = 1
        while seen < 3:
            answer = await site.api.get(
                f"/api/commands/{command}", params={"wait_s": 5, "seen": seen}
            )
            seen = len(answer.json()["history"])
    assert answer.json()["state"] == "running"


async def test_a_refusal_and_a_failure_come_with_their_reasons(site):
    await site.nodes(1)
    refused = await final(site, (await send(site, op="unknown"))["id"])
    failed = await final(site, (await send(site, op="fail"))["id"])
    assert (refused["state"], refused["reason"]) == ("refused", "there is no such operation")
    assert (failed["state"], failed["reason"]) == ("failed", "the valve is stuck")


async def test_a_command_is_cancelled_and_a_finished_one_is_too_late(site):
    (node,) = await site.nodes(1)
    slow = (await send(site, op="slow"))["id"]
    await site.until(lambda: bool(node.running))
    answer = (await site.api.post(f"/api/commands/{slow}/cancel")).json()
    assert answer["answer"] == "cancelled"
    assert (await final(site, slow))["state"] == "cancelled"
    again = (await site.api.post(f"/api/commands/{slow}/cancel")).json()
    assert again["answer"] == "too_late"


async def test_a_command_to_a_node_that_is_away_reaches_it_when_it_is_back(site):
    async with site.node("n0"):
        pass
    await site.until(lambda: not site.controller.registry.nodes["n0"].online)
    command = (await send(site))["id"]
    async with site.node("n0"):
        assert (await final(site, command))["state"] == "succeeded"


async def test_a_command_that_nobody_accepts_expires_and_the_nodes_late_word_corrects_it(site):
    (node,) = await site.nodes(1, mute=True)
    sent = await send(site, expires_s=1)
    await site.until(lambda: bool(node.commands))
    commands = site.controller.commands
    await commands.presume_expired(sent["expires_ms"] + GRACE_MS)
    assert (await final(site, sent["id"], wait_s=0))["state"] == "sent"
    await commands.presume_expired(sent["expires_ms"] + GRACE_MS + 1)
    assert (await final(site, sent["id"]))["state"] == "expired"
    await node.answer(bytes.fromhex(sent["id"]), State.SUCCEEDED, result=5)
    found = await site.until_answer(
        lambda: final(site, sent["id"]), lambda command: command["state"] == "succeeded"
    )
    assert found["result"] == 5


async def test_a_final_state_never_changes_whatever_the_node_says_later(site):
    (node,) = await site.nodes(1)
    command = await final(site, (await send(site))["id"])
    for state in (State.RUNNING, State.FAILED, State.ACCEPTED):
        await node.answer(bytes.fromhex(command["id"]), state)
    # The last one in line is a command of its own: when it is through, the others are, too.
    await final(site, (await send(site))["id"])
    assert await final(site, command["id"]) == command


async def test_an_update_of_another_nodes_command_is_ignored(site):
    _, other = await site.nodes(2)
    command = (await send(site, node="n0", op="slow"))["id"]
    await other.answer(bytes.fromhex(command), State.FAILED, reason="not mine")
    await site.until(lambda: site.controller.commands.stats.unknown == 1)
    assert (await final(site, command, wait_s=0))["state"] != "failed"


async def test_malformed_messages_are_counted_and_nobody_falls(site):
    topics = Topics()
    evil = CommandUpdate(id=os.urandom(8), state=State.FAILED, at_ms=now_ms())
    async with Session.open(
        SessionConfig(host="127.0.0.1", port=site.broker_port, client_id="evil")
    ) as session:
        await session.wait_connected(5)
        for topic, payload in {
            topics.state("n9"): b"\xff\xff",
            topics.presence("n9"): b"",
            topics.results("n9"): b"\x9f" * 50,
            topics.telemetry("n9", "x"): messages.encode(evil),
        }.items():
            await session.publish(topic, payload, durable=False)
        await session.publish(topics.results("n9"), b"\x82\x18\xc8\x01", durable=False)
        inbox = site.controller.inbox
        await site.until(lambda: inbox.unknown_kinds == 1 and sum(inbox.malformed.values()) == 4)
    await site.nodes(1)
    status = (await site.api.get("/api/status")).json()
    assert status["malformed"]["results"] == 1
    assert status["nodes_online"] == 1


async def test_labels_that_are_set_at_the_same_time_are_all_there(site):
    await site.nodes(1)
    await asyncio.gather(
        *(site.api.patch("/api/nodes/n0/labels", json={"labels": {f"k{n}": "v"}}) for n in range(8))
    )
    assert len(site.controller.registry.nodes["n0"].labels) == 8


async def test_a_node_that_went_while_nobody_listened_is_not_online(quiet_site):
    async with quiet_site.controlled() as site, site.node("n0"):
        assert site.controller.registry.nodes["n0"].online
        await site.api.aclose()
    async with quiet_site.controlled() as site:
        assert not site.controller.registry.nodes["n0"].online


async def test_a_broker_that_forgot_its_wills_leaves_no_node_online_for_ever(
    quiet_site, broker, tmp_path
):
    async with quiet_site.controlled() as site:
        registry = site.controller.registry
        async with site.node("stays"), site.node("goes"):
            await registry.forget_presence(0.0)
            assert registry.nodes["goes"].online
            told_s = registry._told_s["goes"]
            # As if the connection was made between the two of them.
            registry._told_s["stays"] = told_s + 2
            assert await registry.forget_presence(told_s + 1) == ["goes"]
            assert (registry.nodes["goes"].online, registry.nodes["stays"].online) == (False, True)


async def test_a_web_socket_is_refused():
    async def never(*_):
        raise AssertionError("it got in")

    sent = []

    async def send(message):
        sent.append(message)

    await Door(never, token="t")({"type": "websocket", "path": "/x"}, never, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_nobody_gets_in_without_the_token(site):
    bare = {"Authorization": ""}
    assert (await site.api.get("/api/nodes", headers=bare)).status_code == 401
    wrong = {"Authorization": "Bearer x"}
    answer = await site.api.post("/api/commands", headers=wrong, json={})
    assert answer.status_code == 401
    assert "token" in answer.json()["error"]
    assert (await site.api.get("/metrics", headers=bare)).status_code == 200
    assert (site.state_dir / "token").stat().st_mode & 0o777 == 0o600


async def test_what_cannot_be_done_is_one_line_with_the_right_status(site):
    await site.nodes(1)
    for path, status in {
        "/api/nodes/nobody": 404,
        "/api/commands/00": 400,
        "/api/commands/0011223344556677": 404,
        "/api/rollouts/9": 404,
        "/api/rollouts/x": 400,
        "/api/releases/none@1.0.0": 404,
        "/nothing": 404,
        "/api/readings?limit=0": 400,
        f"/api/readings?after={1 << 63}": 400,
        f"/api/rollouts/{1 << 63}": 400,
    }.items():
        answer = await site.api.get(path)
        assert answer.status_code == status, path
        assert list(answer.json()) == ["error"]
        assert "\n" not in answer.json()["error"]
    unknown = {"node": "n0", "op": "x", "colour": "red"}
    answer = await site.api.post("/api/commands", json=unknown)
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "colour: Extra inputs are not permitted",
    )
    answer = await site.api.post("/api/commands", json={"node": "nobody", "op": "x"})
    assert answer.status_code == 404
    answer = await site.api.post("/api/commands", content=b"x" * 300_000)
    assert answer.status_code == 413


async def test_metrics_say_how_the_fleet_is(site):
    await site.nodes(2)
    await final(site, (await send(site))["id"])
    text = (await site.api.get("/metrics")).text
    assert "shoal_nodes_online 2.0" in text
    assert 'shoal_commands{state="succeeded"} 1.0' in text
    assert "shoal_broker_connected 1.0" in text


async def test_waiting_returns_when_the_command_has_come_further(site):
    (node,) = await site.nodes(1)
    command = (await send(site, op="slow"))["id"]
    await site.until(lambda: bytes.fromhex(command) in node.running)
    path = f"/api/commands/{command}"
    known = await site.until_answer(
        lambda: final(site, command, wait_s=0), lambda found: found["progress"] == 50
    )
    params = {"wait_s": 5, "seen": len(known["history"]), "progress": 50}
    waiting = asyncio.create_task(site.api.get(path, params=params))
    await node.answer(bytes.fromhex(command), State.RUNNING, progress=80, reason="nearly")
    found = (await waiting).json()
    assert (found["progress"], found["reason"], found["final"]) == (80, "nearly", False)
    assert len(found["history"]) == len(known["history"]), "progress is no new state"
