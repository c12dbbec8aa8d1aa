import asyncio
import contextlib
import io
import json
import shutil
import signal
import sqlite3
import sys
import tarfile

import pytest
from sqlalchemy import func, select
from tests.support.fleet_program import FleetProgram
from tests.support.node_simulator import NodeSimulator

from shoal_broker.server import Broker, BrokerConfig
from shoal_fleet import digits
from shoal_fleet.backup import LIST_MEMBER, backup_to, write_backup
from shoal_fleet.database import Database
from shoal_fleet.database_address import configured
from shoal_fleet.errors import StateError
from shoal_fleet.release_directory import pack, read_spec
from shoal_fleet.restore import AHEAD, restore
from shoal_fleet.tables import DecisionRow, FleetBase, NodeRow, ReadingsBase, ReleaseRow, RolloutRow


@pytest.fixture
async def state_dir(tmp_path):
    """A controller's directory with something of everything in it."""
    state = tmp_path / "state"
    for folder in ("blobs", "ca", "scratch"):
        (state / folder).mkdir(parents=True)
    (state / "token").write_text("secret\n")
    (state / "blobs" / "ab").write_bytes(b"blob" * 5000)
    (state / "ca" / "ca.key").write_text("key")
    (state / "scratch" / "upload.tar").write_text("half")
    async with (
        Database.open(state / "fleet.db", FleetBase) as fleet,
        Database.open(state / "readings.db", ReadingsBase),
        fleet.write() as change,
    ):
        change.add(
            NodeRow(
                name="n0",
                first_seen_ms=1,
                last_seen_ms=1_700_000_000_000,
                online=True,
                labels={"site": "oslo"},
                wanted_revision=7,
                published_revision=7,
            )
        )
        release = ReleaseRow(
            id=b"r", name="m", version="1.0.0", description="", manifest=b"m", model_file=b"f",
            size_bytes=1, quality={}, added_ms=1,
        )  # fmt: skip
        change.add(release)
        await change.flush()
        rollout = RolloutRow(
            id=5, release=b"r", group="", status="running", state=b"{}", created_ms=1, updated_ms=1
        )
        change.add(rollout)
        await change.flush()
        change.add(DecisionRow(rollout=5, at_ms=1, text="wave 1 opens"))
    return state


async def backed_up(state_dir, **where):
    file = io.BytesIO()
    said = await write_backup(file, state_dir, **where)
    return said, file.getvalue()


async def restored(data, target, **where):
    return await restore(io.BytesIO(data), target, **where)


