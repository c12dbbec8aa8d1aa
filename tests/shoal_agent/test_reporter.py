"""Presence and reported state on a real broker, with a line that can be cut."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from tests.shoal_agent.until import until
from tests.support.hub import Hub
from tests.support.tcp_proxy import TcpProxy

from shoal_agent import reporter
from shoal_agent.background import Background
from shoal_agent.config import AgentConfig, BrokerTable
from shoal_agent.reporter import Reporter
from shoal_broker.bus_errors import OutboxFullError
from shoal_broker.outbox import Outbox
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract.messages import ModelState, Phase
from shoal_contract.topics import Topics

NODE = "n1"


@dataclass
class Models:
    """What an updater tells a reporter."""

    revision: int = 1
    serving: list[str] = field(default_factory=list)

    @property
    def wanted_revision(self) -> int:
        return self.revision

    def states(self) -> list[ModelState]:
        return [ModelState(m, bytes(32), "1.0.0", bytes(32), Phase.SERVING) for m in self.serving]


class Reporting:
    def __init__(self, reporter, session, models, proxy) -> None:
        self.reporter = reporter
        self.session = session
        self.models = models
        self.proxy = proxy


@pytest.fixture
async def broker():
    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        yield broker


@pytest.fixture
async def hub(broker):
    async with Hub.open(broker.port, NODE) as hub:
        yield hub


@asynccontextmanager
async def reporting(tmp_path, port, **options):
    config = AgentConfig(
        node=NODE, state_dir=str(tmp_path), broker=BrokerTable(host="127.0.0.1"), **options
    )
    made = Reporter(config, topics=Topics())
    models = Models()
    async with TcpProxy.open(port) as proxy, Store.open(tmp_path / "agent.db") as store:
        session_config = SessionConfig(
            host="127.0.0.1", port=proxy.port, client_id=NODE, backoff_initial_s=0.02
        )
        async with (
            Session.open(
                session_config,
                outbox=await Outbox.load(store),
                will=made.will(),
                on_connected=made.on_connected,
            ) as session,
            Background.open() as background,
        ):
            background.start(made.run(session, models, None), name="reporter")
            yield Reporting(made, session, models, proxy)
            await made.say_goodbye(session)


async def test_it_says_that_it_is_here_and_that_it_goes(tmp_path, broker, hub):
    async with reporting(tmp_path, broker.port):
        await hub.until(lambda: bool(hub.presence))
        assert hub.presence[-1].online
    await hub.until(lambda: not hub.presence[-1].online)
    first, last = hub.presence[0], hub.presence[-1]
    assert (last.boot, last.since_ms) == (first.boot, first.since_ms)


async def test_the_broker_says_so_when_its_line_breaks_and_it_says_so_itself_when_it_is_back(
    tmp_path, broker, hub
):
    async with reporting(tmp_path, broker.port) as node:
        await hub.until(lambda: bool(hub.presence) and hub.presence[-1].online)
        await node.proxy.cut()
        await hub.until(lambda: not hub.presence[-1].online)
        await node.proxy.heal()
        await hub.until(lambda: hub.presence[-1].online)
        assert len({presence.boot for presence in hub.presence}) == 1


async def test_changes_close_together_go_out_as_one_state(tmp_path, broker, hub):
    async with reporting(tmp_path, broker.port) as node:
        await hub.until(lambda: bool(hub.reported))
        await asyncio.sleep(reporter.QUIET_S)
        before = len(hub.reported)
        for number in range(50):
            node.models.serving = [f"model-{number}"]
            node.models.revision = number
            await node.reporter.changed()
        await hub.until(lambda: hub.reported[-1].wanted_revision == 49)
        assert hub.reported[-1].models[0].model == "model-49"
        assert len(hub.reported) - before <= 2


async def test_without_a_change_the_state_is_sent_again_when_it_has_grown_old(
    tmp_path, broker, hub
):
    async with reporting(tmp_path, broker.port, report_every_s=0.1):
        await hub.until(lambda: len(hub.reported) >= 3)
    times = [report.at_ms for report in hub.reported]
    assert times == sorted(set(times))


async def test_the_state_is_retained_and_says_what_the_board_is(tmp_path, broker):
    async with reporting(tmp_path, broker.port) as node:
        await node.session.wait_connected(5)
        await until(lambda: node.session.stats.published >= 2)
        # A hub that comes later finds it.
        async with Hub.open(broker.port, NODE) as late:
            await late.until(lambda: bool(late.reported) and bool(late.presence))
            hardware = late.reported[-1].hardware
            assert hardware.cpus >= 1
            assert hardware.disk_free_bytes > 0
            assert late.reported[-1].role == "node"


async def test_a_full_outbox_delays_the_state_and_does_not_end_the_reporter(
    tmp_path, broker, hub, monkeypatch
):
    monkeypatch.setattr(reporter, "RETRY_S", 0.02)
    async with reporting(tmp_path, broker.port) as node:
        await hub.until(lambda: bool(hub.reported))
        publish, refusals = node.session.publish, []

        async def full(topic, payload, **options) -> None:
            if len(refusals) < 3:
                refusals.append(topic)
                raise OutboxFullError("the outbox is full", rows=1, size_bytes=1)
            await publish(topic, payload, **options)

        monkeypatch.setattr(node.session, "publish", full)
        node.models.revision = 7
        await node.reporter.changed()
        await hub.until(lambda: hub.reported[-1].wanted_revision == 7)
        assert len(refusals) == 3
