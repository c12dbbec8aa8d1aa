"""What persons decide about rollouts, through the API of a real controller with simulated nodes."""

import asyncio
import time

import pytest
from tests.shoal_fleet.test_cli import shoal
from tests.shoal_fleet.test_rollouts import serves, start

from shoal_fleet import digits
from shoal_fleet.cli_freeze import parse_until
from shoal_fleet.errors import UsageError


async def ask(site, path, body=None, *, by="anna", status=200):
    answer = await site.api.post(path, json=body, headers={"Shoal-Operator": by})
    assert answer.status_code == status, answer.text
    return answer.json()


def deeds(found):
    return [entry["deed"] for entry in found["decisions"]]


async def labelled(site, **labels_of):
    for name, labels in labels_of.items():
        await site.api.patch(f"/api/nodes/{name}/labels", json={"labels": labels})


async def test_an_expression_is_asked_when_the_rollout_starts_and_not_again(site):
    await site.add_release(digits.release_dir(1))
    nodes = await site.nodes(3)
    await labelled(site, n0={"site": "oslo"}, n1={"site": "oslo", "spare": "yes"}, n2={"site": "x"})
    nodes[0].mute = True
    where = "site=oslo and not spare"
    rollout = await start(site, "digits@1.0.0", where=where, overdue_s=600)
    await site.until(lambda: nodes[0].wanted is not None)
    await labelled(site, n1={"spare": None}, n0={"site": None})
    await site.controller.rollouts.tick()
    nodes[0].mute = False
    nodes[0]._updates.put_nowait(nodes[0].wanted)
    done = await site.rollout(rollout, "done")
    assert [row["node"] for row in done["nodes"]] == ["n0"]
    assert done["where"] == where
    wrong = await site.api.post(
        "/api/rollouts", json={"release": "digits@1.0.0", "where": "site=oslo and and"}
    )
    assert (wrong.status_code, wrong.json()["error"]) == (
        400,
        "column 15: expected a label's key, found 'and'",
    )
    named = (await site.api.get("/api/nodes", params={"where": "site in (oslo, x)"})).json()
    assert [node["node"] for node in named] == ["n1", "n2"]
    sent = await site.api.post("/api/commands", json={"where": "site=x", "op": "ping"})
    assert (sent.status_code, list(sent.json()["nodes"])) == (201, ["n2"])
    empty = await site.api.post("/api/commands", json={"where": " ", "op": "ping"})
    assert empty.status_code == 400


async def test_a_frozen_fleet_gets_nothing_but_emergencies_until_it_is_thawed(quiet_site, tmp_path):
    async with quiet_site.controlled() as site:
        await site.add_release(digits.release_dir(1))
        nodes = await site.nodes(2)
        frozen = await ask(site, "/api/freeze", {"reason": "Christmas"})
        assert (frozen["on"], frozen["by"]) == (True, "anna")
        await ask(site, "/api/freeze", {}, status=409)
        rollout = await start(site, "digits@1.0.0")
        await site.until_answer(
            lambda: site.rollout(rollout, "running"), lambda found: found["frozen"]
        )
    # A controller that starts anew knows of it.
    async with quiet_site.controlled() as site:
        await site.until(lambda: all(site._is_known(node.name) for node in nodes))
        await site.controller.rollouts.tick()
        found = await site.rollout(rollout, "running")
        assert (found["wave"], found["counts"]["waiting"]) == (0, 2)
        await site.api.delete("/api/freeze", headers={"Shoal-Operator": "bert"})
        done = await site.rollout(rollout, "done")
        texts = [entry["text"] for entry in done["decisions"] if entry["deed"] == "frozen"]
        assert texts == ["the fleet is frozen: Christmas", "the freeze was ended"]
        await ask(site, "/api/freeze", {"reason": "again"})
        # Of another model: there is no delta to wait for.
        await site.add_release(requiring(tmp_path, "hotfix", ""))
        second = await start(site, "hotfix@1.0.0", overrides_freeze=True)
        await site.rollout(second, "done")
        assert all("hotfix" in node.models for node in nodes)
        await site.api.delete("/api/freeze")
        gone = await site.api.delete("/api/freeze")
        assert gone.status_code == 409


