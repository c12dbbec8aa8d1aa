"""Pipelines that come with the wanted state: what follows from it, and that what ran is kept."""

import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager

import pytest
from PIL import Image
from tests.shoal_agent.until import until
from tests.support.board import NODE, Board, short_folder
from tests.support.hub import Hub, Release
from tests.support.pipelined import pipelined

from shoal_agent import app
from shoal_agent.config import load
from shoal_agent.pipelines.fleet import FleetPipelines
from shoal_broker.logs import RecentLines
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.store import Store
from shoal_contract import envelope, messages
from shoal_contract.messages import Pipelines, PipelineWanted, Wanted
from shoal_contract.signatures import Signer
from shoal_contract.topics import Topics
from shoal_fleet import digits

KEY = Signer(b"k" * 32)
CLIMATE = {"stream": "climate", "model": "climate", "topic": {"filter": "z/+", "values": ["$"]}}


def document(version: int, *tables: dict) -> bytes:
    wanted = [PipelineWanted(table["stream"], table) for table in tables]
    return messages.encode(Pipelines(version, version, wanted))


def told(version: int, *tables: dict) -> Wanted:
    return Wanted(1, 1, [], pipelines=document(version, *tables))


@pytest.fixture
async def store(tmp_path):
    async with Store.open(tmp_path / "agent.db") as store:
        yield store


async def test_each_document_replaces_the_one_before_and_an_empty_one_ends_them(store):
    fleet = await FleetPipelines.load(store, None)
    assert (fleet.version, list(fleet.wanted)) == (0, [])
    assert fleet.follow(document(5, CLIMATE))
    assert not fleet.follow(document(5, CLIMATE))
    assert (fleet.version, [one.stream for one in fleet.wanted]) == (5, ["climate"])
    assert fleet.follow(document(6))
    assert list(fleet.wanted) == []
    assert fleet.follow(document(7, CLIMATE))
    assert fleet.follow(b"")
    assert (fleet.version, list(fleet.wanted)) == (0, [])


@pytest.mark.parametrize(
    "bad", [b"\x00", b"\x82\x11", messages.encode(messages.Cancel(b"12345678"))]
)
async def test_what_is_no_document_changes_nothing(store, bad):
    fleet = await FleetPipelines.load(store, told(5, CLIMATE))
    assert not fleet.follow(bad)
    assert (fleet.version, [one.stream for one in fleet.wanted]) == (5, ["climate"])


async def test_a_document_of_an_earlier_controller_stands_in_an_envelope_of_its_own(store):
    fleet = await FleetPipelines.load(store, None)
    assert fleet.follow(KEY.sign(document(5, CLIMATE), topic="shoal/n/n1/w"))
    assert fleet.version == 5


async def test_what_ran_last_is_kept_beside_what_is_wanted(store):
    fleet = await FleetPipelines.load(store, None)
    bad = CLIMATE | {"topic": {"filter": "z/#/x", "values": ["$"]}}
    heat = CLIMATE | {"stream": "heat"}
    assert fleet.follow(document(5, CLIMATE))
    await fleet.hold(fleet.wanted)
    again = await FleetPipelines.load(store, told(6, bad, heat))
    assert [one.table for one in again.wanted] == [bad, heat]
    # What is not wanted any more does not come back.
    assert [one.table for one in again.first] == [CLIMATE, heat]
    await again.hold([PipelineWanted("heat", heat)])
    last = await FleetPipelines.load(store, told(7, heat))
    assert [one.table for one in last.first] == [heat]


async def test_after_a_restart_what_ran_goes_on_where_the_newest_cannot_run(tmp_path):
    bad = CLIMATE | {"topic": {"filter": "z/#/x", "values": ["$"]}}
    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        async with pipelined(broker, tmp_path) as made:
            fleet = await FleetPipelines.load(made.store, told(5, CLIMATE))
            await made.roster.follow_fleet(fleet.wanted)
            await fleet.hold(made.roster.running_of_fleet())
            fleet.follow(document(6, bad))
            await made.roster.follow_fleet(fleet.wanted)
            await fleet.hold(made.roster.running_of_fleet())
            first = fleet.first
        async with pipelined(broker, tmp_path, fleets=first) as made:
            again = await FleetPipelines.load(made.store, told(6, bad))
            assert again.first == first
            await made.roster.follow_fleet(again.wanted)
            await made.say("z/1", b"1")
            await made.heard(1)
            assert "stands alone" in made.reason("climate")


