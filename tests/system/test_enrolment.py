"""From an empty board to a revoked one with real programs: broker, controller and agent over mutual TLS."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from tests.support.board import short_folder
from tests.support.enrolling import an_authority
from tests.support.mosquitto import free_port
from tests.support.programs import output_of, running

from shoal_agent.identity.store import IdentityStore
from shoal_fleet.access import URL_FILE, read_token
from shoal_fleet.identity.issuing import issue_files

pytestmark = pytest.mark.system

NODE = "board-1"
LISTING_AGENT = Path(__file__).parents[1] / "support" / "listing_agent.py"


class Fleet:
    """A folder with an authority, and the programs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.door_port = free_port()
        self.state = folder / "fleet"
        self.store = IdentityStore(folder / "agent")
        self.pin = ""

    async def shoal(self, *arguments: object) -> str:
        """What the command prints; it must succeed."""
        code, out, error = await output_of(
            "shoal_fleet", *arguments, SHOAL_STATE_DIR=str(self.state)
        )
        assert code == 0, error
        return out

    def prepare(self) -> None:
        ca = self.folder / "ca"
        self.pin = an_authority(ca).pin
        for name, hosts in (("broker", ["localhost"]), ("shoal-controller", [])):
            issue_files(ca, name, out=self.folder, hosts=hosts, days=2, passphrase=None)

    @asynccontextmanager
    async def broker(self):
        config = self.folder / "broker.toml"
        config.write_text(
            "[[listener]]\nport = 0\ncert_file = 'broker.crt'\nkey_file = 'broker.key'\n"
            "client_ca_file = 'ca/ca.crt'\ncrl_file = 'ca/ca.crl'\n"
        )
        async with running(
            "shoal_broker", "run", "--config", config,
            log=self.folder / "broker.log", ready_file=self.folder / "broker.ready",
        ) as program:  # fmt: skip
            self.broker_port = int((self.folder / "broker.ready").read_text().split()[0])
            yield program

    @asynccontextmanager
    async def controller(self, *, days: float = 30):
        config = self.folder / "shoal.toml"
        config.write_text(
            f"state_dir = '{self.state}'\n[listen]\nport = 0\n"
            f"[broker]\nhost = 'localhost'\nport = {self.broker_port}\n"
            f"ca_file = '{self.folder}/ca/ca.crt'\ncert_file = '{self.folder}/shoal-controller.crt'\n"
            f"key_file = '{self.folder}/shoal-controller.key'\n"
            f"[identity]\nca_dir = '{self.folder}/ca'\nlisten = '127.0.0.1:{self.door_port}'\n"
            f"names = ['localhost']\ncertificate_days = {days}\n"
        )
        async with running(
            "shoal_fleet", "serve", "--config", config,
            log=self.folder / "shoal.log", ready_file=self.folder / "shoal.ready",
        ) as program:  # fmt: skip
            yield program

    @asynccontextmanager
    async def agent(self, *, token_file: Path | None = None, pin: str | None = None):
        config = self.folder / "agent.toml"
        token = "" if token_file is None else f"token_file = '{token_file}'\n"
        config.write_text(
            f"node = '{NODE}'\nstate_dir = '{self.folder}/agent'\n"
            f"[broker]\nhost = 'localhost'\nport = {self.broker_port}\ntransport = 'codec'\n"
            f"[enrolment]\nurl = 'https://localhost:{self.door_port}'\n"
            f"ca_pin = '{pin or self.pin}'\n{token}[peers]\nenabled = false\n"
        )
        async with running(
            LISTING_AGENT, "--config", config,
            log=self.folder / "agent.log", ready_file=self.folder / "agent.ready",
        ) as program:  # fmt: skip
            yield program

    async def until_node(self, holds) -> dict:
        """What the API shows of the node, once it holds."""
        async with asyncio.timeout(30), self.api() as api:
            while True:
                answer = await api.get(f"/api/nodes/{NODE}")
                if answer.status_code == httpx.codes.OK and holds(found := answer.json()):
                    return found
                await asyncio.sleep(0.05)

    def api(self) -> httpx.AsyncClient:
        """The running controller's."""
        url = (self.state / URL_FILE).read_text().strip()
        headers = {"Authorization": f"Bearer {read_token(self.state / 'token')}"}
        return httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=60)

    async def ask(self, method: str, path: str, body: dict | None = None):
        async with self.api() as api:
            answer = await api.request(method, path, json=body)
            assert answer.is_success, answer.text
            return answer.json()

    async def token_file(self, **labels: str) -> Path:
        (made,) = await self.ask("POST", "/api/tokens", {"labels": labels})
        path = self.folder / "token"
        path.write_text(made["token"])
        return path


