"""An agent and a controller on a Mosquitto as `shoal-broker render` writes it: TLS and certificates."""

from __future__ import annotations

import asyncio
import shutil
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing
from tests.shoal_broker.render.rendered_mosquitto import Authority, RenderedMosquitto
from tests.support.board import short_folder
from tests.support.mosquitto import Mosquitto, free_port

import shoal_agent.app
import shoal_agent.config
import shoal_fleet.app
import shoal_fleet.config
from shoal_agent.errors import ConfigError
from shoal_broker.logs import RecentLines
from shoal_fleet import metrics as fleet_metrics

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        Mosquitto.found() is None, reason="mosquitto is not installed (apt-get install mosquitto)"
    ),
]

NODE = "node-a"
WAIT_S = 15.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def broker(tmp_path, authority):
    rendered = RenderedMosquitto(tmp_path / "etc", authority)
    with rendered.running():
        yield rendered


@pytest.fixture
def folder():
    with short_folder() as found:
        yield found


@pytest.fixture(autouse=True)
def _alarms_are_asked_again_soon(monkeypatch):
    monkeypatch.setattr("shoal_broker.backoff.random.uniform", lambda low, _high: min(low, 0.05))


def table(port: int, authority: Authority, cert_file: Path | str, key_file: Path | str) -> str:
    return (
        f"[broker]\nhost = 'localhost'\nport = {port}\nca_file = '{authority.folder}/ca.crt'\n"
        f"cert_file = '{cert_file}'\nkey_file = '{key_file}'\n"
    )


def agent_config(folder: Path, broker: str, more: str = "") -> shoal_agent.config.AgentConfig:
    path = folder / "agent.toml"
    path.write_text(
        f"node = '{NODE}'\nstate_dir = '{folder}/agent'\n{broker}[peers]\nenabled = false\n{more}"
    )
    return shoal_agent.config.load(path)


@asynccontextmanager
async def controller(folder: Path, broker: str):
    path = folder / "shoal.toml"
    path.write_text(f"{broker}[listen]\nport = 0\n")
    config = shoal_fleet.config.load(path)
    async with shoal_fleet.app.running(config, folder / "fleet") as (running, _):
        await running.session.wait_connected(WAIT_S)
        yield running


async def until(true) -> None:
    async with asyncio.timeout(WAIT_S):
        while not true():  # noqa: ASYNC110 - what other programs do has no event here
            await asyncio.sleep(0.01)


async def scrape(port: int) -> dict[str, float]:
    """What the agent's /metrics says."""

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return answer.read().decode()

    lines = (await asyncio.to_thread(read)).splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


async def test_an_expired_agent_raises_the_alarm_and_comes_online_by_itself_once_renewed(
    folder, authority, broker
):
    expired = authority.issue(NODE, "node-a-expired", days=-1)
    mine = [folder / "node.crt", folder / "node.key"]
    for issued, place in zip(expired, mine, strict=True):
        shutil.copy(issued, place)
    port = free_port()
    config = agent_config(
        folder, table(broker.port, authority, *mine), f"[metrics]\nport = {port}\n"
    )
    theirs = table(broker.port, authority, *authority.issue("shoal-controller"))
    with structlog.testing.capture_logs() as logs:
        async with (
            controller(folder, theirs) as fleet,
            shoal_agent.app.running(config, recent=RecentLines(), stop=asyncio.Event()),
        ):
            alarms = 'shoal_agent_broker_alarms_total{alarm="identity_refused"}'
            async with asyncio.timeout(WAIT_S):
                while (found := await scrape(port))[alarms] < 2:  # noqa: ASYNC110 - another thread's
                    await asyncio.sleep(0.01)
            assert found["shoal_agent_connected"] == 0
            assert NODE not in fleet.registry.nodes
            for issued, place in zip(authority.issue(NODE), mine, strict=True):
                shutil.copy(issued, place)
            await until(lambda: NODE in fleet.registry.nodes and fleet.registry.nodes[NODE].online)
            await until(lambda: fleet.registry.nodes[NODE].reported is not None)
            assert (await scrape(port))["shoal_agent_connected"] == 1
    alarm = next(entry for entry in logs if entry["event"] == "identity refused")
    assert alarm["log_level"] == "error"
    assert alarm["error"].startswith("the broker refuses our certificate: certificate expired")
    assert str(mine[0]) in alarm["error"]


async def test_a_controller_that_the_broker_refuses_says_so_in_its_metrics(
    folder, authority, broker
):
    config = shoal_fleet.config.FleetConfig(
        broker=shoal_fleet.config.BrokerTable(
            host="localhost", port=broker.port, ca_file=f"{authority.folder}/ca.crt"
        ),
        listen=shoal_fleet.config.ListenTable(port=0),
    )
    async with shoal_fleet.app.running(config, folder / "fleet") as (fleet, _):
        await until(lambda: fleet.session.stats.identity_refused >= 1)
        text = (await fleet_metrics.render(fleet)).decode()
        assert "certificate required" in fleet.session.last_error
    assert 'shoal_broker_alarms_total{alarm="identity_refused"}' in text
    assert 'shoal_broker_alarms_total{alarm="broker_not_trusted"} 0.0' in text


async def test_an_agent_does_not_start_on_files_that_cannot_be_used(folder, authority):
    good = authority.issue(NODE)
    config = agent_config(folder, table(1, authority, good[0], folder / "none.key"))
    with pytest.raises(ConfigError, match=r"^\[broker\] key_file \S+none.key cannot be read"):
        async with shoal_agent.app.running(config, recent=RecentLines(), stop=asyncio.Event()):
            pass
