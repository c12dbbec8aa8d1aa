from shoal_fleet import digits
from shoal_fleet.alarms import Alarms
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.node_csv import parse
from shoal_fleet.registry import Registry
from shoal_fleet.tables import FleetBase

LIST = "node,site,hw,alias\nn0,oslo,rpi4,Press 4\nn7,bergen,,\n"


async def imported(site, text):
    return await site.api.post("/api/nodes/import", content=text.encode())


async def test_a_list_labels_nodes_that_are_here_and_announces_those_that_are_not(quiet_site):
    async with quiet_site.controlled() as site:
        await site.nodes(1)
        answer = await imported(site, LIST)
        assert answer.json() == {"rows": 2, "new": 1, "changed": 1}
        assert dict(site.controller.registry.labels("n0")) == {"site": "oslo", "hw": "rpi4"}
        new = (await site.api.get("/api/nodes/n7")).json()
        assert (new["first_seen_ms"], new["last_seen_ms"], new["online"]) == (0, 0, False)
        assert (await imported(site, LIST)).json() == {"rows": 2, "new": 0, "changed": 0}
    async with quiet_site.controlled() as site:
        assert dict(site.controller.registry.labels("n7")) == {"site": "bergen"}
        assert (await site.api.get("/api/nodes/Press 4")).json()["node"] == "n0"
        async with site.node("n7"):
            seen = (await site.api.get("/api/nodes/n7")).json()
            assert seen["first_seen_ms"] > 0
            assert seen["labels"] == {"site": "bergen"}


async def test_nothing_of_a_list_with_a_mistake_is_taken_in(site):
    await site.nodes(1)
    await site.api.patch("/api/nodes/n0/aliases", json={"add": ["Press 9"]})
    for text, said in (
        (LIST + "n8,os lo,,\n", "line 4, column site"),
        (LIST + "n8,,,Press 9\n", "line 4, column alias: 'Press 9' is a name of n0"),
        (LIST + "n8,,,n7\n", "line 4, column alias: 'n7' is a node itself"),
    ):
        refused = await imported(site, text)
        assert refused.status_code == 400
        assert refused.json()["error"].startswith(said), refused.text
    assert set(site.controller.registry.nodes) == {"n0"}
    assert not site.controller.registry.labels("n0")


async def test_an_alias_names_its_node_in_every_command(site):
    (node,) = await site.nodes(1)
    answer = await site.api.patch("/api/nodes/n0/aliases", json={"add": ["Press 4", "old-4"]})
    assert answer.json()["aliases"] == ["Press 4", "old-4"]
    sent = await site.api.post("/api/commands", json={"node": "Press 4", "op": "ping"})
    assert sent.status_code == 201, sent.text
    await site.until(lambda: bool(node.done))
    labelled = await site.api.patch("/api/nodes/old-4/labels", json={"labels": {"site": "oslo"}})
    assert labelled.json()["node"] == "n0"
    gone = await site.api.patch("/api/nodes/n0/aliases", json={"remove": ["old-4"]})
    assert gone.json()["aliases"] == ["Press 4"]
    assert (await site.api.get("/api/nodes/old-4")).status_code == 404
    taken = await site.api.patch("/api/nodes/n0/aliases", json={"add": ["n0"]})
    assert taken.status_code == 400


async def test_a_board_that_is_only_on_a_list_raises_no_alarm_until_it_was_here(tmp_path):
    async with Database.open(tmp_path / "fleet.db", FleetBase) as database:
        registry = await Registry.load(database)
        await registry.take_in(parse(b"node\nn1\n"))
        alarms = Alarms(registry, silent_after_s=10, webhook_url=None)
        alarms.look(now_ms() + 3_600_000)
        assert alarms.silent == set()
        await registry.heard("n1", retained=False)
        alarms.look(now_ms() + 3_600_000)
        assert alarms.silent == {"n1"}


async def test_a_new_board_under_the_name_of_a_dead_one_gets_its_labels_and_its_model(site):
    await site.add_release(digits.release_dir(1))
    async with site.node("n0") as old:
        await site.api.patch("/api/nodes/n0/labels", json={"labels": {"site": "oslo"}})
        await site.api.put("/api/nodes/n0/models/digits", json={"release": "digits@1.0.0"})
        await site.until(lambda: "digits" in old.models)
    answer = await site.api.post("/api/nodes/n0/replace", json={})
    assert answer.json() == {"node": "n0", "certificates": 0, "token": None}
    view = (await site.api.get("/api/nodes/n0")).json()
    assert view["reported"] is None
    assert not view["online"]
    (site.folder / "n0.db").unlink(missing_ok=True)
    async with site.node("n0") as new:
        await site.until(lambda: "digits" in new.models)
        assert dict(site.controller.registry.labels("n0")) == {"site": "oslo"}


async def test_what_runs_where_is_one_table(site):
    await site.add_release(digits.release_dir(1))
    first, _second = await site.nodes(2)
    await site.api.patch("/api/nodes/n0/labels", json={"labels": {"site": "oslo"}})
    first.mute = True
    await site.api.put("/api/nodes/n0/models/digits", json={"release": "digits@1.0.0"})
    await site.until(lambda: bool(first.wanted and first.wanted.models))

    async def table():
        return (await site.api.get("/api/running")).json()

    (row,) = await table()
    assert (row["node"], row["version"], row["wanted"]) == ("n0", "", "digits@1.0.0")
    assert not row["as_wanted"]
    first.mute = False
    first._updates.put_nowait(first.wanted)
    (row,) = await site.until_answer(table, lambda rows: rows[0]["as_wanted"])
    assert (row["site"], row["version"], row["phase"]) == ("oslo", "1.0.0", "serving")
    assert (await site.api.get("/api/running", params={"group": "site=bergen"})).json() == []


async def test_a_site_that_goes_silent_is_one_alarm_and_so_is_its_return(tmp_path, monkeypatch):
    told = []
    async with Database.open(tmp_path / "fleet.db", FleetBase) as database:
        registry = await Registry.load(database)
        alarms = Alarms(registry, silent_after_s=10, webhook_url="http://127.0.0.1:9/")
        monkeypatch.setattr(
            alarms, "tell", lambda event, node, **facts: told.append((event, facts))
        )
        for number in range(40):
            await registry.heard(f"n{number}", retained=False)
        alarms.look(now_ms() + 60_000)
        assert len(alarms.silent) == 40
        ((event, facts),) = told
        assert (event, facts["nodes"], len(facts["first"])) == ("nodes are silent", 40, 10)
        alarms.look(now_ms() + 120_000)
        assert len(told) == 1
        for number in range(40):
            registry.last_seen_ms[f"n{number}"] = now_ms() + 121_000
        alarms.look(now_ms() + 121_000)
        assert [event for event, _ in told] == ["nodes are silent", "nodes are back"]
        assert alarms.silent == set()