@pytest.fixture
async def fleet():
    with short_folder() as folder:
        fleet = Fleet(folder)
        fleet.prepare()
        yield fleet


async def modules_of(agent, folder: Path) -> set[str]:
    agent.signal(signal.SIGUSR1)
    async with asyncio.timeout(5):
        while not (folder / "modules").exists():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
    return set((folder / "modules").read_text().splitlines())


@pytest.mark.timeout(90)
async def test_a_board_enrols_with_a_token_serves_a_command_and_is_out_once_it_is_revoked(fleet):
    async with fleet.broker() as broker, fleet.controller() as controller:
        token = fleet.folder / "token"
        await fleet.shoal("token", "create", "--group", "oslo", "--out", token)
        async with fleet.agent(token_file=token) as agent:
            node = await fleet.until_node(lambda node: node["online"] and node["reported"])
            assert node["labels"] == {"group": "oslo"}
            assert node["identity"]["key"] == f"sha256:{fleet.store.facts().key}"
            assert not token.exists()
            assert "uptime_s" in await fleet.shoal("send", NODE, "ping")
            assert not await modules_of(agent, fleet.folder) & {"cryptography", "_cffi_backend"}
            # It waits to see that the node stays away.
            found = await fleet.ask("POST", f"/api/nodes/{NODE}/revoke", {"reason": "stolen"})
            assert found["certificates"] == 1
            # The connection ends, and the next one is refused.
            await agent.until_said("identity refused", timeout_s=20)
            assert "certificate revoked" in agent.log
        shown = await fleet.ask("GET", f"/api/nodes/{NODE}")
        assert (shown["identity"]["reason"], shown["online"]) == ("stolen", False)
        # Nor does the board get another certificate.
        code, _, error = await output_of(
            "shoal_agent", "enrol", "--config", fleet.folder / "agent.toml"
        )
        assert (code, "was revoked" in error) == (1, True)
        assert "Traceback" not in controller.log + agent.log + broker.log


@pytest.mark.timeout(90)
async def test_a_board_without_a_token_runs_waits_and_joins_when_it_is_accepted(fleet):
    async with fleet.broker(), fleet.controller() as controller:
        async with fleet.agent() as agent:
            await agent.until_said("enrolment is pending")
            (row,) = await fleet.ask("GET", "/api/pending")
            assert row["fingerprint"] in agent.log
            assert fleet.store.facts() is None
            await fleet.ask(
                "POST", f"/api/pending/{NODE}/accept", {"fingerprint": row["fingerprint"]}
            )
        # Started again, not to wait for its next attempt: it asks with the same key.
        async with fleet.agent() as agent:
            await fleet.until_node(lambda node: node["online"])
            assert f"sha256:{fleet.store.facts().key}" == row["fingerprint"]
            assert "Traceback" not in controller.log + agent.log


@pytest.mark.timeout(90)
async def test_certificates_that_live_for_seconds_are_renewed_and_the_session_goes_on(fleet):
    async with fleet.broker(), fleet.controller(days=30 / 86400):
        token = await fleet.token_file()
        async with fleet.agent(token_file=token) as agent:
            await fleet.until_node(lambda node: node["online"])
            first = fleet.store.facts()
            await agent.until_said("certificate renewed", timeout_s=80)
            assert fleet.store.facts().key != first.key
            await fleet.until_node(
                lambda node: node["identity"]["how"] == "renewed" and node["online"]
            )
            assert "uptime_s" in await fleet.shoal("send", NODE, "ping")
            assert "identity refused" not in agent.log


@pytest.mark.timeout(90)
async def test_a_wrong_pin_keeps_the_board_to_itself(fleet):
    async with fleet.broker(), fleet.controller():
        token = await fleet.token_file()
        async with fleet.agent(token_file=token, pin="sha256:" + "00" * 32) as agent:
            await agent.until_said("enrolment door not trusted")
        assert token.exists()
        assert [one["state"] for one in await fleet.ask("GET", "/api/tokens")] == ["open"]
        assert await fleet.ask("GET", "/api/nodes") == []