async def test_a_backup_holds_what_the_controller_is_and_nothing_else(state_dir, tmp_path):
    path = tmp_path / "b.tar"
    said = await backup_to(path, state_dir)
    assert set(said["files"]) == {"fleet.db", "readings.db", "token", "blobs/ab", "ca/ca.key"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert not list(state_dir.glob(".backup-*"))
    with pytest.raises(StateError, match="cannot be made: File exists"):
        await backup_to(path, state_dir)


async def test_what_is_restored_is_the_controller_and_goes_on_behind_what_it_said(
    state_dir, tmp_path
):
    _, data = await backed_up(state_dir)
    there = tmp_path / "elsewhere" / "state"
    there.parent.mkdir()
    await restored(data, there)
    for name in ("token", "blobs/ab", "ca/ca.key"):
        assert (there / name).read_bytes() == (state_dir / name).read_bytes()
        assert (there / name).stat().st_mode & 0o777 == 0o600
    async with Database.open(there / "fleet.db", FleetBase) as database, database.read() as session:
        node = await session.get(NodeRow, "n0")
        assert (node.labels, node.online) == ({"site": "oslo"}, False)
        assert (node.wanted_revision, node.published_revision) == (7 + AHEAD, 0)
        assert (await session.get(RolloutRow, 5)).status == "running"


async def test_a_backup_that_lacks_a_byte_or_has_another_is_refused_and_leaves_nothing(
    state_dir, tmp_path
):
    _, data = await backed_up(state_dir)
    there = tmp_path / "there"
    spot = data.index(b"blobblob")
    for spoilt, said in (
        (data[:spot] + b"\xff" + data[spot + 1 :], "blobs/ab is not what its list says"),
        (data[: len(data) // 2], "not all of"),
        (b"no tar at all" * 100, "not a backup"),
        (b"", "not a backup|not all of"),
    ):
        with pytest.raises(StateError, match=said):
            await restored(spoilt, there)
        assert not there.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"state"}


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
async def test_a_name_that_leaves_the_directory_is_refused(tmp_path, name):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(StateError, match="does not belong there"):
        await restored(file.getvalue(), tmp_path / "there")
    assert list(tmp_path.iterdir()) == []


async def test_a_list_that_is_none_is_refused(tmp_path):
    for content in (b"[]", b"{", json.dumps({"format": 99}).encode()):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            member = tarfile.TarInfo(LIST_MEMBER)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        with pytest.raises(StateError, match="not"):
            await restored(file.getvalue(), tmp_path / "there")


async def test_a_place_that_is_not_empty_is_left_alone(state_dir, tmp_path):
    _, data = await backed_up(state_dir)
    with pytest.raises(StateError, match="is not empty"):
        await restored(data, state_dir)
    assert (state_dir / "scratch" / "upload.tar").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    await restored(data, empty)
    assert (empty / "fleet.db").exists()


@pytest.mark.slow
async def test_rows_go_from_sqlite_to_postgresql_and_back(state_dir, tmp_path, postgres):
    _, data = await backed_up(state_dir)
    server = configured(postgres.new())
    await restored(data, tmp_path / "there", database=server)
    assert not list((tmp_path / "there").glob("fleet.db*"))
    async with Database.open(server, FleetBase) as database:
        async with database.write() as change:
            # Numbers go on behind those that came.
            change.add(
                RolloutRow(
                    release=b"r", group="", status="done", state=b"{}", created_ms=1, updated_ms=1
                )
            )
        async with database.read() as session:
            assert set(await session.scalars(select(RolloutRow.id))) == {5, 6}
    with pytest.raises(StateError, match="is not empty: there are rows in"):
        await restored(data, tmp_path / "again", database=server)
    _, data = await backed_up(tmp_path / "there", database=server)
    await restored(data, tmp_path / "back")
    async with (
        Database.open(tmp_path / "back" / "fleet.db", FleetBase) as database,
        database.read() as session,
    ):
        assert await session.scalar(select(func.count()).select_from(RolloutRow)) == 2
        assert (await session.get(NodeRow, "n0")).labels == {"site": "oslo"}


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_controller_that_was_wiped_in_mid_rollout_goes_on_from_its_backup_elsewhere(
    tmp_path,
):
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        broker = await enter(Broker.open(BrokerConfig(host="127.0.0.1", port=0)))
        nodes = [await enter(NodeSimulator.open(f"n{i}", broker.port, tmp_path)) for i in range(6)]
        first = tmp_path / "first"
        async with FleetProgram.open(first, broker.port) as fleet:

            async def pieces():
                directory = digits.release_dir(1)
                for piece in pack(directory, read_spec(directory)):
                    yield piece

            async def known():
                return sum(bool(node["reported"]) for node in await fleet.get("/api/nodes"))

            await until(known, lambda count: count == len(nodes))
            assert (await fleet.api.post("/api/releases", content=pieces())).status_code == 201
            for node in nodes:
                node.mute = True
            await fleet.api.post("/api/rollouts", json={"release": "digits@1.0.0", "first_wave": 2})
            await until(
                known, lambda _: sum(bool(n.wanted and n.wanted.models) for n in nodes) == 2
            )
            shoal = (sys.executable, "-m", "shoal_fleet", "--state-dir")
            tar = tmp_path / "backup.tar"
            await run(*shoal, first / "state", "backup", tar)
            fleet.signal(signal.SIGKILL)
            await fleet.ended()
        keys = (first / "state" / "command-key").read_bytes()
        shutil.rmtree(first)
        second = tmp_path / "second"
        second.mkdir()
        await run(*shoal, second / "state", "restore", tar)
        assert (second / "state" / "command-key").read_bytes() == keys
        async with FleetProgram.open(second, broker.port) as fleet:
            for node in nodes:
                node.mute = False
                if node.wanted is not None:
                    node._updates.put_nowait(node.wanted)

            async def rollout():
                return (await fleet.get("/api/rollouts/1"))["status"]

            await until(rollout, lambda status: status == "done")
            assert all(node.models["digits"].version == "1.0.0" for node in nodes)
            with contextlib.closing(sqlite3.connect(second / "state" / "fleet.db")) as file:
                texts = [text for (text,) in file.execute("SELECT text FROM decisions")]
            waves = [text for text in texts if text.startswith("wave ")]
            assert len(waves) == len(set(waves)), texts


async def run(*command):
    process = await asyncio.create_subprocess_exec(*map(str, command))
    async with asyncio.timeout(60):
        assert await process.wait() == 0


async def until(ask, holds):
    async with asyncio.timeout(60):
        while not holds(await ask()):  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.05)
