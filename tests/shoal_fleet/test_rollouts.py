import asyncio

from tests.support.node_simulator import NodeSimulator

from shoal_broker.session import Session, SessionConfig
from shoal_contract.messages import Phase
from shoal_contract.topics import Topics
from shoal_fleet import digits


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
    done = await site.rollout(first, "done", timeout_s=15)
    assert done["counts"]["serving"] == 3
    assert [row["wave"] for row in done["nodes"]] == [1, 2, 2]
    assert all(serves(node, "1.0.0") for node in nodes)
    second = await start(site, two["title"], first_wave=3)
    done = await site.rollout(second, "done", timeout_s=15)
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
    rollout = await start(site, "digits@1.0.0", first_wave=1)
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


async def test_chunks_that_were_lost_are_published_again(site):
    await site.add_release(digits.release_dir(1))
    (node,) = await site.nodes(1)
    node.lose_chunks = 2
    rollout = await start(site, "digits@1.0.0")
    await site.rollout(rollout, "done", timeout_s=15)
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