# ------------------------------------------------------------------ a whole agent
@pytest.fixture
def board():
    with short_folder() as folder:
        yield Board(folder)


@asynccontextmanager
async def agent(board: Board, port: int, more: str = ""):
    config = load(board.agent_toml(port, more=more))
    async with app.running(config, recent=RecentLines(), stop=asyncio.Event()) as running:
        yield running


def scan(path, level: int = 255) -> None:
    part = path.with_name(f".{path.name}")
    Image.new("L", (16, 16), level).save(part, "png")
    part.rename(path)


@pytest.mark.slow
async def test_a_pipeline_of_the_fleet_runs_after_a_restart_with_the_uplink_cut(board):
    v1 = Release(digits.release_dir(1))
    spool, lines = board.folder / "spool", board.folder / "verdicts.jsonl"
    spool.mkdir()
    more = (
        f'[pipelines]\nfolders = ["{board.folder}"]\n'
        f'[trust]\ncommand_keys = ["{envelope.key_text(KEY.public_key)}"]\n'
    )
    table = {
        "stream": "labels",
        "model": "digits",
        "images": {"path": str(spool), "poll_s": 0.1},
        "file": {"path": str(lines)},
    }
    async with (
        Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
        agent(board, broker.port, more),
        Hub.open(broker.port, NODE) as hub,
    ):
        topic = Topics().wanted(NODE)
        hub.signer = KEY
        await hub.want(v1)
        await hub.until(lambda: hub.serving() == v1.id)
        wanted = messages.decode_as(envelope.stripped(await retained(hub, topic)), Wanted)
        more_wanted = Wanted(9, 9, wanted.models, pipelines=document(7, table))
        await hub.session.publish(
            topic, KEY.sign(messages.encode(more_wanted), topic=topic), retain=True, durable=False
        )
        await hub.until(lambda: hub.reported[-1].pipelines_version == 7)
        (state,) = hub.reported[-1].pipelines
        assert (state.stream, state.from_fleet, state.running) == ("labels", True, True)
        scan(spool / "first.png")
        await hub.until(lambda: len(hub.readings) == 1)
    # The broker is gone.
    async with agent(board, broker.port, more):
        scan(spool / "second.png", 0)
        await until(lambda: len(lines.read_text().splitlines()) == 2, timeout_s=45)
    files = [json.loads(line)["file"] for line in lines.read_text().splitlines()]
    assert files == ["first.png", "second.png"]


async def retained(hub: Hub, topic: str) -> bytes:
    found: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def take(message) -> None:
        if not found.done():
            found.set_result(message.payload)

    await hub.session.subscribe(topic, take)
    return await found


OWN = """
[[pipeline]]
stream = "climate"
model = "digits"
[pipeline.topic]
filter = "%s"
values = ["$"]
"""


@pytest.mark.system
async def test_sighup_changes_the_pipelines_and_a_wrong_file_changes_nothing(board):
    async with (
        Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
        Hub.open(broker.port, NODE) as hub,
        board.agent(broker.port, more=OWN % "old/+") as program,
    ):
        await hub.until(lambda: bool(hub.reported) and bool(hub.reported[-1].pipelines))
        path = board.folder / "agent.toml"
        good = path.read_text()
        path.write_text(good.replace("old/+", "old/#/x"))
        os.kill(program.pid, signal.SIGHUP)
        await hub.until(lambda: "stands alone" in hub.reported[-1].pipelines[0].reason)
        assert hub.reported[-1].pipelines[0].running
        path.write_text(good + (OWN % "new/+").replace('"climate"', '"second"'))
        os.kill(program.pid, signal.SIGHUP)
        await hub.until(lambda: len(hub.reported[-1].pipelines) == 2)
        assert [one.reason for one in hub.reported[-1].pipelines] == ["", ""]
        path.write_text(good.replace('state_dir = "', 'state_dir = "/elsewhere'))
        os.kill(program.pid, signal.SIGHUP)
        await hub.until(lambda: len(hub.reported[-1].pipelines) == 1)
        await program.until_said("the rest needs a restart")
        assert await program.end() == 0
