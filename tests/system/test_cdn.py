"""Many agents fetch a release through the broker; half of their processes are killed on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from tests.support.cdn import Cdn, retained, until
from tests.support.mosquitto import Mosquitto
from tests.support.programs import running

from shoal_broker.server import Broker, BrokerConfig
from shoal_contract.messages import CHUNK_BYTES, BlobRef
from shoal_contract.topics import Topics
from shoal_fleet.chunk_sender import SIDE_BY_SIDE

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

SUPPORT = Path(__file__).parents[1] / "support"
AGENTS, PUBLISHER = SUPPORT / "cdn_agents.py", SUPPORT / "killed_publisher.py"
HOSTS = 4
KILLED = HOSTS // 2
# Manifest, description, golden inputs, model.
SIZES = (400, 900, 30_000, 4 << 20)
TOTAL_BYTES = sum(SIZES)


@asynccontextmanager
async def embedded(folder):
    ready = folder / "broker-ready"
    log = folder / "broker.log"
    async with running("shoal_broker", "run", "--port", 0, log=log, ready_file=ready):
        yield int(ready.read_text())


@asynccontextmanager
async def mosquitto(folder, extra=""):
    async with Mosquitto.open(folder, extra=extra) as broker:
        yield broker.port


def retains_nothing(folder):
    return mosquitto(folder, "allow_anonymous true\nretain_available false")


BROKERS = [
    pytest.param(embedded, id="embedded"),
    pytest.param(
        mosquitto,
        id="mosquitto",
        marks=pytest.mark.skipif(
            Mosquitto.found() is None, reason="mosquitto is not installed (apt-get install)"
        ),
    ),
]


@dataclass
class Fleet:
    """Host processes of agents; one that was killed is started again on the same directories."""

    port: int
    folder: Path
    agents_a_host: int
    patience_s: float = 3.0

    @asynccontextmanager
    async def host(self, number: int):
        first = number * self.agents_a_host
        async with running(
            AGENTS,
            *("--port", self.port, "--state", self.folder, "--refs", self.folder / "refs.json"),
            *("--first", first, "--count", self.agents_a_host, "--patience", self.patience_s),
            log=self.folder / f"host-{number}.log",
        ) as program:
            yield program

    def tell(self, refs: list[BlobRef]) -> None:
        (self.folder / "refs.json").write_bytes(msgspec.json.encode(refs))

    def received_bytes(self, number: int) -> int:
        """How much came to the agents of a host since it was started."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / f"progress-{number * self.agents_a_host}").read_text())
        return 0

    def results(self, number: int) -> list[dict]:
        """How each agent of a host fared; none before all are through."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.folder / f"result-{number * self.agents_a_host}").read_text())
        return []

    def has(self, ref: BlobRef, content: bytes) -> int:
        """How many agents have exactly this."""
        stores = self.folder.glob(f"agent-*/blobs/{ref.digest.hex()}")
        return sum(path.read_bytes() == content for path in stores)


def hold_back(cdn: Cdn, after_bytes: int) -> asyncio.Event:
    """Let only so much out until the event is set: nobody is through when the kill comes."""
    gate = asyncio.Event()
    send = cdn.publisher._sender.send

    async def held_back(ref, indexes, *, retain):
        if cdn.publisher.sent_bytes >= after_bytes:
            await gate.wait()
        await send(ref, indexes, retain=retain)

    cdn.publisher._sender.send = held_back
    return gate


async def a_release_goes_out(broker, folder, *, agents: int, timeout_s: float) -> None:
    contents = [os.urandom(size) for size in SIZES]
    agents_a_host = agents // HOSTS
    async with (
        broker(folder) as port,
        Cdn.open(port, folder) as cdn,
        contextlib.AsyncExitStack() as hosts,
    ):
        fleet = Fleet(port, folder, agents_a_host)
        gate = hold_back(cdn, TOTAL_BYTES // 2)
        refs = [await cdn.store.add(content) for content in contents]
        fleet.tell(refs)
        programs = [await hosts.enter_async_context(fleet.host(n)) for n in range(HOSTS)]
        cdn.need(*refs)
        for number in range(KILLED):
            # Each at another point of its way.
            share = (number + 1) / (KILLED + 2) / 2
            await until(
                lambda number=number, share=share: (
                    fleet.received_bytes(number) >= share * agents_a_host * TOTAL_BYTES
                ),
                timeout_s=timeout_s,
            )
            programs[number].signal(signal.SIGKILL)
            await programs[number].ended()
            assert not fleet.results(number)
        gate.set()
        for number in range(KILLED):
            await hosts.enter_async_context(fleet.host(number))
        await until(lambda: all(map(fleet.results, range(HOSTS))), timeout_s=timeout_s)
        for ref, content in zip(refs, contents, strict=True):
            assert fleet.has(ref, content) == agents

        resumed = [result for number in range(KILLED) for result in fleet.results(number)]
        fetched_bytes = sum(result["fetched_bytes"] for result in resumed)
        held_bytes = sum(result["held_bytes"] for result in resumed)
        publisher = cdn.publisher
        print(
            f"\nagents {agents}, blob bytes {TOTAL_BYTES}, publisher bytes {publisher.sent_bytes},"
            f" resent chunks {publisher.resent_chunks}, sent on request"
            f" {publisher.requested_chunks}; resumed agents {len(resumed)}: held {held_bytes},"
            f" fetched {fetched_bytes} of {len(resumed) * TOTAL_BYTES}"
        )
        # Whatever the number of agents: one copy, and what was published again because it was missed.
        repaired = (publisher.resent_chunks + publisher.requested_chunks) * CHUNK_BYTES
        assert TOTAL_BYTES <= publisher.sent_bytes <= 1.03 * TOTAL_BYTES + repaired
        assert repaired <= TOTAL_BYTES
        assert held_bytes > 0
        assert fetched_bytes <= len(resumed) * TOTAL_BYTES - held_bytes // 2

        cdn.need_no_more()
        await until(
            lambda: publisher.places.retained_bytes == 0 and not publisher.places.states["retained"]
        )
        assert not await retained(port)


@asynccontextmanager
async def hosts_running(fleet: Fleet):
    async with contextlib.AsyncExitStack() as hosts:
        for number in range(HOSTS):
            await hosts.enter_async_context(fleet.host(number))
        yield


@pytest.mark.parametrize(
    "broker", [BROKERS[0], pytest.param(mosquitto, id="mosquitto", marks=pytest.mark.long)]
)
async def test_a_chunk_that_every_agent_misses_is_published_once_more(broker, tmp_path):
    agents, content = 40, os.urandom(1 << 20)
    async with broker(tmp_path) as port, Cdn.open(port, tmp_path) as cdn:
        fleet = Fleet(port, tmp_path, agents // HOSTS, patience_s=1.0)
        ref = await cdn.add(content)
        fleet.tell([ref])
        await cdn.until_published()
        # The broker loses one behind the publisher's back.
        topic = Topics().chunk(ref.digest, 5)
        await cdn.session.publish(topic, b"", retain=True, durable=False)
        async with hosts_running(fleet):
            await until(lambda: all(map(fleet.results, range(HOSTS))), timeout_s=60)
        assert fleet.has(ref, content) == agents
        asked = sum(r["asked_chunks"] for n in range(HOSTS) for r in fleet.results(n))
        publisher = cdn.publisher
        print(
            f"\nagents {agents}, asked for it {asked}, resent chunks {publisher.resent_chunks},"
            f" publisher bytes {publisher.sent_bytes} for {len(content)}"
        )
        assert 1 <= publisher.resent_chunks <= 3
        assert publisher.sent_bytes == len(content) + publisher.resent_chunks * CHUNK_BYTES


@pytest.mark.skipif(
    Mosquitto.found() is None, reason="mosquitto is not installed (apt-get install)"
)
async def test_agents_share_what_goes_out_on_request_where_nothing_is_retained(tmp_path):
    agents, content = 40, os.urandom(6 << 20)
    async with retains_nothing(tmp_path) as port, Cdn.open(port, tmp_path) as cdn:
        fleet = Fleet(port, tmp_path, agents // HOSTS, patience_s=1.0)
        ref = await cdn.add(content)
        fleet.tell([ref])
        async with hosts_running(fleet):
            await until(lambda: all(map(fleet.results, range(HOSTS))), timeout_s=90)
        assert fleet.has(ref, content) == agents
        publisher = cdn.publisher
        print(
            f"\nagents {agents}, nothing retained, sent on request {publisher.requested_chunks},"
            f" publisher bytes {publisher.sent_bytes} for {len(content)}"
        )
        assert publisher.resent_chunks == 0
        assert publisher.sent_bytes <= 4 * len(content)


@pytest.mark.parametrize("batches", [0, 1, 2], ids=["before-a-chunk", "half-way", "all-but-said"])
@pytest.mark.parametrize("is_needed", [True, False], ids=["needed", "needed-no-more"])
async def test_a_publisher_killed_at_any_moment_leaves_what_is_needed_and_nothing_else(
    tmp_path, batches, is_needed
):
    content = os.urandom(16 * CHUNK_BYTES)
    file = tmp_path / "content"
    file.write_bytes(content)
    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        port = broker.port
        async with running(
            PUBLISHER, port, tmp_path, file, batches, log=tmp_path / "killed.log"
        ) as program:
            assert await program.ended() == -signal.SIGKILL, program.log
        assert len(await retained(port)) == batches * SIDE_BY_SIDE
        async with Cdn.open(port, tmp_path) as cdn:
            ref = await cdn.store.add(content)
            if is_needed:
                cdn.need(ref)
                await cdn.until_published()
                chunks = await retained(port)
                topics = [Topics().chunk(ref.digest, index) for index in range(16)]
                assert b"".join(chunks[topic] for topic in topics) == content
                cdn.need_no_more()
                await until(lambda: cdn.publisher.places.retained_bytes == 0)
            else:
                cdn.publisher.look()
            async with asyncio.timeout(20):
                while await retained(port):
                    pass


@pytest.mark.parametrize("broker", BROKERS)
async def test_40_agents_fetch_a_release_and_half_of_them_are_killed_on_the_way(broker, tmp_path):
    await a_release_goes_out(broker, tmp_path, agents=40, timeout_s=40)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("broker", BROKERS)
async def test_300_agents_fetch_a_release_and_half_of_them_are_killed_on_the_way(broker, tmp_path):
    await a_release_goes_out(broker, tmp_path, agents=300, timeout_s=240)