async def test_the_waves_behind_the_canary_wait_for_somebody_else_than_who_started_it(site):
    await site.add_release(digits.release_dir(1))
    await site.nodes(3)
    body = {"release": "digits@1.0.0", "first_wave": 1, "approval": "canary"}
    rollout = (await ask(site, "/api/rollouts", body, status=201))["id"]
    waits = await site.rollout(rollout, "awaiting")
    assert (waits["wave"], waits["counts"]["serving"]) == (1, 1)
    path = f"/api/rollouts/{rollout}/approve"
    refused = await ask(site, path, status=409)
    assert refused["error"] == f"anna started rollout {rollout}: a second person approves it"
    await ask(site, path, by="", status=409)
    await ask(site, path, by="bert")
    done = await site.rollout(rollout, "done")
    assert (done["by"], done["approved_by"]) == ("anna", "bert")
    approvals = [(e["text"], e["by"]) for e in done["decisions"] if e["deed"] == "approval"]
    assert approvals[-1] == ("approved by bert", "bert")


async def test_a_paused_rollout_stands_still_until_it_is_resumed(site):
    await site.add_release(digits.release_dir(1))
    nodes = await site.nodes(3)
    for node in nodes:
        node.mute = True
    rollout = await start(site, "digits@1.0.0", first_wave=1, overdue_s=600)
    await site.until(lambda: any(node.wanted and node.wanted.models for node in nodes))
    paused = await ask(site, f"/api/rollouts/{rollout}/pause", {"reason": "visitors"})
    assert (paused["status"], paused["reason"]) == ("paused", "visitors")
    await ask(site, f"/api/rollouts/{rollout}/pause", status=409)
    for node in nodes:
        node.mute = False
        if node.wanted is not None:
            node._updates.put_nowait(node.wanted)
    found = await site.until_answer(
        lambda: site.rollout(rollout, "paused"), lambda answer: answer["counts"]["serving"] == 1
    )
    assert found["wave"] == 1
    await ask(site, f"/api/rollouts/{rollout}/resume", by="bert")
    done = await site.rollout(rollout, "done")
    assert [entry["by"] for entry in done["decisions"] if entry["deed"] == "resumed"] == ["bert"]


def requiring(tmp_path, name, requires):
    """The first digits release under another name, with requirements."""
    directory = tmp_path / name
    directory.mkdir()
    for file in digits.release_dir(1).iterdir():
        if file.is_file():
            (directory / file.name).write_bytes(file.read_bytes())
    path = directory / "release.toml"
    text = path.read_text("utf-8").replace('name = "digits"', f'name = "{name}"', 1)
    path.write_text(f"{text}\n[requires]\n{requires}\n", encoding="utf-8")
    return directory


async def test_nodes_wait_for_what_a_release_requires_and_get_it_behind_that(site, tmp_path):
    await site.add_release(digits.release_dir(1))
    await site.add_release(requiring(tmp_path, "sorter", 'digits = ">=1"'))
    nodes = await site.nodes(2)
    second = await start(site, "sorter@1.0.0", priority=9)
    waits = await site.until_answer(
        lambda: site.rollout(second, "running"), lambda found: bool(found["waits"])
    )
    assert waits["waits"] == {"needs digits >=1.0.0, has none": 2}
    plan = await ask(site, "/api/rollouts/plan", {"release": "sorter@1.0.0"})
    assert (plan["requires"], plan["waves"]) == (["digits >=1.0.0"], [2])
    assert plan["waits"] == waits["waits"]
    first = await start(site, "digits@1.0.0", priority=0)
    await site.rollout(first, "done")
    done = await site.rollout(second, "done")
    assert all(node.models.keys() == {"digits", "sorter"} for node in nodes)
    assert "needs digits >=1.0.0" in done["decisions"][0]["text"]


async def test_releases_that_wait_for_each_other_are_refused(site, tmp_path):
    await site.add_release(requiring(tmp_path, "a", 'b = ">=1"'))
    await site.add_release(requiring(tmp_path, "b", 'a = ">=1"'))
    await site.nodes(1)
    refused = await ask(site, "/api/rollouts", {"release": "a@1.0.0"}, status=409)
    assert refused["error"] == "releases wait for each other: a@1.0.0 -> b@1.0.0 -> a@1.0.0"


