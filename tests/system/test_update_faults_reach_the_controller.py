"""An update that goes wrong on a board: the old model serves on, and the controller knows the reason.

A controller with its API, an embedded broker and the agent as a process, with a device that asks for answers all the time.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from sqlalchemy import update
from tests.support.board import NODE, Board, short_folder
from tests.support.hub import Hub

import shoal_delta
import shoal_fleet.app
import shoal_fleet.releases
from shoal_broker.server import Broker, BrokerConfig
from shoal_contract import blobs
from shoal_delta.container import Layout, Segment, encode_header
from shoal_fleet import digits
from shoal_fleet.access import read_token
from shoal_fleet.config import BrokerTable, FleetConfig, ListenTable
from shoal_fleet.controller import Controller
from shoal_fleet.release_directory import pack, read_spec
from shoal_fleet.tables import BlobRow

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

WAIT_S = 20.0
ANSWERS = 5
"""So many answers more are awaited: the old model serves."""
ROUNDS = 15
"""Of a million multiplications each, in the slow model."""


class Fleet:
    """A controller and one board that serves the digits' v1."""

    def __init__(self, api: httpx.AsyncClient, controller: Controller, hub: Hub) -> None:
        self.api = api
        self.controller = controller
        self.hub = hub
        self.agent_pid = 0
        self.v1 = ""

    async def add(self, directory: Path) -> str:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in pack(directory, read_spec(directory)):
                yield piece

        answer = await self.api.post("/api/releases", content=pieces())
        assert answer.status_code == 201, answer.text
        found: str = answer.json()["id"]
        return found

    async def want(self, release: str) -> None:
        answer = await self.api.put(f"/api/nodes/{NODE}/models/digits", json={"release": release})
        assert answer.status_code == 200, answer.text

    async def roll_out(self, release: str) -> int:
        body = {"release": release, "group": "", "first_wave": 1}
        answer = await self.api.post("/api/rollouts", json=body)
        assert answer.status_code == 201, answer.text
        number: int = answer.json()["id"]
        return number

    async def model(self) -> dict[str, Any]:
        """What the controller knows of the board's model; {}: nothing."""
        answer = await self.api.get(f"/api/nodes/{NODE}")
        reported = (answer.json().get("reported") or {}) if answer.status_code == 200 else {}
        found: dict[str, Any] = (reported.get("models") or [{}])[0]
        return found

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        state: dict[str, Any] = {}
        try:
            async with asyncio.timeout(WAIT_S):
                while not holds(state := await self.model()):  # noqa: ASYNC110 - only asking tells
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"the controller knows only {state}")
        return state

    async def stopped(self, rollout: int) -> dict[str, Any]:
        """The rollout, once nobody is offered it any more."""
        async with asyncio.timeout(WAIT_S):
            while True:
                answer = await self.api.get(f"/api/rollouts/{rollout}")
                found: dict[str, Any] = answer.json()
                if found["status"] not in {"preparing", "running"}:
                    return found
                await asyncio.sleep(0.05)

    async def the_old_one_serves(self) -> None:
        """It is what the controller knows, and the device still gets its answers, from it."""
        assert (await self.model())["release"] == self.v1
        count = len(self.hub.readings)
        await self.hub.until(lambda: len(self.hub.readings) >= count + ANSWERS)
        served = {reading.release.hex() for reading in self.hub.readings[count:]}
        assert served == {self.v1[:16]}, "a reading names the first 8 bytes"

    async def flip_a_bit(self, digest: bytes) -> None:
        """In the controller's blob, with chunks that say so: only the hash of the whole can tell."""
        store = self.controller.deltas._store
        ref = await store.ref(digest)
        assert ref is not None
        path = store.path(digest)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        digests = blobs.describe(bytes(data), chunk_bytes=ref.chunk_bytes).chunk_digests
        async with self.controller.deltas._database.write() as change:
            await change.execute(
                update(BlobRow).where(BlobRow.digest == digest).values(chunk_digests=digests)
            )
        store.replace([msgspec.structs.replace(ref, chunk_digests=digests)])

    async def offer(self, delta: bytes | None) -> None:
        """From v1's model to v2's there is this delta, or none that is worth sending."""
        digest = None
        if delta is not None:
            digest = (await self.controller.deltas._store.add(delta)).digest
        await self.controller.deltas._remember(_digest(1), _digest(2), digest)


def _model(version: int) -> bytes:
    return (digits.release_dir(version) / "model.onnx").read_bytes()


