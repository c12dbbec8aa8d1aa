"""An authority, broker, controller and boards that enrol: real programs over mutual TLS, in one folder."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from tests.support.enrolling import an_authority
from tests.support.mosquitto import free_port
from tests.support.programs import output_of, running

from shoal_agent.identity.store import IdentityStore
from shoal_fleet.access import URL_FILE, read_token
from shoal_fleet.identity.issuing import issue_files

NODE = "board-1"
LISTING_AGENT = Path(__file__).with_name("listing_agent.py")


class EnrolledFleet:
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
    async def controller(self, *, days: float = 30, reload_command: tuple[str, ...] = ()):
        config = self.folder / "shoal.toml"
        config.write_text(
            f"state_dir = '{self.state}'\n[listen]\nport = 0\n"
            f"[broker]\nhost = 'localhost'\nport = {self.broker_port}\n"
            f"ca_file = '{self.folder}/ca/ca.crt'\ncert_file = '{self.folder}/shoal-controller.crt'\n"
            f"key_file = '{self.folder}/shoal-controller.key'\n"
            f"[identity]\nca_dir = '{self.folder}/ca'\nlisten = '127.0.0.1:{self.door_port}'\n"
            f"names = ['localhost']\ncertificate_days = {days}\n"
            f"reload_command = {list(reload_command)}\n"
        )
        async with running(
            "shoal_fleet", "serve", "--config", config,
            log=self.folder / "shoal.log", ready_file=self.folder / "shoal.ready",
        ) as program:  # fmt: skip
            yield program

    @asynccontextmanager
    async def agent(
        self,
        *,
        token_file: Path | None = None,
        pin: str | None = None,
        node: str = NODE,
        name: str = "agent",
    ):
        """`name`: of its files, and of its state directory."""
        config = self.folder / f"{name}.toml"
        token = "" if token_file is None else f"token_file = '{token_file}'\n"
        config.write_text(
            f"node = '{node}'\nstate_dir = '{self.folder}/{name}'\n"
            f"[broker]\nhost = 'localhost'\nport = {self.broker_port}\ntransport = 'codec'\n"
            f"[enrolment]\nurl = 'https://localhost:{self.door_port}'\n"
            f"ca_pin = '{pin or self.pin}'\n{token}[peers]\nenabled = false\n"
        )
        async with running(
            LISTING_AGENT, "--config", config,
            log=self.folder / f"{name}.log", ready_file=self.folder / f"{name}.ready",
        ) as program:  # fmt: skip
            yield program

    async def until_node(self, holds, *, node: str = NODE) -> dict:
        """What the API shows of the node, once it holds."""
        async with asyncio.timeout(30), self.api() as api:
            while True:
                answer = await api.get(f"/api/nodes/{node}")
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
