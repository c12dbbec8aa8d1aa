"""Bad input from people, files, the network and the serial line: one clear line, nothing lost, nobody ends."""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.support.board import NODE, Board, short_folder
from tests.support.hub import Hub, Release
from tests.support.programs import Program, output_of, running

import shoal_delta
from shoal_broker.bus_errors import BusError
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.session import Session, SessionConfig
from shoal_contract import blobs, cbor, messages
from shoal_contract.messages import BlobRef, DeltaOffer, ModelWanted
from shoal_contract.topics import Channel, Topics
from shoal_fleet import digits

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]

TOPICS = Topics()


@pytest.fixture
def board():
    with short_folder() as folder:
        yield Board(folder)


@pytest.fixture(scope="module")
def v1():
    return Release.as_added(digits.release_dir(1))


@pytest.fixture(scope="module")
def v2():
    return Release.as_added(digits.release_dir(2))


@asynccontextmanager
async def site():
    async with (
        Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
        Hub.open(broker.port, NODE) as hub,
    ):
        yield broker, hub


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# ------------------------------------------------------------------ a person's mistakes
GOOD = {
    "shoal_agent": 'node = "n1"\nstate_dir = "{0}/state"\n[broker]\nhost = "127.0.0.1"\n',
    "shoal_firmware_bridge": 'socket_dir = "{0}/dev"\n'
    '[[device]]\nname = "meter"\nlink = "serial"\npath = "/dev/ttyS0"\n',
    "shoal_fleet": "",
}


