"""Several controllers on one PostgreSQL: one acts, the next one begins where it stopped."""

import asyncio
import contextlib
import signal
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select
from tests.support import programs
from tests.support.node_simulator import NodeSimulator

from shoal_broker.server import Broker, BrokerConfig
from shoal_fleet import digits
from shoal_fleet.access import URL_FILE, read_token
from shoal_fleet.database import Database
from shoal_fleet.database_address import configured
from shoal_fleet.errors import StateError
from shoal_fleet.leadership import Leadership, LeadershipLostError, WaitEndedError
from shoal_fleet.release_directory import pack, read_spec
from shoal_fleet.tables import FleetBase, NodeRow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
LOCKS = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"


def node(name):
    return NodeRow(name=name, first_seen_ms=1, last_seen_ms=1, labels={})


async def test_who_led_before_writes_nothing_any_more(postgres):
    address = configured(postgres.new())
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Leadership.gained(address, stop=stop))
        one = await stack.enter_async_context(Database.open(address, FleetBase))
        await first.begin_term(one)
        async with one.write() as change:
            change.add(node("n0"))
        # Its machine sleeps; the server has given it up, and another one leads.
        postgres.sql(LOCKS, address.url.database)
        async with Leadership.gained(address, stop=stop) as second:
            two = await stack.enter_async_context(Database.open(address, FleetBase))
            await second.begin_term(two)
            with pytest.raises(
                StateError, match=r"another controller leads \(term 2, ours was 1\)"
            ):
                async with one.write() as change:
                    change.add(node("n1"))
            async with two.write() as change:
                change.add(node("n2"))
            async with two.read() as session:
                assert set(await session.scalars(select(NodeRow.name))) == {"n0", "n2"}
        with pytest.raises(LeadershipLostError, match="leads no longer"):
            await first.watch()


async def test_a_change_that_began_before_is_there_when_the_next_term_has_begun(postgres):
    address = configured(postgres.new())
    async with (
        Database.open(address, FleetBase) as one,
        Database.open(address, FleetBase) as two,
        Leadership.gained(address, stop=asyncio.Event()) as leadership,
    ):
        await leadership.begin_term(one)
        async with asyncio.TaskGroup() as tasks, one.write() as change:
            change.add(node("n0"))
            await change.flush()
            next_term = tasks.create_task(leadership.begin_term(two))
            done, _ = await asyncio.wait([next_term], timeout=0.3)
            assert not done
        async with two.read() as session:
            found = await session.scalar(select(func.count()).select_from(NodeRow))
        assert found == 1


async def test_a_controller_that_waits_ends_when_it_is_told_to(postgres):
    address = configured(postgres.new())
    stop = asyncio.Event()
    async with Leadership.gained(address, stop=asyncio.Event()):
        asyncio.get_running_loop().call_later(0.1, stop.set)
        waiting = Leadership.gained(address, stop=stop)
        with pytest.raises(WaitEndedError):
            await waiting.__aenter__()


class Controllers:
    """Programs on one database and one folder of blobs."""

    def __init__(self, folder: Path, broker_port: int, url: str) -> None:
        self.folder = folder
        self._broker_port = broker_port
        self._url = url

    @contextlib.asynccontextmanager
    async def started(self, name):
        folder = self.folder / name
        folder.mkdir()
        (folder / "c.toml").write_text(
            f'state_dir = "{folder}/state"\nblobs_dir = "{self.folder}/blobs"\nlog_format = "json"\n'
            f'[listen]\nport = 0\n[broker]\nport = {self._broker_port}\n[database]\nurl = "{self._url}"\n'
        )
        async with programs.running(
            "shoal_fleet", "serve", "--config", folder / "c.toml", log=folder / "log"
        ) as program:
            yield program

    @contextlib.asynccontextmanager
    async def api(self, name):
        state = self.folder / name / "state"
        async with asyncio.timeout(30):
            while not (state / URL_FILE).exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.02)
        headers = {"Authorization": f"Bearer {read_token(state / 'token')}"}
        url = (state / URL_FILE).read_text().strip()
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as api:
            yield api


async def until(ask, holds):
    async with asyncio.timeout(60):
        while not holds(answer := await ask()):  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.05)
        return answer


async def test_the_second_one_takes_over_in_mid_rollout_when_the_first_is_killed(
    postgres, tmp_path
):
    url = postgres.new()
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        broker = await enter(Broker.open(BrokerConfig(host="127.0.0.1", port=0)))
        controllers = Controllers(tmp_path, broker.port, url)
        first = await enter(controllers.started("one"))
        await first.until_said("controller runs", timeout_s=40)
        second = await enter(controllers.started("two"))
        await second.until_said("another controller leads", timeout_s=40)
        assert not (tmp_path / "two" / "state").exists()
        nodes = [await enter(NodeSimulator.open(f"n{i}", broker.port, tmp_path)) for i in range(8)]
        async with controllers.api("one") as api:

            async def pieces():
                directory = digits.release_dir(1)
                for piece in pack(directory, read_spec(directory)):
                    yield piece

            async def known():
                return (await api.get("/api/nodes")).json()

            await until(known, lambda found: sum(bool(each["reported"]) for each in found) == 8)
            assert (await api.post("/api/releases", content=pieces())).status_code == 201
            for each in nodes[1:]:
                each.mute = True
            begun = await api.post(
                "/api/rollouts", json={"release": "digits@1.0.0", "first_wave": 2}
            )
            assert begun.status_code == 201, begun.text
            await until(
                known,
                lambda _: sum(bool(each.wanted and each.wanted.models) for each in nodes) >= 2,
            )
            first.signal(signal.SIGKILL)
            await first.ended()
        await second.until_said("controller runs", timeout_s=40)
        async with controllers.api("two") as api:
            for each in nodes:
                each.mute = False
                if each.wanted is not None:
                    each._updates.put_nowait(each.wanted)

            async def rollout():
                return (await api.get("/api/rollouts/1")).json()

            found = await until(rollout, lambda found: found["status"] == "done")
            assert found["id"] == 1
        decisions = postgres.sql("SELECT text FROM decisions ORDER BY id", url_database(url))
        opened = [line for line in decisions.splitlines() if line.startswith("wave ")]
        # No wave was opened twice.
        assert len(opened) == len(set(opened)), decisions
        assert postgres.sql("SELECT term FROM leadership", url_database(url)) == "2"


def url_database(url):
    return configured(url).url.database
