"""What an operator finds on /metrics, and in the log while clients are refused by the thousand."""

from __future__ import annotations

import asyncio
import urllib.request
from contextlib import AsyncExitStack

import structlog.testing
from prometheus_client.parser import text_string_to_metric_families
from tests.support.bridged_brokers import bridge, client, until
from tests.support.mosquitto import free_port
from websockets.asyncio.client import connect

from shoal_broker.codec import ConnectPacket, PacketReader, encode
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.loop_lag import WINDOW, LoopLag
from shoal_broker.server.passwords import set_password


async def scrape(broker):
    """Every sample: its value by name and labels."""

    def read():
        url = f"http://127.0.0.1:{broker.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.read().decode()

    text = await asyncio.to_thread(read)
    return {
        (sample.name.removeprefix("shoal_broker_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def answer_to(broker, *packets):
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    writer.write(b"".join(map(encode, packets)))
    answers = PacketReader()
    async with asyncio.timeout(5):
        while (packet := answers.next_packet()) is None:
            answers.feed(await reader.read(1_000))
    writer.transport.abort()
    return packet


async def test_every_kind_of_connection_session_and_refusal_is_counted(tmp_path):
    users = tmp_path / "users"
    set_password(users, "u", "right")
    config = BrokerConfig(
        port=0,
        websocket_port=0,
        metrics_port=0,
        password_file=users,
        bridges=(bridge(free_port(), ("t", "in")),),
    )
    async with Broker.open(config) as broker, AsyncExitStack() as stack:
        hello = ConnectPacket("c", username="u", password=b"right", session_expiry_interval=60)
        websocket = await stack.enter_async_context(
            connect(f"ws://127.0.0.1:{broker.websocket_port}/mqtt", subprotocols=["mqtt"])
        )
        await websocket.send(encode(hello))
        await websocket.recv()
        wrong = ConnectPacket("d", username="u", password=b"wrong")
        assert int((await answer_to(broker, wrong)).reason_code) == 0x86
        assert int((await answer_to(broker, ConnectPacket("$e"))).reason_code) == 0x85
        _, silent = await asyncio.open_connection("127.0.0.1", broker.port)
        await until(lambda: len(broker.links) == 3)
        found = await scrape(broker)
        assert found["connected", "mqtt:0"] == 1
        assert found["connected", "ws:0"] == 1
        assert found["connected", "inside"] == 1
        assert found["refusals_total", "0x86"] == 1
        assert found["refusals_total", "0x85"] == 1
        assert found["authentication_failures_total",] == 2
        assert (found["sessions", "connected"], found["sessions", "absent"]) == (2, 0)
        assert found["received_bytes_total",] > len(encode(hello))
        assert found["sent_bytes_total",] > 0
        assert found["bridge_connected", "up"] == 0
        assert ("bridge_oldest_seconds", "up") not in found
        assert found["start_time_seconds",] == broker.started_at_s
        assert ("process_resident_memory_bytes",) in found
        silent.transport.abort()
        await websocket.close()
        await until(lambda: len(broker.links) == 1)
        found = await scrape(broker)
        assert (found["sessions", "connected"], found["sessions", "absent"]) == (1, 1)
        assert found["refusals_total", "none"] == 1


async def test_a_bridge_tells_what_crosses_what_waits_and_for_how_long(tmp_path):
    async with Broker.open(BrokerConfig(port=0)) as upstream:
        ways = (("t/#", "both"),)
        queued = {"queue_file": str(tmp_path / "queue.db")}
        bridges = (
            bridge(upstream.port, *ways, name="there"),
            bridge(free_port(), *ways, name="away", **queued),
        )
        async with (
            Broker.open(BrokerConfig(port=0, metrics_port=0, bridges=bridges)) as broker,
            client(broker.port, "l", "t/#") as (local, got),
            client(upstream.port, "r") as (remote, _),
        ):
            there, away = broker.bridges
            await until(lambda: there.is_connected)
            await local.publish("t/1", b"out", durable=False)
            await remote.publish("t/2", b"in", durable=False)
            await got.wait_payload(b"in")
            await until(lambda: away.waiting.messages == 2)
            await until(lambda: away.waiting.oldest_s > 0)
            found = await scrape(broker)
            assert found["bridge_connected", "there"] == 1
            assert found["bridge_connected", "away"] == 0
            assert found["bridge_messages_total", "there", "out"] == 1
            assert found["bridge_messages_total", "there", "in"] == 1
            assert found["bridge_queued_messages", "away"] == 2
            assert found["bridge_queued_bytes", "away"] > 0
            assert found["bridge_oldest_seconds", "away"] > 0
            assert found["bridge_queued_messages", "there"] == 0
            assert found["bridge_lost_total", "away", "loop"] == 0


async def test_a_durable_broker_tells_how_long_its_commits_take(tmp_path):
    config = BrokerConfig(port=0, metrics_port=0, durable_dir=tmp_path)
    async with Broker.open(config) as broker, client(broker.port, "l", "t") as (session, _):
        await session.publish("t", b"kept", durable=False, retain=True)
        found = await scrape(broker)
        assert found["accepting",] == 1
        assert found["commit_seconds_count",] >= 1
        assert found["commit_seconds_sum",] > 0


async def test_a_storm_of_refused_clients_leaves_few_lines_and_their_number():
    now = {"s": 100.0}
    with structlog.testing.capture_logs() as lines:
        async with Broker.open(BrokerConfig(port=0), clock=lambda: now["s"]) as broker:
            for _ in range(300):
                _, writer = await asyncio.open_connection("127.0.0.1", broker.port)
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                await writer.drain()
                writer.transport.abort()
            await until(lambda: broker.counters.refused == 300)
            now["s"] += 5
            broker.sweep()
    refused = [line for line in lines if line["event"] == "client refused"]
    assert len(refused) == 50
    assert {"peer", "reason_code", "reason", "log_level"} <= refused[0].keys()
    (left_out,) = (line for line in lines if line["event"] == "log lines left out")
    assert (left_out["left_out"], left_out["count"]) == ("client refused", 250)


async def test_a_user_name_of_64_kb_is_no_line_of_64_kb():
    with structlog.testing.capture_logs() as lines:
        async with Broker.open(BrokerConfig(port=0)) as broker:
            await answer_to(broker, ConnectPacket("c", username="u" * 60_000))
    assert max(len(str(line)) for line in lines) < 1_000


def test_the_lag_is_the_largest_of_the_last_minute():
    lag = LoopLag()
    assert lag.largest_s == 0
    lag.note(due_s=1.0, now_s=1.5)
    lag.note(due_s=2.0, now_s=1.9)
    assert lag.largest_s == 0.5
    for _ in range(WINDOW):
        lag.note(due_s=1.0, now_s=1.0)
    assert lag.largest_s == 0
