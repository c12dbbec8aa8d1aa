import asyncio
import contextlib

from tests.shoal_fleet.conftest import Site
from tests.support.node_simulator import NodeSimulator

from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.session import Session, SessionConfig
from shoal_contract.messages import BlobRef, DeltaOffer, ModelState, Phase
from shoal_contract.topics import Topics
from shoal_fleet import digits, rollout_driver


async def start(site, release, **body):
    answer = await site.api.post("/api/rollouts", json={"release": release, **body})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def serves(node: NodeSimulator, version: str) -> bool:
    state = node.models.get("digits")
    return state is not None and state.version == version and state.phase is Phase.SERVING


async def retained_chunks(site) -> int:
    """How many chunks a client finds that connects now."""
    topics, found = Topics(), 0

    async def count(inbound):
        nonlocal found
        found += bool(inbound.retain and inbound.payload)

    config = SessionConfig(host="127.0.0.1", port=site.broker_port, client_id="looker")
    async with Session.open(config) as session:
        await session.wait_connected(5)
        await session.subscribe(f"{topics.root}/b/+/+", count)
        # Retained messages come before what is published behind the subscription.
        marker = asyncio.Event()

        async def seen(_inbound):
            marker.set()

        await session.subscribe("marker", seen)
        await session.publish("marker", b"x", durable=False)
        async with asyncio.timeout(5):
            await marker.wait()
    return found


async def test_a_release_goes_out_in_waves_and_the_next_one_as_a_delta(site):
    await site.add_release(digits.release_dir(1))
    two = await site.add_release(digits.release_dir(2))
    nodes = await site.nodes(3)
    first = await start(site, "digits@1.0.0", first_wave=1)
    done = await site.rollout(first, "done", timeout_s=45)
    assert done["counts"]["serving"] == 3
    assert [row["wave"] for row in done["nodes"]] == [1, 2, 2]
    assert all(serves(node, "1.0.0") for node in nodes)
    second = await start(site, two["title"], first_wave=3)
    done = await site.rollout(second, "done", timeout_s=45)
    assert all(serves(node, two["version"]) for node in nodes)
    (delta,) = done["deltas"]
    assert delta["size_bytes"] < 0.9 * done["full_bytes"]
    model = bytes.fromhex(two["model_file"])
    for node in nodes:
        # The model was built from the delta, not fetched.
        assert model not in node.received_bytes
        assert delta["size_bytes"] in node.received_bytes.values()
    await site.until_answer(lambda: retained_chunks(site), lambda count: count == 0)


async def test_a_failure_holds_it_and_resuming_goes_on_without_that_node(site):
    release = await site.add_release(digits.release_dir(1))
    nodes = await site.nodes(3)
    for node in nodes:
        node.fails[bytes.fromhex(release["id"])] = "golden outputs differ"
    rollout = await start(site, "digits@1.0.0", first_wave=1, hold_on_any=True)
    held = await site.rollout(rollout, "held")
    (failed,) = [row for row in held["nodes"] if row["standing"] == "failed"]
    assert failed["reason"] == "golden outputs differ"
    assert held["counts"]["waiting"] == 2
    for node in nodes:
        node.fails.clear()
    answer = await site.api.post(f"/api/rollouts/{rollout}/resume")
    assert answer.status_code == 200
    done = await site.rollout(rollout, "done")
    assert (done["counts"]["serving"], done["counts"]["failed"]) == (2, 1)
    assert any("held in wave 1" in entry["text"] for entry in done["decisions"])


async def test_a_stopped_rollout_recalls_the_node_that_has_not_answered(site):
    await site.add_release(digits.release_dir(1))
    (node,) = await site.nodes(1, mute=True)
    rollout = await start(site, "digits@1.0.0")
    await site.until(lambda: node.wanted is not None and bool(node.wanted.models))
    # Manifest, release.toml, golden file and model: each is one chunk.
    await site.until_answer(lambda: retained_chunks(site), lambda count: count == 4)
    conflict = await site.api.post("/api/rollouts", json={"release": "digits@1.0.0"})
    assert conflict.status_code == 409
    claimed = await site.api.put("/api/nodes/n0/models/digits", json={"release": None})
    assert claimed.status_code == 409
    stopped = (await site.api.post(f"/api/rollouts/{rollout}/stop", json={"back": False})).json()
    assert stopped["status"] == "stopped"
    await site.until(lambda: node.wanted is not None and not node.wanted.models)
    again = await site.api.post(f"/api/rollouts/{rollout}/stop")
    assert again.status_code == 409