def _digest(version: int) -> bytes:
    return blobs.describe(_model(version)).digest


@asynccontextmanager
async def asking(board: Board) -> AsyncIterator[None]:
    """The device shows its digits, for as long as the context lasts."""
    async with board.device(rate_hz=20, limit=10_000), board.bridge():
        yield


@asynccontextmanager
async def fleet_of_one(
    prefix: tuple[str, ...] = (), *, is_asked: bool = True
) -> AsyncIterator[tuple[Fleet, Board]]:
    """The controller, and the board with v1 serving; `is_asked`: with its device asking from the start."""
    with short_folder() as folder:
        board = Board(folder)
        async with (
            Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
            Hub.open(broker.port, NODE) as hub,
            shoal_fleet.app.running(
                FleetConfig(broker=BrokerTable(port=broker.port), listen=ListenTable(port=0)),
                folder / "fleet",
            ) as (controller, url),
            httpx.AsyncClient(
                base_url=url,
                headers={"Authorization": f"Bearer {read_token(folder / 'fleet' / 'token')}"},
                timeout=30,
                trust_env=False,
            ) as api,
            asking(board) if is_asked else nullcontext(),
            board.agent(broker.port, device=True, prefix=prefix) as agent,
        ):
            fleet = Fleet(api, controller, hub)
            fleet.agent_pid = agent.pid
            fleet.v1 = await fleet.add(digits.release_dir(1))
            async with asyncio.timeout(WAIT_S):
                while (await api.get(f"/api/nodes/{NODE}")).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await fleet.want(fleet.v1)
            await fleet.until(
                lambda state: state.get("release") == fleet.v1 and state["phase"] == "serving"
            )
            yield fleet, board


@pytest.mark.parametrize("artefact", ["manifest", "model"])
async def test_a_flipped_bit_that_only_the_whole_files_hash_shows_is_said(artefact):
    async with fleet_of_one() as (fleet, _):
        v2 = await fleet.add(digits.release_dir(2))
        await fleet.offer(None)
        await fleet.flip_a_bit(bytes.fromhex(v2) if artefact == "manifest" else _digest(2))
        await fleet.want(v2)
        state = await fleet.until(lambda state: "the whole is not" in state["reason"])
        assert (state["target"], state["reason"]) == (
            v2,
            "every chunk of a blob is right but the whole is not",
        )
        await fleet.the_old_one_serves()


def slow(folder: Path) -> Path:
    """v2 with the same answers, and much more to do for each."""
    shutil.copytree(digits.release_dir(2), folder)
    model = onnx.load_from_string(_model(2))
    graph = model.graph
    (image,) = (value for value in graph.input if value.name == "image")
    for node in graph.node:
        node.input[:] = ["image.late" if name == "image" else name for name in node.input]
    draw = np.random.default_rng(1)
    there, back = (draw.normal(size=(64, 4000)) / 8, draw.normal(size=(4000, 64)) / 63)
    rounds = [
        helper.make_node("MatMul", [f"late.{number}", f"late.{way}"], [f"late.{number + 1}"])
        for number, way in enumerate(["there", "back"] * ROUNDS)
    ]
    work = [
        helper.make_node("Reshape", [image.name, "late.row"], ["late.0"]),
        *rounds,
        helper.make_node("ReduceMean", [f"late.{2 * ROUNDS}"], ["late.m"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["late.m", "late.zero"], ["late.z"]),
        helper.make_node("Reshape", ["late.z", "late.pixel"], ["late.p"]),
        helper.make_node("Add", [image.name, "late.p"], ["image.late"]),
    ]
    before = list(graph.node)
    del graph.node[:]
    graph.node.extend([*work, *before])
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([-1, 64], np.int64), "late.row"),
            numpy_helper.from_array(there.astype(np.float32), "late.there"),
            numpy_helper.from_array(back.astype(np.float32), "late.back"),
            numpy_helper.from_array(np.array(0, np.float32), "late.zero"),
            numpy_helper.from_array(np.array([-1, 1, 1, 1], np.int64), "late.pixel"),
        ]
    )
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def wrong_golden(folder: Path) -> Path:
    """v2 with golden outputs that it does not give."""
    shutil.copytree(digits.release_dir(2), folder)
    with np.load(folder / "golden.npz") as golden:
        arrays = dict(golden)
    arrays["outputs"] = arrays["outputs"] + np.float32(1)
    np.savez(folder / "golden.npz", **arrays)
    return folder


