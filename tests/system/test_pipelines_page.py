"""docs/pipelines.md: every example of the page runs, with a real model, and does what the page says."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from tests.shoal_agent.until import until
from tests.shoal_fleet.conftest import Site, broker, quiet_logs, quiet_site, site
from tests.shoal_fleet.test_cli import shoal
from tests.support import moving_pictures
from tests.support.board import Board, short_folder
from tests.support.hub import Hub, Release
from tests.support.moving_pictures import RtspServer

from shoal_agent import app
from shoal_agent.config import load
from shoal_broker.logs import RecentLines
from shoal_broker.server import Broker
from shoal_fleet import digits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

__all__ = ["broker", "quiet_logs", "quiet_site", "site"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/pipelines.md").read_text()


def example(heading: str) -> str:
    """The one TOML block below a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```toml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return block


@pytest.fixture
def board():
    with short_folder() as folder:
        yield Board(folder)


@asynccontextmanager
async def running(
    text: str, board: Board, broker: Broker, **names: str
) -> AsyncIterator[tuple[app.Agent, Hub]]:
    """An agent with the example's configuration, in which only places have other names."""
    places = {
        "/var/lib/shoal": str(board.state),
        'host = "127.0.0.1"': f'host = "127.0.0.1"\nport = {broker.port}',
        "[[pipeline]]": "[peers]\nenabled = false\n\n[[pipeline]]",
        **names,
    }
    for old, new in places.items():
        assert old in text, old
        text = text.replace(old, new, 1)
    path = board.folder / "agent.toml"
    path.write_text(text)
    config = load(path)
    async with (
        Hub.open(broker.port, config.node) as hub,
        app.running(config, recent=RecentLines(), stop=asyncio.Event()) as agent,
    ):
        await hub.until(lambda: bool(hub.presence))
        yield agent, hub


@asynccontextmanager
async def heard(hub: Hub, topic_filter: str) -> AsyncIterator[dict[str, dict]]:
    """What another program hears on these topics."""
    found: dict[str, dict] = {}

    async def hear(message) -> None:
        found[message.topic] = json.loads(message.payload)
        hub.changed.set()

    await hub.session.subscribe(topic_filter, hear)
    yield found


def scans(count: int = 12) -> list[tuple[int, Image.Image]]:
    """Digits that nobody trained on, white on black, as a scanner would store them."""
    found = []
    for scan in digits.held_out()[:count]:
        grey = (np.array(scan.levels).reshape(8, 8) * 15.9).round().astype(np.uint8)
        found.append((scan.label, Image.fromarray(grey).resize((64, 64), Image.Resampling.BICUBIC)))
    return found


async def test_a_device(board, broker):
    v1 = Release(digits.release_dir(1))
    text = example("From a device")
    socket = {"/run/shoal/devices/meter.sock": f"{board.folder}/dev/meter.sock"}
    async with (
        board.device(rate_hz=40, limit=20),
        board.bridge(),
        running(text, board, broker, **socket) as (_, hub),
    ):
        await hub.want(v1)
        await hub.until(lambda: len(hub.readings) >= 20)
        assert {reading.device for reading in hub.readings} == {"meter"}
        assert board.told("set")


async def test_a_topic_with_units(board, broker, tmp_path):
    climate = climate_release(tmp_path / "climate")
    text = example("From any topic").replace("channel = 3", 'channel = 3\nvalue = "text"')
    socket = {"/run/shoal/devices/fan.sock": f"{board.folder}/none.sock"}
    async with running(text, board, broker, **socket) as (_, hub), heard(hub, "verdict/+") as told:
        await hub.want(climate)
        await hub.until(lambda: hub.serving() == climate.id)
        # 77 degrees Fahrenheit are 25 degrees Celsius: only converted it is below 30.
        await hub.session.publish(
            "zigbee2mqtt/bath", b'{"temperature": 77, "humidity": 40}', durable=False
        )
        await hub.until(lambda: "verdict/bath" in told)
        assert told["verdict/bath"]["label"] == "cool"
        await hub.session.publish(
            "zigbee2mqtt/attic", b'{"temperature": 95, "humidity": 40}', durable=False
        )
        await hub.until(lambda: "verdict/attic" in told)
        assert told["verdict/attic"]["label"] == "hot"


async def test_picture_files(board, broker):
    v1 = Release(digits.release_dir(1))
    spool = board.folder / "labels"
    spool.mkdir()
    names = {
        "/var/spool/labels.jsonl": f"{board.folder}/labels.jsonl",
        'path = "/var/spool/labels"': f'path = "{spool}"',
    }
    pictures = scans()
    async with (
        running(example("From picture files"), board, broker, **names) as (_, hub),
        heard(hub, "labels/+") as told,
    ):
        await hub.want(v1)
        for number, (_, picture) in enumerate(pictures):
            picture.save(spool / f".scan{number}.png")
            (spool / f".scan{number}.png").rename(spool / f"scan{number}.png")
        await hub.until(lambda: len(told) == len(pictures), timeout_s=30)
        right = sum(
            told[f"labels/scan{number}"]["label"] == str(label)
            for number, (label, _) in enumerate(pictures)
        )
        assert right >= len(pictures) - 2
        await hub.until(lambda: len(hub.readings) >= len(pictures))
        # A file goes when everything that follows from it is done: a moment after its reading came.
        await until(lambda: not list(spool.iterdir()))
    lines = (board.folder / "labels.jsonl").read_text().splitlines()
    assert {json.loads(line)["file"] for line in lines} == {
        f"scan{number}.png" for number in range(len(pictures))
    }


async def test_a_camera(board, broker):
    v1 = Release(digits.release_dir(1))
    label, picture = scans(1)[0]
    # The digit stands in the middle half of what the camera sees.
    seen = Image.new("RGB", (128, 64))
    seen.paste(picture.convert("RGB"), (32, 0))
    (board.folder / "password").write_text("secret\n")
    stream = moving_pictures.pictures([np.asarray(seen)], count=25)
    async with RtspServer.open(stream) as server:
        server.password = "shoal:secret"
        names = {
            "10.0.0.7:554": f"127.0.0.1:{server.port}",
            "/etc/shoal/camera-password": f"{board.folder}/password",
        }
        async with running(example("From a camera"), board, broker, **names) as (_, hub):
            await hub.want(v1)
            await hub.until(lambda: len(hub.readings) >= 3, timeout_s=30)
            assert {reading.label for reading in hub.readings} == {str(label)}
            assert {reading.device for reading in hub.readings} == {"gate"}


async def test_a_pipeline_of_the_fleet(site: Site, board, broker, tmp_path):
    file = tmp_path / "climate.toml"
    file.write_text(example("From the fleet"))
    climate_release(tmp_path / "climate")
    added = await site.add_release(tmp_path / "climate")
    key = site.controller.issuer.public_key
    config = load(board.agent_toml(broker.port, more=f'[trust]\ncommand_keys = ["{key}"]'))
    running_agent = app.running(config, recent=RecentLines(), stop=asyncio.Event())
    async with (
        running_agent,
        Hub.open(broker.port, config.node) as hub,
        heard(hub, "verdict/+") as told,
    ):
        await site.until(lambda: site._is_known(config.node))
        wanted = await site.api.put(
            f"/api/nodes/{config.node}/models/climate", json={"release": added["id"]}
        )
        assert wanted.status_code == 200, wanted.text
        code, out, error = await shoal(site, "pipeline", "set", str(file), "--node", config.node)
        assert (code, out, error) == (0, f"node {config.node}: climate; 1 node is told\n", "")
        await hub.until(lambda: hub.serving() is not None and bool(hub.reported[-1].pipelines))
        while "verdict/bath" not in told:
            # The broker is asked for the topic at the same moment.
            await hub.session.publish(
                "zigbee2mqtt/bath", b'{"temperature": 35, "humidity": 40}', durable=False
            )
            await asyncio.sleep(0.1)
        assert told["verdict/bath"]["label"] == "hot"
        _, out, _ = await shoal(site, "pipeline", "list", "--node", config.node)
        assert out.splitlines()[-1].split("\t") == [config.node, "climate", "fleet's", "yes", ""]


def climate_release(directory: Path) -> Release:
    """Says "hot" from 30 degrees Celsius on."""
    directory.mkdir()
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["z"]),
            helper.make_node("Add", ["z", "b"], ["y"]),
        ],
        "climate",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [
            onnx.numpy_helper.from_array(np.array([[0, 1], [0, 0]], np.float32), "w"),
            onnx.numpy_helper.from_array(np.array([0, -30], np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    (directory / "release.toml").write_text("""
name = "climate"
version = "1.0.0"
[model]
file = "model.onnx"
[input]
name = "x"
dtype = "float32"
shape = [2]
encoding = "f32"
units = "degC, %"
[output]
name = "y"
dtype = "float32"
shape = [2]
decode = "softmax-argmax"
labels = ["cool", "hot"]
units = "1"
[golden]
file = "golden.npz"
tolerance = 0.001
[quality]
metric = "none"
value = 1.0
evaluated_on = "nothing"
""")
    values = np.array([[20, 50], [40, 50]], np.float32)
    np.savez(
        directory / "golden.npz",
        inputs=values.view(np.uint8).reshape(2, 8),
        outputs=np.array([[0, -10], [0, 10]], np.float32),
    )
    return Release(directory)