async def test_a_node_that_was_offline_gets_it_when_it_is_back(site):
    await site.add_release(digits.release_dir(1))
    async with site.node("late"):
        pass
    await site.nodes(1)
    await site.until(lambda: not site.controller.registry.nodes["late"].online)
    rollout = await start(site, "digits@1.0.0")
    await site.until(lambda: "n0" in site.controller.registry.nodes)
    async with site.node("late") as late:
        done = await site.rollout(rollout, "done")
        assert done["counts"]["serving"] == 2
        assert serves(late, "1.0.0")


async def test_only_the_group_gets_it(site):
    await site.add_release(digits.release_dir(1))
    nodes = await site.nodes(2)
    await site.api.patch("/api/nodes/n1/labels", json={"labels": {"group": "canary"}})
    rollout = await start(site, "digits@1.0.0", group="canary")
    done = await site.rollout(rollout, "done")
    assert [row["node"] for row in done["nodes"]] == ["n1"]
    assert not nodes[0].models
    empty = await site.api.post(
        "/api/rollouts", json={"release": "digits@1.0.0", "group": "nobody"}
    )
    assert (empty.status_code, empty.json()["error"]) == (400, "no node is in the group 'nobody'")


async def test_a_rollout_goes_on_after_a_restart_of_the_controller(quiet_site):
    async with quiet_site.controlled() as site:
        await site.add_release(digits.release_dir(1))
        (node,) = await site.nodes(1)
        node.lose_chunks = 1_000_000
        rollout = await start(site, "digits@1.0.0")
        await site.until(lambda: "digits" in node.models)
    async with quiet_site.controlled() as site:
        node.lose_chunks = 0
        done = await site.rollout(rollout, "done")
        assert done["counts"]["serving"] == 1


async def test_the_time_in_which_nobody_could_hear_the_nodes_does_not_count_against_them(
    quiet_site, monkeypatch
):
    """The controller is down for longer than a node may take, and the node does its work meanwhile."""
    async with quiet_site.controlled() as site:
        await site.add_release(digits.release_dir(1))
        nodes = await site.nodes(3, mute=True)
        rollout = await start(site, "digits@1.0.0", overdue_s=600)
        await site.until(lambda: all(node.wanted is not None for node in nodes))
    later_ms = rollout_driver.now_ms() + 3_600_000
    monkeypatch.setattr(rollout_driver, "now_ms", lambda: later_ms)
    async with quiet_site.controlled() as site:
        for node in nodes:
            node.mute = False
            node._updates.put_nowait(node.wanted)
        found = await site.rollout(rollout, "done", "held", "stopped")
        assert (found["status"], found["counts"]["serving"]) == ("done", 3)


async def test_a_node_that_joins_and_failed_this_release_before_is_not_offered_it(site):
    await site.add_release(digits.release_dir(1))
    nodes = await site.nodes(3)
    release = bytes.fromhex((await site.api.get("/api/releases")).json()[0]["id"])
    nodes[2].fails[release] = "golden outputs differ"
    await site.api.put("/api/nodes/n2/models/digits", json={"release": "digits@1.0.0"})
    await site.until(lambda: "digits" in nodes[2].models)
    await site.until(
        lambda: (
            (state := site.controller.registry.nodes["n2"].model("digits")) is not None
            and state.phase is Phase.FAILED
        )
    )
    nodes[0].mute = True
    await site.api.patch("/api/nodes/n0/labels", json={"labels": {"group": "a"}})
    rollout = await start(site, "digits@1.0.0", group="a", overdue_s=600)
    await site.until(lambda: nodes[0].wanted is not None)
    for node in nodes[1:]:
        await site.api.patch(f"/api/nodes/{node.name}/labels", json={"labels": {"group": "a"}})
    found = await site.until_answer(
        lambda: site.rollout(rollout, "running", "held", "stopped", "done"),
        # Joining and being excluded are two commits, both before anybody is offered anything.
        lambda answer: (
            {"node": "n2", "standing": "excluded"}
            in [{key: row[key] for key in ("node", "standing")} for row in answer["nodes"]]
        ),
    )
    standings = {row["node"]: row["standing"] for row in found["nodes"]}
    assert (found["status"], standings["n2"]) == ("running", "excluded")


