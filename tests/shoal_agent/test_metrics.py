"""What Prometheus reads of a running agent."""

import asyncio
import socket
import urllib.request
from datetime import UTC, datetime

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.board import NODE, Board, short_folder
from tests.support.hub import Hub, Release
from tests.support.signed_repository import SignedRepository

from shoal_agent import app, metrics
from shoal_agent.config import load
from shoal_broker.logs import RecentLines
from shoal_broker.server import Broker, BrokerConfig
from shoal_contract import envelope, messages
from shoal_contract.messages import Command
from shoal_contract.signatures import Signer
from shoal_fleet import digits


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> dict[str, float]:
    """Samples by name and labels, as Prometheus would store them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.name.startswith("shoal_agent_")
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def test_the_counters_of_a_running_agent_are_what_happened(free_port):
    with short_folder() as folder:
        board = Board(folder)
        async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
            path = board.agent_toml(broker.port, device=True, more=f"[metrics]\nport = {free_port}")
            async with (
                app.running(load(path), recent=RecentLines(), stop=asyncio.Event()),
                Hub.open(broker.port, NODE) as hub,
            ):
                await hub.until(lambda: bool(hub.presence))
                first = await asyncio.to_thread(scrape, free_port)
                assert first["shoal_agent_connected"] == 1
                assert first["shoal_agent_commands_total"] == 0
                assert first["shoal_agent_samples_total{device=meter}"] == 0
                assert first["shoal_agent_pipeline_waits_total{stream=digits}"] == 0
                served = {name for name in first if name.startswith("shoal_agent_inferences_total")}
                assert len(served) == 4

                await hub.command(Command(b"12345678", "ping", {}, 1, 1 << 50))
                await hub.session.publish(hub.topics.commands(NODE), b"garbage", durable=False)
                await hub.session.request(
                    hub.topics.inference(NODE, "digits"),
                    messages.encode(messages.InferRequest(b"12345678", "digits", [b"x"])),
                    reply_topic="answers/hub",
                    timeout_s=5,
                )
                await hub.until(lambda: len(hub.results) >= 3)
                seen = await asyncio.to_thread(scrape, free_port)
                assert seen["shoal_agent_commands_total"] == 1
                assert seen["shoal_agent_malformed_messages_total"] == 1
                assert seen["shoal_agent_inferences_total{by=nobody}"] == 1
                assert seen["shoal_agent_reconnects_total"] == 0
                for what in ("rows", "batches", "refused", "expired", "busy_seconds"):
                    assert seen[f"shoal_agent_inference_{what}_total"] == 0
                assert seen["shoal_agent_model_evictions_total"] == 0

                broker.abort()
                await until_scraped(free_port, "shoal_agent_connected", 0)
        with socket.socket() as probe:
            # Nothing listens once the agent has gone.
            assert probe.connect_ex(("127.0.0.1", free_port)) != 0


async def test_what_the_local_api_answered_is_counted_by_status(free_port):
    with short_folder() as folder:
        more = f"[metrics]\nport = {free_port}\n[local_api]\nport = 0"
        path = Board(folder).agent_toml(1, more=more)
        async with (
            app.running(load(path), recent=RecentLines(), stop=asyncio.Event()) as agent,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{agent.local_api.port}") as client,
        ):
            for question in ("/v2", "/v2", "/v2/models/digits"):
                await client.get(question)
            seen = await asyncio.to_thread(scrape, free_port)
    assert seen["shoal_agent_local_api_answers_total{status=200}"] == 2
    assert seen["shoal_agent_local_api_answers_total{status=404}"] == 1
    assert seen["shoal_agent_local_api_connections"] == 1
    assert seen["shoal_agent_local_api_turned_away_total"] == 0


async def test_a_command_that_no_key_signed_is_counted_and_does_not_come_again(free_port):
    key = Signer(b"k" * 32)
    trust = f'[trust]\ncommand_keys = ["{envelope.key_text(key.public_key)}"]'
    unsigned = messages.encode(Command(b"unsigned", "ping", {}, 1, 1 << 50))
    with short_folder() as folder:
        board = Board(folder)
        async with (
            Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
            Hub.open(broker.port, NODE) as hub,
        ):
            topic = hub.topics.commands(NODE)
            more = f"{trust}\n[metrics]\nport = {free_port}"
            config = load(board.agent_toml(broker.port, more=more))
            # The second run would get what the first one did not acknowledge.
            for command_id, refused in ((b"run 1...", 1), (b"run 2...", 0)):
                async with app.running(config, recent=RecentLines(), stop=asyncio.Event()):
                    await hub.until(lambda: bool(hub.presence) and hub.presence[-1].online)
                    if refused:
                        await hub.session.publish(topic, unsigned, durable=False)
                    command = messages.encode(Command(command_id, "ping", {}, 1, 1 << 50))
                    await hub.session.publish(topic, key.sign(command, topic=topic), durable=False)
                    await hub.until(lambda: hub.results[-1:] and hub.results[-1].state.is_final)
                    assert {update.id for update in hub.results} == {command_id}
                    seen = await asyncio.to_thread(scrape, free_port)
                    assert seen["shoal_agent_commands_total"] == 1
                    assert seen["shoal_agent_commands_refused_total{reason=unsigned}"] == refused
                    assert seen["shoal_agent_commands_refused_total{reason=unknown_key}"] == 0
                    hub.results.clear()


async def test_releases_that_nobody_signed_are_counted_where_a_root_asks_for_signatures(
    free_port, tmp_path
):
    signed = SignedRepository(tmp_path / "tuf", now=datetime.now(UTC))
    more = f"[trust]\nroot_file = '{signed.root_file}'\nmetadata = '{tmp_path}/tuf'"
    with short_folder() as folder:
        board = Board(folder)
        async with (
            Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
            Hub.open(broker.port, NODE) as hub,
        ):
            config = load(
                board.agent_toml(broker.port, more=f"{more}\n[metrics]\nport = {free_port}")
            )
            async with app.running(config, recent=RecentLines(), stop=asyncio.Event()):
                await hub.want(Release(digits.release_dir(1)))
                await until_scraped(free_port, "shoal_agent_releases_unsigned_total", 1)
                seen = await asyncio.to_thread(scrape, free_port)
                assert seen["shoal_agent_metadata_unverified_total"] == 0
                await hub.until(
                    lambda: (
                        hub.reported[-1:]
                        and any(
                            "nobody has signed" in model.reason for model in hub.reported[-1].models
                        )
                    )
                )


async def until_scraped(port: int, name: str, value: float) -> None:
    async with asyncio.timeout(5):
        while (await asyncio.to_thread(scrape, port))[name] != value:  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.01)


async def test_without_a_metrics_table_nothing_listens(monkeypatch):
    started = []
    monkeypatch.setattr(metrics, "start_http_server", lambda *given: started.append(given))
    with short_folder() as folder:
        path = Board(folder).agent_toml(1)
        async with app.running(load(path), recent=RecentLines(), stop=asyncio.Event()):
            assert started == []
