"""A controller with its trust directory, a broker, an agent with the root: what is signed rolls out, the rest does not."""

import asyncio
import hashlib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.board import short_folder
from tests.support.signed_repository import SignedRepository

import shoal_agent.app
import shoal_agent.config
import shoal_fleet.app
from shoal_broker.logs import RecentLines
from shoal_broker.server import Broker, BrokerConfig
from shoal_contract.release_targets import path_of
from shoal_fleet import digits
from shoal_fleet.access import read_token
from shoal_fleet.config import BrokerTable, FleetConfig, ListenTable
from shoal_fleet.release_directory import pack, read_spec
from shoal_fleet.release_manifest import manifest_of
from shoal_fleet.rollout_state import Freeze
from shoal_fleet.trust import distribution, installing, keys, places
from shoal_fleet.trust.repository import Repository

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

NODE = "n1"
WAIT_S = 40.0


class Site:
    """The whole fleet of one board."""

    def __init__(self, api: httpx.AsyncClient, controller: Any, offline: SignedRepository) -> None:
        self.api = api
        self.controller = controller
        self.offline = offline
        self.there: Path

    def install(self) -> list[str]:
        return installing.install(self.offline.repository, Repository(self.there))

    def sign(self, group: str, version: int, *, remove: tuple[str, ...] = ()) -> str:
        """List a release of the digits for the group, offline; the target's path."""
        directory = digits.release_dir(version)
        spec = read_spec(directory)
        files = {name: (directory / name).read_bytes() for name in spec.files}
        manifest = manifest_of(spec, files)
        self.offline.release(group, ("digits", manifest), remove=remove)
        return path_of(group, "digits", _id(manifest))

    async def add(self, version: int) -> str:
        directory = digits.release_dir(version)

        async def pieces():
            for piece in pack(directory, read_spec(directory)):
                yield piece

        answer = await self.api.post("/api/releases", content=pieces())
        assert answer.status_code == 201, answer.text
        found: str = answer.json()["id"]
        return found

    async def want(self, release: str) -> None:
        answer = await self.api.put(f"/api/nodes/{NODE}/models/digits", json={"release": release})
        assert answer.status_code == 200, answer.text

    async def want_unsigned(self, release: str) -> None:
        """As a controller does that does not look at the list."""
        async with self.controller.database.write() as session:
            await self.controller.wanted.want(
                session, NODE, "digits", bytes.fromhex(release), rollout=None
            )
        self.controller.wanted.changed()
        await self.controller.rollouts.observe(NODE)

    async def label(self, group: str) -> None:
        labels = {"labels": {"group": group}}
        answer = await self.api.patch(f"/api/nodes/{NODE}/labels", json=labels)
        assert answer.status_code == 200, answer.text

    async def held(self) -> dict[str, str]:
        (listed,) = (await self.api.get("/api/nodes")).json()
        shown = (await self.api.get(f"/api/nodes/{NODE}")).json()
        assert listed["held"] == shown["held"]
        found: dict[str, str] = shown["held"]
        return found

    async def state(self) -> dict[str, Any]:
        reported = (await self.api.get(f"/api/nodes/{NODE}")).json().get("reported") or {}
        models = reported.get("models") or [{}]
        found: dict[str, Any] = models[0]
        return found

    async def until(self, holds) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            while not holds(state := await self.state()):  # noqa: ASYNC110 - only asking tells
                await asyncio.sleep(0.05)
            return state

    async def at_the_broker(self, name: str) -> None:
        """The controller has published this file."""
        async with asyncio.timeout(WAIT_S):
            while name not in (self.controller.distribution._published or {}):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def _id(manifest: bytes) -> bytes:
    return hashlib.sha256(manifest).digest()