async def test_a_wish_that_waited_for_a_delta_does_not_cross_a_rollout(site, monkeypatch):
    await site.add_release(digits.release_dir(1))
    await site.add_release(digits.release_dir(2))
    (node,) = await site.nodes(1)
    await site.api.put("/api/nodes/n0/models/digits", json={"release": "digits@1.0.0"})
    await site.until(lambda: serves(node, "1.0.0"))
    await site.until(
        lambda: bool(getattr(site.controller.registry.nodes["n0"].model("digits"), "release", b""))
    )
    node.mute = True
    deltas, building, built = site.controller.deltas, asyncio.Event(), asyncio.Event()
    ensure = type(deltas).ensure

    async def slow(self, bases, target):
        monkeypatch.setattr(type(deltas), "ensure", ensure)
        building.set()
        await built.wait()

    monkeypatch.setattr(type(deltas), "ensure", slow)
    two = (await site.api.get("/api/releases")).json()[0]
    async with asyncio.TaskGroup() as tasks:
        wish = tasks.create_task(
            site.api.put("/api/nodes/n0/models/digits", json={"release": two["title"]})
        )
        await building.wait()
        rollout = await start(site, "digits@1.0.0")
        await site.rollout(rollout, "done")
        second = await start(site, two["title"])
        await site.until(lambda: site.controller.rollouts.claims("n0", "digits") == second)
        built.set()
    assert wish.result().status_code == 409


async def test_a_node_that_left_the_group_is_not_offered_the_release(site):
    await site.add_release(digits.release_dir(1))
    nodes = await site.nodes(2)
    for node in nodes:
        await site.api.patch(f"/api/nodes/{node.name}/labels", json={"labels": {"group": "a"}})
    nodes[0].mute = nodes[1].mute = True
    rollout = await start(site, "digits@1.0.0", group="a", first_wave=1, overdue_s=600)
    await site.until(lambda: any(node.wanted and node.wanted.models for node in nodes))
    first, other = sorted(nodes, key=lambda node: not (node.wanted and node.wanted.models))
    await site.api.patch(f"/api/nodes/{other.name}/labels", json={"labels": {"group": None}})
    first.mute = False
    first._updates.put_nowait(first.wanted)
    found = await site.until_answer(
        lambda: site.rollout(rollout, "running", "done"), lambda answer: answer["wave"] == 2
    )
    await site.controller.rollouts.tick()
    assert other.wanted is None or other.wanted.models == []
    assert found["counts"]["offered"] == 0


async def test_what_never_existed_is_not_published_whoever_asks_for_it(site):
    release = await site.add_release(digits.release_dir(1))
    publisher = site.controller.publisher
    model = bytes.fromhex(release["model_file"])
    await publisher.ask(b"?" * 32, range(60_000))
    await publisher.ask(model, [-1, 1 << 80, *range(60_000)])
    assert list(publisher._repairs._asked) == [(model, 0)]