@pytest.mark.parametrize("program", GOOD)
async def test_an_unknown_key_is_one_line_that_names_file_and_key(program, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("colour = 1\n" + GOOD[program].format(tmp_path))
    command = ("serve",) if program == "shoal_fleet" else ()
    code, out, err = await output_of(program, *command, "--config", config)
    assert code == 2
    assert out == ""
    (line,) = err.splitlines()
    assert str(config) in line
    assert "unknown key `colour`" in line


async def test_commands_without_a_controller_or_a_broker_exit_unreachable(tmp_path):
    port = free_port()
    code, out, err = await output_of(
        "shoal_fleet", "--url", f"http://127.0.0.1:{port}", "nodes", SHOAL_STATE_DIR=str(tmp_path)
    )
    assert (code, out, len(err.splitlines())) == (3, "", 1), err
    code, out, err = await output_of("shoal_broker", "doctor", "--port", port)
    assert (code, len((out + err).splitlines())) == (3, 1), out + err


async def test_an_agent_without_its_broker_waits_for_it(board):
    port = free_port()
    async with board.agent(port) as agent:
        await agent.until_said("broker not reached")
        async with (
            Broker.open(BrokerConfig(host="127.0.0.1", port=port)),
            Hub.open(port, NODE) as hub,
        ):
            await hub.until(lambda: bool(hub.presence) and bool(hub.reported))
            assert await agent.end() == 0
            await hub.until(lambda: not hub.presence[-1].online)
        assert "Traceback" not in agent.log


@asynccontextmanager
async def controller(broker_port: int, folder: Path):
    """`shoal serve`; yields it and a function that runs `shoal` against it."""
    state = folder / "controller"
    async with running(
        "shoal_fleet",
        *("serve", "--port", "0", "--broker", f"127.0.0.1:{broker_port}", "--state-dir", state),
        log=folder / "controller.log",
        ready_file=folder / "controller.ready",
    ) as program:

        async def shoal(*arguments: object) -> tuple[int, str, str]:
            return await output_of("shoal_fleet", "--state-dir", state, *arguments)

        yield program, shoal


def text_as_onnx(directory: Path) -> None:
    (directory / "model.onnx").write_text("I am a letter, not a model.\n" * 40)


def truncated_onnx(directory: Path) -> None:
    data = (directory / "model.onnx").read_bytes()
    (directory / "model.onnx").write_bytes(data[: len(data) // 2])


def no_golden(directory: Path) -> None:
    (directory / "golden.npz").unlink()


def wrong_golden(directory: Path) -> None:
    with np.load(directory / "golden.npz") as arrays:
        inputs, outputs = arrays["inputs"], arrays["outputs"]
    np.savez(directory / "golden.npz", inputs=inputs, outputs=outputs + 1)


def unknown_key(directory: Path) -> None:
    toml = directory / "release.toml"
    toml.write_text('colour = "blue"\n' + toml.read_text())


def nothing(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


SPOILT = {
    text_as_onnx: "model.onnx",
    truncated_onnx: "model.onnx",
    no_golden: "golden.npz",
    wrong_golden: "golden",
    unknown_key: "colour",
    nothing: "release.toml",
}


async def test_what_is_no_release_is_refused_in_one_line_and_an_unknown_node_too(tmp_path):
    async with site() as (broker, _), controller(broker.port, tmp_path) as (program, shoal):
        for number, (spoil, names) in enumerate(SPOILT.items()):
            directory = tmp_path / f"release-{number}"
            shutil.copytree(digits.release_dir(1), directory)
            spoil(directory)
            code, out, err = await shoal("release", "add", directory)
            assert (code, out, len(err.splitlines())) == (1, "", 1), (spoil.__name__, out, err)
            assert names in err, spoil.__name__
        code, out, _ = await shoal("release", "list", "--json")
        assert (code, out.strip()) == (0, "[]")
        for arguments in (("send", "nobody", "ping"), ("want", "nobody", "digits=none")):
            code, out, err = await shoal(*arguments)
            assert (code, out, len(err.splitlines())) == (1, "", 1), err
            assert "nobody" in err
        assert program.process.returncode is None
        assert "Traceback" not in program.log


# ------------------------------------------------------------------ what the network brings
def wanted(release: Release, *deltas: DeltaOffer) -> ModelWanted:
    return ModelWanted(
        model=release.spec.name,
        release=release.id,
        manifest=blobs.describe(release.manifest),
        files=[blobs.describe(data) for data in release.files.values()],
        deltas=list(deltas),
    )


async def offer(hub: Hub, base: Release, target: Release, delta: bytes) -> DeltaOffer:
    """A delta as the controller would offer it, whatever is in it."""
    await hub.publish_blob(delta)
    return DeltaOffer(
        hashlib.sha256(base.model).digest(),
        hashlib.sha256(target.model).digest(),
        blobs.describe(delta),
    )


def other_weights(folder: Path) -> Release:
    shutil.copytree(digits.release_dir(2), folder)
    toml = folder / "release.toml"
    toml.write_text(toml.read_text().replace('"1.1.0"', '"1.2.0"'))
    return Release(folder)


async def test_bad_deltas_and_bad_chunks_delay_an_update_and_stop_nothing(board, v1, v2, tmp_path):
    good = shoal_delta.diff(v1.model, v2.model)
    async with site() as (broker, hub), board.agent(broker.port) as agent:
        await hub.want(v1)
        await hub.until(lambda: hub.serving() == v1.id)
        for data in (v2.manifest, *v2.files.values()):
            await hub.publish_blob(data)
        # The smallest is tried first: a truncated one, then one made for another base.
        deltas = [
            await offer(hub, v1, v2, good[: len(good) // 2]),
            await offer(hub, v1, v2, shoal_delta.diff(v1.model + b"\0", v2.model)),
        ]
        await hub.send_wanted([wanted(v2, *deltas)])
        await hub.until(lambda: hub.serving() == v2.id)
        assert agent.log.count('"event": "a delta failed"') == 2
        model = hub.reported[-1].models[0]
        assert model.fetched_bytes > len(v2.model), "in the end the whole file came"
        states = [report.models[0].release for report in hub.reported if report.models]
        assert states.index(v2.id) == len(states) - states[::-1].index(v1.id), "v1, then v2"

        # A chunk of the right length with wrong bytes: asked for again, and then it is good.
        v3 = other_weights(tmp_path / "v3")
        toml = v3.files["release.toml"]
        ref = blobs.describe(toml)
        await hub.publish_blob(v3.manifest)
        await hub.session.publish(
            hub.topics.chunk(ref.digest, 0), os.urandom(len(toml)), retain=True, durable=False
        )
        await hub.send_wanted([wanted(v3)])
        await hub.until(lambda: any(isinstance(m, messages.ChunksMissing) for m in hub.results))
        assert hub.serving() == v2.id
        await hub.publish_blob(toml)
        await hub.until(lambda: hub.serving() == v3.id)
        assert "a damaged chunk came" in agent.log
        assert "Traceback" not in agent.log


def garbage() -> list[bytes]:
    """Bytes that are no message: random, almost CBOR, CBOR of wrong kinds, shapes and sizes."""
    rng = random.Random(7)  # noqa: S311 - the same garbage every time
    wrong_types = [cbor.encode([kind, *[None] * 6]) for kind in range(14)]
    wrong_values = [cbor.encode([kind, b"", -1, "", {}, [], 1 << 60]) for kind in range(14)]
    good = messages.encode(messages.Presence(online=True, boot=b"boot", since_ms=1))
    lie = BlobRef(bytes(32), 1 << 40, 1 << 16, b"")
    return [
        b"\x00",
        b"\xff" * 64,
        b"\x9f\x01",  # a list without an end
        b"\x81" * 5000,  # depth
        b"\xbf\x61a\x01\x61a\x02\xff",
        b"\xc2\x49\x01\x00\x00\x00\x00\x00\x00\x00\x00",  # a bignum
        b"\xd9\xd9\xf7\x81\x01",
        cbor.encode([99, "a message of next year"]),
        cbor.encode({"node": "n1"}),
        good[:-1],
        good + b"\x00",
        os.urandom(90_000),
        messages.encode(messages.Wanted(1 << 40, 1, [ModelWanted("x", bytes(32), lie, [])])),
        messages.encode(messages.Cancel(b"12345678")),
        messages.encode(messages.InferRequest(b"12345678", "digits", [b"short"])),
        *wrong_types,
        *wrong_values,
        *(rng.randbytes(rng.randrange(1, 400)) for _ in range(20)),
    ]


def every_topic() -> list[str]:
    """Each topic that an agent or a controller listens to, and some that look like one."""
    plain = [f"{TOPICS.root}/n/{NODE}/{c.value}" for c in Channel if c not in {"t", "i"}]
    leafed = [
        TOPICS.telemetry(NODE, "digits"),
        TOPICS.inference(NODE, "digits"),
        TOPICS.inference(NODE, "nothing"),
    ]
    strange = [
        f"{TOPICS.root}/n/Not A Node/s",
        f"{TOPICS.root}/n/{'x' * 200}/r",
        f"{TOPICS.root}/n/{NODE}/t/a b",
        f"{TOPICS.root}/n/{NODE}/i/ü",
    ]
    chunks = [TOPICS.chunk(bytes(32), 0), f"{TOPICS.root}/b/{bytes(32).hex()}/999999999"]
    return [*plain, *leafed, *strange, *chunks]


async def test_garbage_on_every_topic_is_counted_and_changes_nothing(board, v1, tmp_path):
    async with (
        Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
        controller(broker.port, tmp_path) as (program, shoal),
        board.device(rate_hz=20, limit=100),
        board.bridge(),
        board.agent(broker.port, device=True) as agent,
    ):
        code, _, err = await shoal("release", "add", digits.release_dir(1))
        assert code == 0, err
        async with Hub.open(broker.port, NODE) as hub:
            await hub.until(lambda: bool(hub.reported))
            assert (await shoal("want", NODE, "digits=digits@1.0.0"))[0] == 0
            await hub.until(lambda: hub.serving() == v1.id and bool(hub.readings))
        async with Session.open(
            SessionConfig(host="127.0.0.1", port=broker.port, client_id="stranger")
        ) as stranger:
            await stranger.wait_connected(5)
            for topic in every_topic():
                for payload in garbage():
                    await send(stranger, topic, payload)
        # Both go on: commands and samples come through, and the model serves.
        code, out, err = await shoal("send", NODE, "ping")
        assert code == 0, err
        assert "uptime_s" in out
        await everything_arrives(board, shoal)
        _, out, _ = await shoal("nodes", "--json")
        (model,) = json.loads(out)[0]["reported"]["models"]
        assert (model["phase"], model["release"]) == ("serving", v1.id.hex())
        for running_program in (program, agent):
            assert running_program.process.returncode is None
            assert "Traceback" not in running_program.log
            assert "malformed" in running_program.log


async def send(stranger: Session, topic: str, payload: bytes) -> None:
    try:
        await stranger.publish(
            topic, payload, durable=False, response_topic="a/b", correlation=b"c"
        )
    except BusError:
        # The broker may refuse a topic; the next one is tried.
        await stranger.wait_connected(5)


async def everything_arrives(board: Board, shoal) -> None:
    async with asyncio.timeout(60):
        while True:
            _, out, _ = await shoal("readings", "summary", "--json")
            rows = {row["node"]: row for row in json.loads(out)["devices"]}
            if rows.get(NODE, {}).get("count") == 100 == len(board.told("sample")):
                return


# ------------------------------------------------------------------ the serial line
async def test_garbage_on_the_serial_line_costs_no_sample(board, v1):
    async with (
        site() as (broker, hub),
        board.device(rate_hz=60, limit=150, loss=0.03, corrupt=0.03),
        board.bridge() as bridge,
        board.agent(broker.port, device=True) as agent,
    ):
        await hub.want(v1)
        await hub.until(lambda: len(hub.readings) > 20)
        # Another program writes to the device's end of the line: the MCU hears it between the frames.
        noise = os.open(board.tty, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        written = 0
        try:
            for count in range(20, 60):
                await hub.until(lambda count=count: len(hub.readings) > count)
                # A line that is full takes none: there is noise enough.
                with contextlib.suppress(BlockingIOError):
                    written += os.write(noise, os.urandom(40))
        finally:
            os.close(noise)
        assert written
        await hub.until(lambda: len({r.seq for r in hub.readings}) == 150, timeout_s=30)
        assert {r.seq for r in hub.readings} == {event["seq"] for event in board.told("sample")}
        assert_alive(bridge)
        assert_alive(agent)


def assert_alive(program: Program) -> None:
    assert program.process.returncode is None
    assert "Traceback" not in program.log