@pytest.fixture
async def site(monkeypatch):
    monkeypatch.setattr(distribution, "LOOK_S", 0.1)
    monkeypatch.setattr("shoal_agent.updater.signed_releases.SPREAD_S", 0.0)
    monkeypatch.setattr("shoal_agent.updater.retained.ABSENT_S", 0.2)
    monkeypatch.setattr("shoal_agent.update.RETRY_S", 0.3)
    with short_folder() as folder:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            broker = await enter(Broker.open(BrokerConfig(host="127.0.0.1", port=0)))
            offline = SignedRepository(folder / "tuf", now=None)
            state_dir = folder / "fleet"
            there = places.metadata_dir(state_dir)
            there.mkdir(parents=True)
            offline.online_key_file(places.online_key_file(state_dir))
            controller, url = await enter(
                shoal_fleet.app.running(
                    FleetConfig(broker=BrokerTable(port=broker.port), listen=ListenTable(port=0)),
                    state_dir,
                )
            )
            token = read_token(state_dir / "token")
            api = await enter(
                httpx.AsyncClient(
                    base_url=url,
                    headers={"Authorization": f"Bearer {token}"},
                    timeout=90,
                    trust_env=False,
                )
            )
            path = folder / "agent.toml"
            path.write_text(
                f"node = '{NODE}'\nstate_dir = '{folder}/agent'\n"
                f"[broker]\nhost = '127.0.0.1'\nport = {broker.port}\n[peers]\nenabled = false\n"
                f"[trust]\nroot_file = '{offline.root_file}'\nrelease_groups = ['oslo']\n"
            )
            made = Site(api, controller, offline)
            made.there = there
            made.folder = folder
            await enter(
                shoal_agent.app.running(
                    shoal_agent.config.load(path), recent=RecentLines(), stop=asyncio.Event()
                )
            )
            async with asyncio.timeout(WAIT_S):
                while (await api.get(f"/api/nodes/{NODE}")).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            yield made


async def test_what_is_signed_for_the_board_runs_and_what_is_not_does_not(site):
    first, second = await site.add(1), await site.add(2)
    # Signed for another group only: refused, with a reason that reaches the controller.
    other = site.sign("bergen", 1)
    site.install()
    await site.want(first)
    state = await site.until(lambda state: state.get("phase") == "failed")
    assert state["reason"] == f"nobody has signed the release {first[:12]} for oslo, all"
    assert state["release"] == ""
    # Signed for this one: it runs, without anybody wanting it again.
    site.sign("oslo", 1)
    site.install()
    await site.until(lambda state: state.get("release") == first and state["phase"] == "serving")
    # The next one is signed by nobody: the controller refuses, and so does the board. The old one serves on.
    answer = await site.api.put(f"/api/nodes/{NODE}/models/digits", json={"release": second})
    assert answer.status_code == 400
    assert "nobody has signed digits@1.1.0 for all" in answer.json()["error"]
    await site.want_unsigned(second)
    state = await site.until(lambda state: state.get("phase") == "failed")
    assert "nobody has signed" in state["reason"]
    assert (state["release"], state["target"]) == (first, second)
    site.sign("oslo", 2)
    site.install()
    await site.until(lambda state: state.get("release") == second and state["phase"] == "serving")
    assert other


async def test_an_old_timestamp_stops_the_next_release_and_says_why(site):
    first, second = await site.add(1), await site.add(2)
    site.sign("oslo", 1)
    site.install()
    await site.at_the_broker("2.group-oslo.json")
    old = (site.there / "timestamp.json").read_bytes()
    site.sign("oslo", 2)
    site.install()
    await site.at_the_broker("3.group-oslo.json")
    await site.want(first)
    await site.until(lambda state: state.get("phase") == "serving")
    # Somebody with the broker in hand plays the timestamp of before, and the board has lost its files.
    for path in (site.folder / "agent" / "metadata").glob("*.json"):
        if not path.is_symlink():
            path.write_bytes(b"")
    topics = site.controller.distribution._topics
    await site.controller.session.publish(
        topics.update("timestamp.json"), old, retain=True, durable=False
    )
    await site.want(second)
    state = await site.until(lambda state: "cannot be relied on" in state.get("reason", ""))
    assert "is older than" in state["reason"]
    assert state["release"] == first