async def test_a_wanted_state_with_more_deltas_than_fit_is_said_with_fewer(site, monkeypatch):
    release = await site.add_release(digits.release_dir(1))
    (node,) = await site.nodes(1)
    model = bytes.fromhex(release["model_file"])
    chunks = 2000
    huge = BlobRef(b"d" * 32, chunks << 16, 1 << 16, bytes(chunks * 16))
    offers = [DeltaOffer(bytes([base]) * 32, model, huge) for base in range(8)]

    async def many(self, target):
        return offers

    monkeypatch.setattr(type(site.controller.deltas), "offers", many)
    node.models["digits"] = ModelState(
        "digits", b"r" * 32, "0.9.0", b"r" * 32, Phase.SERVING, model_file=offers[3].base
    )
    await node.report()
    known = site.controller.registry.nodes
    await site.until(lambda: known["n0"].model("digits") is not None)
    node.mute = True
    await site.api.put("/api/nodes/n0/models/digits", json={"release": "digits@1.0.0"})
    await site.until(lambda: node.wanted is not None and bool(node.wanted.models))
    assert [offer.base for offer in node.wanted.models[0].deltas] == [offers[3].base]


async def test_chunks_that_were_lost_are_published_again(site):
    await site.add_release(digits.release_dir(1))
    (node,) = await site.nodes(1)
    node.lose_chunks = 2
    rollout = await start(site, "digits@1.0.0")
    await site.rollout(rollout, "done", timeout_s=45)
    assert site.controller.publisher.resent_chunks >= 1


async def test_a_model_is_wanted_directly_and_taken_away_again(site):
    release = await site.add_release(digits.release_dir(1))
    (node,) = await site.nodes(1)
    path = "/api/nodes/n0/models/digits"
    wanted = (await site.api.put(path, json={"release": "digits@1.0.0"})).json()["wanted"]
    assert wanted == {"digits": release["id"]}
    await site.until(lambda: serves(node, "1.0.0"))
    await site.api.put(path, json={"release": None})
    await site.until(lambda: not node.models)
    wrong = await site.api.put("/api/nodes/n0/models/other", json={"release": "digits@1.0.0"})
    assert wrong.json()["error"] == "digits@1.0.0 is not a release of other"


async def test_a_broker_that_forgot_everything_is_told_again(quiet_site, broker):
    async with quiet_site.controlled() as site:
        await site.add_release(digits.release_dir(1))
        async with site.node("n0", mute=True) as node:
            await site.api.put("/api/nodes/n0/models/digits", json={"release": "digits@1.0.0"})
            await site.until(lambda: node.wanted is not None)
            revision = node.wanted.revision
            node.wanted = None
            await site.controller.inbox.connected(site.controller.session, False)
            await site.until(lambda: node.wanted is not None)
            assert node.wanted.revision == revision


async def test_a_broker_that_takes_less_has_everything_cut_anew_and_said_anew(tmp_path):
    """The controller stays; the broker is replaced by one that takes packets of 4 KiB at most."""
    async with contextlib.AsyncExitStack() as stack:
        first = contextlib.AsyncExitStack()
        port = (
            await first.enter_async_context(Broker.open(BrokerConfig(host="127.0.0.1", port=0)))
        ).port
        site = await stack.enter_async_context(Site(port, tmp_path).controlled())
        await site.add_release(digits.release_dir(1))
        node = await stack.enter_async_context(site.node("n0", mute=True))
        await site.api.put("/api/nodes/n0/models/digits", json={"release": "digits@1.0.0"})
        await site.until(lambda: node.wanted is not None and bool(node.wanted.models))
        await site.until_answer(lambda: retained_chunks(site), lambda count: count == 4)
        revision = node.wanted.revision
        await first.aclose()
        await stack.enter_async_context(
            Broker.open(BrokerConfig(host="127.0.0.1", port=port, max_packet_bytes=4096))
        )

        def cuts():
            return [ref for ref in node.wanted.models[0].files if ref.chunk_bytes <= 4096]

        await site.until(lambda: bool(cuts()), timeout_s=45)
        assert node.wanted.revision > revision
        (model,) = cuts()
        assert (model.size_bytes, model.chunk_bytes) == (34_627, 3 * 1024)
        # 12 chunks of the model and one of each of the others.
        await site.until_answer(lambda: retained_chunks(site), lambda count: count == 15)
        node.mute = False
        node._updates.put_nowait(node.wanted)
        await site.until(lambda: serves(node, "1.0.0"), timeout_s=45)
        await site.until_answer(lambda: retained_chunks(site), lambda count: count == 0)
