"""The fleet that the emulated board joins: broker and controller on this machine, over mutual TLS, under the address the board sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx
from tests.board.emulated import HOST
from tests.support.enrolling import an_authority
from tests.support.mosquitto import free_port
from tests.support.programs import output_of, running

from shoal_fleet.access import URL_FILE, read_token
from shoal_fleet.identity.issuing import issue_files
from shoal_fleet.release_directory import pack, read_spec


class FleetSide:
    """A running fleet without boards. `broker_port` and `door_port` are what a board needs to reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "fleet"
        self.broker_port = free_port()
        self.door_port = free_port()
        self.pin = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator[Self]:
        """Authority, broker and controller, their files below `folder`."""
        fleet = cls(folder)
        ca = folder / "ca"
        fleet.pin = an_authority(ca).pin
        for name, hosts in (("broker", ["localhost", HOST]), ("shoal-controller", [])):
            issue_files(ca, name, out=folder, hosts=hosts, days=2, passphrase=None)
        broker = folder / "broker.toml"
        broker.write_text(
            f"[[listener]]\nport = {fleet.broker_port}\ncert_file = 'broker.crt'\nkey_file = 'broker.key'\n"
            "client_ca_file = 'ca/ca.crt'\ncrl_file = 'ca/ca.crl'\n"
            "[access]\npolicy = 'table'\nobservers = ['ansible']\n"
        )
        controller = folder / "shoal.toml"
        controller.write_text(
            f"state_dir = '{fleet.state}'\n[listen]\nport = 0\n"
            f"[broker]\nhost = 'localhost'\nport = {fleet.broker_port}\n"
            f"ca_file = '{ca}/ca.crt'\ncert_file = '{folder}/shoal-controller.crt'\n"
            f"key_file = '{folder}/shoal-controller.key'\n"
            f"[identity]\nca_dir = '{ca}'\nlisten = '127.0.0.1:{fleet.door_port}'\nnames = ['{HOST}']\n"
        )
        async with (
            running(
                "shoal_broker", "run", "--config", broker,
                log=folder / "broker.log", ready_file=folder / "broker.ready",
            ),
            running(
                "shoal_fleet", "serve", "--config", controller,
                log=folder / "shoal.log", ready_file=folder / "shoal.ready",
            ),
        ):  # fmt: skip
            yield fleet

    async def shoal(self, *arguments: object) -> str:
        """What the command prints; it must succeed."""
        code, out, error = await output_of(
            "shoal_fleet", *arguments, SHOAL_STATE_DIR=str(self.state)
        )
        assert code == 0, error
        return out

    async def node(self, node: str) -> dict[str, Any] | None:
        """What the API shows of a node."""
        async with self._api() as api:
            answer = await api.get(f"/api/nodes/{node}")
            return answer.json() if answer.status_code == httpx.codes.OK else None

    async def until_node(
        self, node: str, holds: Callable[[dict[str, Any]], object], *, timeout_s: float
    ) -> dict[str, Any]:
        """The node, once it holds."""
        found = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    found = await self.node(node)
                    if found is not None and holds(found):
                        return found
                    await asyncio.sleep(0.2)
        except TimeoutError as exc:
            raise AssertionError(f"after {timeout_s} s the node is {found}") from exc

    async def serve(self, node: str, release: Path) -> str:
        """Add a release and want it on the node; its id."""

        async def pieces() -> AsyncIterator[bytes]:
            for piece in pack(release, read_spec(release)):
                yield piece

        async with self._api() as api:
            added = await api.post("/api/releases", content=pieces())
            assert added.status_code == httpx.codes.CREATED, added.text
            about: dict[str, Any] = added.json()
            wanted = await api.put(
                f"/api/nodes/{node}/models/{about['name']}", json={"release": about["id"]}
            )
            assert wanted.status_code == httpx.codes.OK, wanted.text
        found: str = about["id"]
        return found

    def _api(self) -> httpx.AsyncClient:
        url = (self.state / URL_FILE).read_text().strip()
        headers = {"Authorization": f"Bearer {read_token(self.state / 'token')}"}
        return httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=60)