async def test_a_wanted_release_is_held_visibly_when_its_board_moves_to_a_group_without_it(site):
    first = await site.add(1)
    site.sign("oslo", 1)
    site.install()
    await site.label("oslo")
    await site.want(first)
    await site.until(lambda state: state.get("phase") == "serving")
    assert await site.held() == {}
    await site.label("bergen")
    assert await site.held() == {"digits": f"{first[:12]}: nobody has signed it for bergen"}
    answer = await site.api.put(f"/api/nodes/{NODE}/models/digits", json={"release": first})
    assert answer.status_code == 400
    site.sign("bergen", 1)
    site.install()
    assert await site.held() == {}


async def test_a_board_that_moves_during_a_rollout_waits_for_the_signature_of_its_group(site):
    first = await site.add(1)
    site.sign("oslo", 1)
    site.install()
    await site.label("oslo")
    await site.controller.rollouts.freeze(Freeze(reason="the board is to move first"))
    answer = await site.api.post("/api/rollouts", json={"release": first, "group": ""})
    assert answer.status_code == 201, answer.text
    number = answer.json()["id"]
    await site.label("bergen")
    await site.controller.rollouts.thaw()
    why = "nobody has signed it for bergen"
    async with asyncio.timeout(WAIT_S):
        while True:
            found = (await site.api.get(f"/api/rollouts/{number}")).json()
            if found["status"] == "running" and found["waits"] == {why: 1}:
                break
            await asyncio.sleep(0.05)
    assert await site.held() == {"digits": f"{first[:12]}: {why}"}
    assert (await site.api.get(f"/api/nodes/{NODE}")).json()["wanted"] == {}
    # Its own configuration says oslo: the board would run it, and the controller offers it from now on.
    site.sign("bergen", 1)
    site.install()
    await site.until(lambda state: state.get("release") == first and state["phase"] == "serving")
    assert await site.held() == {}


async def test_a_rollout_of_what_nobody_signed_for_a_group_there_is_refused(site):
    first = await site.add(1)
    site.install()

    async def started() -> httpx.Response:
        return await site.api.post("/api/rollouts", json={"release": first, "group": ""})

    answer = await started()
    assert answer.status_code == 400
    says = (
        "nobody has signed digits@1.0.0 for {0}: the boards would refuse it; shoal trust sign DIR"
        " --key KEY --group {0} --add RELEASE, then shoal trust install DIR"
    )
    assert answer.json()["error"] == says.format("all")
    # A board in a group takes what is signed for that, or for all; another group's does not do.
    labels = {"labels": {"group": "oslo"}}
    assert (await site.api.patch(f"/api/nodes/{NODE}/labels", json=labels)).status_code == 200
    site.sign("bergen", 1)
    site.install()
    assert (await started()).json()["error"] == says.format("oslo")
    site.sign("all", 1)
    site.install()
    assert (await started()).status_code == 201


async def test_a_rollout_of_what_the_board_itself_refuses_holds_at_the_first_board(site):
    """It has no label, so the controller cannot know that bergen's list is not its own."""
    first = await site.add(1)
    site.sign("bergen", 1)
    site.install()
    answer = await site.api.post(
        "/api/rollouts", json={"release": first, "group": "", "first_wave": 1}
    )
    assert answer.status_code == 201, answer.text
    rollout = answer.json()["id"]
    async with asyncio.timeout(WAIT_S):
        while True:
            found = (await site.api.get(f"/api/rollouts/{rollout}")).json()
            if found["status"] not in {"preparing", "running"}:
                break
            await asyncio.sleep(0.05)
    assert found["status"] in {"held", "stopped"}
    assert "nobody has signed" in str(found)


async def test_the_controller_says_what_runs_out(site):
    site.install()
    await site.at_the_broker("timestamp.json")
    assert (await site.api.get("/api/status")).json()["trust_alarms"] == []
    assert keys.open_signer(places.online_key_file(site.there.parents[1])) is not None