async def test_a_release_with_wrong_golden_outputs_holds_its_rollout(tmp_path, monkeypatch):
    # The controller refuses it, too: this is one on whose processor all is well.
    check = shoal_fleet.releases._check
    monkeypatch.setattr(shoal_fleet.releases, "_check", lambda _: check(digits.release_dir(2)))
    async with fleet_of_one() as (fleet, _):
        v2 = await fleet.add(wrong_golden(tmp_path / "wrong"))
        await it_fails_for_good(fleet, v2, "golden")


async def test_a_release_much_slower_than_the_one_before_holds_its_rollout(tmp_path):
    async with fleet_of_one() as (fleet, _):
        late = await fleet.add(slow(tmp_path / "slow"))
        await it_fails_for_good(fleet, late, "too slow: p95")


async def it_fails_for_good(fleet: Fleet, release: str, words: str) -> None:
    """The board refuses it with these words, the rollout is held with them, the old one serves."""
    rollout = await fleet.stopped(await fleet.roll_out(release))
    state = await fleet.model()
    assert (state["phase"], state["target"]) == ("failed", release)
    assert words in state["reason"]
    assert rollout["status"] == "held"
    assert rollout["reason"] == f"{NODE} failed: {state['reason']}"
    await fleet.the_old_one_serves()


def flipped(delta: bytes) -> bytes:
    data = bytearray(delta)
    data[len(data) // 2] ^= 1
    return bytes(data)


def bomb() -> bytes:
    """4 KB that claim to become 4 GB, from the right base."""
    base = _model(1)
    return encode_header(
        Layout.SEGMENTED,
        sizes=(len(base), 4 << 30),
        sha256=(_digest(1), bytes(32)),
        segments=[Segment(4 << 20, 0, coded_size=1)] * 300,
    ).ljust(4096, b"\0")


BAD_DELTAS = pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: flipped(shoal_delta.diff(_model(1), _model(2))), "delta"),
        (lambda: shoal_delta.diff(_model(2), _model(1)), "is not what this delta was made from"),
        (bomb, "limit"),
    ],
    ids=["flipped", "wrong base", "bomb"],
)


@BAD_DELTAS
async def test_a_bad_delta_is_said_while_the_whole_file_does_not_come_either(make, words):
    async with fleet_of_one(is_asked=False) as (fleet, board):
        v2 = await fleet.add(digits.release_dir(2))
        await fleet.offer(make())
        await fleet.flip_a_bit(_digest(2))
        await fleet.want(v2)
        state = await fleet.until(lambda state: "the whole is not" in state["reason"])
        whole, _, delta = state["reason"].partition("; a delta failed: ")
        assert (state["phase"], state["target"]) == ("fetching", v2)
        assert whole == "every chunk of a blob is right but the whole is not"
        assert words in delta
        async with asking(board):
            await fleet.the_old_one_serves()


async def test_a_bomb_is_said_and_the_whole_file_serves_in_its_place():
    async with fleet_of_one(is_asked=False) as (fleet, _):
        v2 = await fleet.add(digits.release_dir(2))
        await fleet.offer(bomb())
        await fleet.want(v2)
        state = await fleet.until(lambda state: state["release"] == v2)
        assert state["phase"] == "serving"
        assert state["reason"].startswith("a delta failed: ")
        assert "limit" in state["reason"]


def own_mounts() -> tuple[str, ...]:
    if os.geteuid() != 0 or os.system("unshare -m true 2>/dev/null") != 0:  # noqa: S605
        pytest.skip("no root: nothing can be mounted here")
    return ("unshare", "-m")


def mount_in(pid: int, script: str, path: Path) -> None:
    """Run this in the mounts of the process, with the path as $1."""
    command = ["nsenter", "-t", str(pid), "-m", "sh", "-ec", script, "sh", str(path)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.root
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"', "Read-only file system"),
        ('mount -t tmpfs -o size=64k none "$1"', "bytes are free on the disk"),
    ],
    ids=["read-only", "full"],
)
async def test_a_disk_that_takes_nothing_is_said_and_the_old_model_serves(script, words):
    async with fleet_of_one(own_mounts()) as (fleet, board):
        v2 = await fleet.add(digits.release_dir(2))
        mount_in(fleet.agent_pid, script, board.state / "parts")
        await fleet.want(v2)
        state = await fleet.until(lambda state: words in state["reason"])
        assert (state["phase"], state["target"]) == ("fetching", v2)
        await fleet.the_old_one_serves()
