"""mosquitto_pub commands a node and mosquitto_sub reads it: real programs on two real brokers."""

import asyncio
import contextlib
import json
import shutil
import sys

import pytest
from tests.support.mosquitto import Mosquitto
from tests.support.node_simulator import NodeSimulator
from tests.support.programs import output_of, running

from shoal_broker.server import Broker, BrokerConfig

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(60),
    pytest.mark.skipif(
        Mosquitto.found() is None or shutil.which("mosquitto_pub") is None,
        reason="mosquitto is not installed (apt-get install mosquitto mosquitto-clients)",
    ),
]

CONFIG = """
[broker]
port = {port}

[listen]
port = 0

[[door]]
user = "homeassistant"
ops = ["ping"]
nodes = "site=oslo"
telemetry = true
"""


@contextlib.asynccontextmanager
async def embedded(_folder):
    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        yield broker.port


@contextlib.asynccontextmanager
async def mosquitto(folder):
    async with Mosquitto.open(folder) as broker:
        yield broker.port


class Watcher:
    """A mosquitto_sub; `said` is what it has printed: (topic, JSON or None)."""

    def __init__(self):
        self.said = []
        self.changed = asyncio.Event()

    async def follow(self, stream):
        while line := await stream.readline():
            topic, _, payload = line.decode().rstrip("\n").partition(" ")
            self.said.append((topic, json.loads(payload) if payload else None))
            self.changed.set()

    def heard(self, topic):
        return [said for where, said in self.said if where == topic]

    async def until(self, holds):
        async with asyncio.timeout(15):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def watching(port, nodes):
    topics = [word for end in ("r", "p", "s", "t/+") for word in ("-t", f"{nodes}/{end}")]
    process = await asyncio.create_subprocess_exec(
        "mosquitto_sub", "-V", "5", "-p", str(port), "-q", "1", *topics, "-F", "%t %p",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    watcher = Watcher()
    following = asyncio.create_task(watcher.follow(process.stdout))
    try:
        yield watcher
    finally:
        process.terminate()
        await process.wait()
        await following


async def publish(port, topic, payload, *options):
    process = await asyncio.create_subprocess_exec(
        "mosquitto_pub", "-V", "5", "-p", str(port), "-q", "1", "-t", topic, "-m", payload, *options
    )
    async with asyncio.timeout(10):
        assert await process.wait() == 0


@contextlib.asynccontextmanager
async def site(broker, folder):
    """Broker, controller with a door, and two nodes of which one is in Oslo."""
    config, state = folder / "controller.toml", folder / "state"
    async with broker(folder) as port:
        config.write_text(CONFIG.format(port=port))
        async with (
            running(
                "shoal_fleet", "serve", "--config", config, "--state-dir", state,
                log=folder / "log", ready_file=folder / "ready",
            ) as controller,
            NodeSimulator.open("press-4", port, folder) as node,
            NodeSimulator.open("press-5", port, folder),
        ):  # fmt: skip

            async def labelled() -> bool:
                code, _, _ = await output_of(
                    *("shoal_fleet", "--state-dir", state, "nodes", "label", "press-4", "site=oslo")
                )
                return code == 0

            async with asyncio.timeout(20):
                # The controller may not have heard of the node yet.
                while not await labelled():
                    pass
            yield port, controller, node


@pytest.mark.parametrize("broker", [embedded, mosquitto])
async def test_mosquitto_pub_commands_a_node_and_mosquitto_sub_reads_it(broker, tmp_path):
    mine = "shoal/j/homeassistant/n/press-4"
    async with (
        site(broker, tmp_path) as (port, controller, node),
        watching(port, "shoal/j/homeassistant/n/+") as watcher,
    ):
        # Retained: who comes late knows at once.
        await watcher.until(lambda: watcher.heard(f"{mine}/p") and watcher.heard(f"{mine}/s"))
        assert watcher.heard(f"{mine}/p")[-1]["online"] is True

        ping = json.dumps({"op": "ping", "args": {"n": 1}, "id": "morning-1"})
        await publish(port, f"{mine}/c", ping)
        answers = f"{mine}/r"
        await watcher.until(lambda: len(watcher.heard(answers)) == 4)
        said = watcher.heard(answers)
        assert [one["state"] for one in said] == ["sent", "accepted", "running", "succeeded"]
        assert {one["id"] for one in said} == {"morning-1"}
        assert said[-1]["result"] == {"pong": {"n": 1}}

        await publish(port, f"{mine}/c", ping)
        await watcher.until(lambda: len(watcher.heard(answers)) == 5)
        assert watcher.heard(answers)[-1] == said[-1]
        assert len(node.commands) == 1

        await node.read(7, label="3")
        await watcher.until(lambda: bool(watcher.heard(f"{mine}/t/digits")))
        (reading,) = watcher.heard(f"{mine}/t/digits")
        assert (reading["seq"], reading["label"]) == (7, "3")

        for node_name, payload, reason in (
            ("press-4", '{"op": "device.set"}', "operations"),
            ("press-5", '{"op": "ping"}', "nodes"),
            ("press-4", '{"op": "ping"', "not JSON"),
            ("press-4", '{"op": "ping", "args": 5}', "args"),
        ):
            topic = f"shoal/j/homeassistant/n/{node_name}"
            before = len(watcher.heard(f"{topic}/r"))
            await publish(port, f"{topic}/c", payload)
            await watcher.until(
                lambda topic=topic, before=before: len(watcher.heard(f"{topic}/r")) > before
            )
            refused = watcher.heard(f"{topic}/r")[-1]
            assert (refused["state"], refused["command"]) == ("refused", None)
            assert reason in refused["reason"]

        # Nothing of the node that is out of scope, but the refusal.
        outside = {topic for topic, _ in watcher.said if "/press-5/" in topic}
        assert outside == {"shoal/j/homeassistant/n/press-5/r"}
        assert len(node.commands) == 1
        assert controller.process.returncode is None
        assert "Traceback" not in controller.log
        assert "device.set" not in controller.log


async def test_shoal_decode_reads_what_mosquitto_sub_prints(tmp_path):
    async with site(embedded, tmp_path) as (port, _, _):
        process = await asyncio.create_subprocess_shell(
            f"mosquitto_sub -V 5 -p {port} -t 'shoal/#' -F '%t %x' -C 4 -W 10"
            f" | {sys.executable} -m shoal_fleet decode",
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(20):
            out, _ = await process.communicate()
    found = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 0
    assert len(found) == 4
    assert {"Presence", "Reported"} <= {one.get("kind") for one in found}
