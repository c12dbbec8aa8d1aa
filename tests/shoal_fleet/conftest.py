"""A broker, a controller on it with a client for its API, and nodes: all real, all in this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import structlog
from tests.support.node_simulator import NodeSimulator
from tests.support.postgres import Postgres, running_postgres

from shoal_broker.server import Broker, BrokerConfig
from shoal_fleet.access import read_token
from shoal_fleet.app import running
from shoal_fleet.config import BrokerTable, DatabaseTable, FleetConfig, ListenTable
from shoal_fleet.controller import Controller
from shoal_fleet.release_directory import pack, read_spec

ON_BOTH = {
    "test_groups",
    "test_identity",
    "test_json_door",
    "test_mandates",
    "test_nodes_and_commands",
    "test_pipelines",
    "test_registry",
    "test_releases",
    "test_rollouts",
}
"""Their tests with a site run on SQLite and, as slow ones, on PostgreSQL."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.module.__name__.rpartition(".")[2]
    if "quiet_site" in metafunc.fixturenames and module in ON_BOTH:
        databases = ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)]
        metafunc.parametrize("quiet_site", databases, indirect=True)


class Site:
    """Everything a test needs; `api` speaks HTTP to the controller that runs now."""

    def __init__(self, broker_port: int, folder: Path, database_url: str | None = None) -> None:
        self.database_url = database_url
        self.broker_port = broker_port
        self.folder = folder
        self.state_dir = folder / "controller"
        self.controller: Controller
        self.api: httpx.AsyncClient
        self.url = ""
        self._nodes = contextlib.AsyncExitStack()

    def config(self, **changes: Any) -> FleetConfig:
        return msgspec.structs.replace(
            FleetConfig(
                broker=BrokerTable(port=self.broker_port),
                listen=ListenTable(port=0),
                database=DatabaseTable(url=self.database_url),
            ),
            **changes,
        )

    @contextlib.asynccontextmanager
    async def controlled(self, **changes: Any) -> AsyncIterator["Site"]:
        """A controller runs."""
        async with running(self.config(**changes), self.state_dir) as (controller, url):
            self.controller, self.url = controller, url
            token = read_token(self.state_dir / "token")
            async with httpx.AsyncClient(
                base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60
            ) as self.api:
                await controller.session.wait_connected(5)
                yield self

    @contextlib.asynccontextmanager
    async def node(self, name: str, **attributes: Any) -> AsyncIterator[NodeSimulator]:
        """A node is there, and the controller knows it and its state."""
        async with NodeSimulator.open(name, self.broker_port, self.folder, **attributes) as node:
            await self.until(lambda: self._is_known(name))
            yield node

    async def nodes(self, count: int, **attributes: Any) -> list[NodeSimulator]:
        """Several nodes until the end of the test."""
        return [
            await self._nodes.enter_async_context(self.node(f"n{index}", **attributes))
            for index in range(count)
        ]

    async def add_release(self, directory: Path) -> dict[str, Any]:
        answer = await self.upload(directory)
        assert answer.status_code == 201, answer.text
        added: dict[str, Any] = answer.json()
        return added

    async def upload(self, directory: Path) -> httpx.Response:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in pack(directory, read_spec(directory)):
                yield piece

        return await self.api.post("/api/releases", content=pieces())

    async def until(self, holds: Callable[[], bool], *, timeout_s: float = 45) -> None:
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - nobody sets an event for what is looked at here
                await asyncio.sleep(0.005)

    async def until_answer(
        self, ask: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool]
    ) -> Any:
        """What `ask` answers, once it holds."""
        async with asyncio.timeout(8):
            while not holds(answer := await ask()):  # noqa: ASYNC110 - only asking tells
                await asyncio.sleep(0.01)
            return answer

    async def rollout(self, rollout: int, *statuses: str, timeout_s: float = 45) -> dict[str, Any]:
        """The rollout once it has one of these statuses."""
        async with asyncio.timeout(timeout_s):
            while True:
                found: dict[str, Any] = (await self.api.get(f"/api/rollouts/{rollout}")).json()
                if found["status"] in statuses:
                    return found
                await asyncio.sleep(0.02)

    def _is_known(self, name: str) -> bool:
        node = self.controller.registry.nodes.get(name)
        return node is not None and node.online and node.reported is not None


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """What the controller logs must not get into what a command line prints in the same process."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        yield broker


@pytest.fixture
async def quiet_site(
    broker: Broker, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Site]:
    """A site whose controller the test starts itself, on PostgreSQL where the test asks for it."""
    url = None
    if getattr(request, "param", "") == "postgres":
        url = request.getfixturevalue("postgres").new()
    site = Site(broker.port, tmp_path, url)
    async with site._nodes:
        yield site


@pytest.fixture
async def site(quiet_site: Site) -> AsyncIterator[Site]:
    async with quiet_site.controlled():
        yield quiet_site
        # Nodes leave first: their last words find the controller there.
        await quiet_site._nodes.aclose()
