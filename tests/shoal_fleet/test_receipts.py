"""What a broker that forgets what it acknowledged cannot lose."""

from contextlib import AsyncExitStack

import pytest
from tests.support.node_simulator import NodeSimulator

from shoal_broker.server import Broker, BrokerConfig
from shoal_contract.messages import CommandUpdate, State


@pytest.fixture
async def reboot(quiet_site):
    """Kill the broker of the site, if there is one, and start an empty one."""
    quiet_site.broker_port = 0
    async with AsyncExitStack() as running:
        broker: Broker | None = None

        async def again(*, meanwhile=None) -> None:
            nonlocal broker
            if broker is not None:
                broker.abort()
                await running.aclose()
                if meanwhile is not None:
                    await meanwhile()
            config = BrokerConfig(host="127.0.0.1", port=quiet_site.broker_port)
            broker = await running.enter_async_context(Broker.open(config))
            quiet_site.broker_port = broker.port

        yield again


async def test_a_reading_is_forgotten_by_the_node_once_the_controller_has_committed_it(site):
    (node,) = await site.nodes(1)
    for seq in range(20):
        await node.read(seq)
    await site.until(lambda: len(node.session.outbox) == 0)
    assert site.controller.readings.stats.stored == 20
    assert node.session.outbox.stats.received == 20
    await site.until(lambda: site.controller.receipts.given == 20)


async def test_readings_that_a_dead_broker_had_acknowledged_come_again(
    tmp_path, quiet_site, reboot
):
    await reboot()
    async with quiet_site.controlled():
        """Its session stays at the broker."""
    async with NodeSimulator.open("n0", quiet_site.broker_port, tmp_path) as node:
        for seq in range(10):
            await node.read(seq)
        await node.session.outbox.wait_sent()
        assert len(node.session.outbox) == 10
        await reboot()
        async with quiet_site.controlled() as site:
            await site.until(lambda: site.controller.readings.stats.stored == 10)
            await site.until(lambda: len(node.session.outbox) == 0)
            summary = (await site.api.get("/api/readings/summary")).json()
    assert (summary["total"], summary["missing"]) == (10, 0)


async def test_commands_that_a_dead_broker_had_acknowledged_come_again_in_their_order(
    tmp_path, quiet_site, reboot
):
    await reboot()
    async with quiet_site.controlled() as site:
        sent: list[str] = []

        async def send() -> None:
            answer = await site.api.post("/api/commands", json={"node": "n0", "op": "ping"})
            sent.append(answer.json()["id"])

        async with site.node("n0"):
            """The node is known, and away."""
        for _ in range(3):
            await send()
        await site.controller.session.outbox.wait_sent()
        await reboot(meanwhile=send)
        async with NodeSimulator.open("n0", quiet_site.broker_port, tmp_path) as node:
            for command in sent:
                answer = await site.api.get(f"/api/commands/{command}", params={"wait_s": 8})
                assert answer.json()["state"] == "succeeded"
        assert [done.hex() for done in node.done] == sent
    assert len(site.controller.session.outbox) == 0


async def test_a_final_answer_that_a_dead_broker_had_acknowledged_is_asked_for(site):
    (node,) = await site.nodes(1, mute=True)
    command = (await site.api.post("/api/commands", json={"node": "n0", "op": "ping"})).json()
    await site.until(lambda: len(node.commands) == 1)
    # The answer was given, and is nowhere.
    command_id = bytes.fromhex(command["id"])
    node.answers[command_id] = CommandUpdate(command_id, State.SUCCEEDED, 1)
    await site.controller.orders.hurry("n0")
    answer = await site.api.get(f"/api/commands/{command['id']}", params={"wait_s": 8})
    assert answer.json()["state"] == "succeeded"
    assert len(node.commands) == 2
    assert node.done == []