async def test_a_window_that_is_closed_keeps_everybody_waiting(site):
    await site.add_release(digits.release_dir(1))
    await site.nodes(1)
    hour = time.gmtime(time.time() + 7200).tm_hour
    window = f"{hour:02}:00-{hour:02}:30"
    rollout = await start(site, "digits@1.0.0", window=window)
    found = await site.until_answer(
        lambda: site.rollout(rollout, "running"), lambda found: bool(found["waits"])
    )
    (why,) = found["waits"]
    assert why.startswith("its window opens ")
    assert why.endswith(" UTC")
    await ask(site, f"/api/rollouts/{rollout}/stop")
    wrong = {"release": "digits@1.0.0", "window": "at night"}
    assert "expected times" in (await ask(site, "/api/rollouts", wrong, status=400))["error"]


async def test_a_rollout_that_is_done_goes_back(site):
    await site.add_release(digits.release_dir(1))
    (node,) = await site.nodes(1)
    rollout = await start(site, "digits@1.0.0")
    await site.rollout(rollout, "done")
    assert serves(node, "1.0.0")
    found = await ask(site, f"/api/rollouts/{rollout}/back")
    assert (found["status"], found["counts"]["recalled"]) == ("stopped", 1)
    assert found["decisions"][-1]["text"] == "stopped: by anna (nodes that serve it go back)"
    # It had none before.
    await site.until(lambda: not node.models)
    unknown = await site.api.post("/api/rollouts/9/back")
    assert unknown.status_code == 404


async def test_every_decision_is_explained_in_order_with_its_figures(site, monkeypatch):
    monkeypatch.setenv("SHOAL_OPERATOR", "an na")
    await site.add_release(digits.release_dir(1))
    await site.nodes(2)
    code, out, _ = await shoal(
        site,
        "rollout",
        "start",
        "digits@1.0.0",
        "--first-wave",
        "1",
        "--where",
        "node in (n0, n1)",
        "--wait",
    )
    assert code == 0
    code, out, _ = await shoal(site, "rollout", "explain", "1")
    rows = [line.split("\t") for line in out.splitlines()[2:]]
    assert [row[1] for row in rows] == [
        *("started", "wave", "leases", "wave", "leases", "done"),
    ]
    assert rows[0][2] == "started: digits@1.0.0 to 2 nodes, where node in (n0, n1)"
    assert rows[0][4] == "an_na"
    assert rows[1][2] == "wave 1 opens with 1 leases: the canary of 2 nodes"
    assert "1 of 1 have answered, 0 of 1 failed" in rows[3][2]
    assert "started=1 failed=0" in rows[3][3]
    found = (await site.api.get("/api/rollouts/1")).json()
    assert deeds(found) == [row[1] for row in rows]
    code, out, _ = await shoal(site, "rollout", "plan", "digits@1.0.0")
    assert "waves when nothing fails: none, all serve it" in out
    code, out, _ = await shoal(site, "freeze", "on", "--until", "12h", "--reason", "holidays")
    assert out.startswith("the fleet is frozen until ")
    assert out.rstrip().endswith(" by an_na: holidays")
    assert (await shoal(site, "freeze", "off"))[1] == "the fleet is not frozen\n"
    code, out, _ = await shoal(site, "nodes", "--where", "node=n1", "--json")
    assert '"node": "n1"' in out
    assert '"node": "n0"' not in out
    code, out, _ = await shoal(site, "send", "--where", "node=n1", "ping")
    assert code == 0


def test_a_moment_is_written_as_such_or_as_a_length():
    assert parse_until("12h", now_s=1000.0) == 44_200_000
    assert parse_until("2026-12-27T08:00+00:00", now_s=0) == 1_798_358_400_000
    with pytest.raises(UsageError, match="is no moment"):
        parse_until("soon", now_s=0)


async def test_a_second_rollout_gets_a_node_when_the_first_is_through_with_it(site, tmp_path):
    await site.add_release(digits.release_dir(1))
    await site.add_release(requiring(tmp_path, "sorter", ""))
    (node,) = await site.nodes(1)
    node.mute = True
    first = await start(site, "digits@1.0.0", overdue_s=600)
    await site.until(lambda: node.wanted is not None and bool(node.wanted.models))
    second = await start(site, "sorter@1.0.0", priority=9)
    found = await site.until_answer(
        lambda: site.rollout(second, "running"), lambda found: bool(found["waits"])
    )
    assert found["waits"] == {f"rollout {first} waits for it": 1}
    node.mute = False
    node._updates.put_nowait(node.wanted)
    await asyncio.gather(site.rollout(first, "done"), site.rollout(second, "done"))
