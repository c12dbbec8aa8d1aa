"""`shoal serve` as a real process, and its HTTP API as a person's script would use it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx
from tests.support.programs import Program, running

from shoal_fleet.access import URL_FILE, read_token
from shoal_fleet.release_directory import pack, read_spec

TIMEOUT_S = 30.0
PAGE = 5000


class FleetProgram:
    """A running controller. Build it with `FleetProgram.open`."""

    def __init__(self, program: Program, api: httpx.AsyncClient) -> None:
        self.program = program
        self.api = api

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, broker_port: int) -> AsyncIterator[Self]:
        """Started on this broker, with its state below `folder`, which may be from an earlier run."""
        folder.mkdir(exist_ok=True)  # noqa: ASYNC240 - a test's own folder, before anything runs
        config, state = folder / "controller.toml", folder / "state"
        config.write_text(
            f'state_dir = "{state}"\n[listen]\nport = 0\n'
            f'[broker]\nhost = "127.0.0.1"\nport = {broker_port}\n'
        )
        async with running(
            "shoal_fleet",
            "serve",
            "--config",
            config,
            log=folder / "controller.log",
            ready_file=folder / "controller.ready",
        ) as program:
            url = (state / URL_FILE).read_text().strip()
            headers = {"Authorization": f"Bearer {read_token(state / 'token')}"}
            async with httpx.AsyncClient(
                base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False
            ) as api:
                yield cls(program, api)

    def signal(self, number: int) -> None:
        self.program.signal(number)

    async def ended(self) -> int:
        return await self.program.ended()

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.api.get(path, params=query)
        assert answer.status_code == httpx.codes.OK, answer.text
        return answer.json()

    async def send(self, node: str, op: str, args: dict[str, Any], *, expires_s: float) -> str:
        """Send a command; its id."""
        body = {"node": node, "op": op, "args": args, "expires_s": expires_s}
        answer = await self.api.post("/api/commands", json=body)
        assert answer.status_code == httpx.codes.CREATED, answer.text
        command: str = answer.json()["id"]
        return command

    async def serve_release(self, node: str, directory: Path) -> str:
        """Add a release and have a node run it; the release's id."""

        async def pieces() -> AsyncIterator[bytes]:
            for piece in pack(directory, read_spec(directory)):
                yield piece

        added = await self.api.post("/api/releases", content=pieces())
        assert added.status_code == httpx.codes.CREATED, added.text
        release: dict[str, Any] = added.json()
        wanted = await self.api.put(
            f"/api/nodes/{node}/models/{release['name']}", json={"release": release["id"]}
        )
        assert wanted.status_code == httpx.codes.OK, wanted.text
        found: str = release["id"]
        return found

    async def readings(self, node: str) -> list[dict[str, Any]]:
        """All readings of a node, in the order of arrival."""
        rows: list[dict[str, Any]] = []
        while page := await self.get(
            "/api/readings", node=node, after=rows[-1]["id"] if rows else 0, limit=PAGE
        ):
            rows += page
        return rows
