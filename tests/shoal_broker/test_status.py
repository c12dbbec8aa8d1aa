"""`shoal-broker status`, on our broker and on Mosquitto."""

from __future__ import annotations

import argparse
import asyncio
import json

import pytest
import structlog.testing
from tests.support.bridged_brokers import bridge, until
from tests.support.mosquitto import Mosquitto, free_port

from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.status import cli as status
from shoal_broker.status.reading import Status, rows, status_of

MOSQUITTO = {
    "version": "mosquitto version 2.0.11",
    "uptime": "93784 seconds",
    "clients/connected": "12",
    "clients/disconnected": "3",
    "clients/maximum": "20",
    "load/publish/received/1min": "90.00",
    "publish/messages/received": "900",
    "load/publish/sent/1min": "nonsense",
    "retained messages/count": "53",
    "store/messages/count": "60",
    "store/messages/bytes": "1178",
    "connection/hq/state": "1",
    "connection/b/c/state": "0",
    "connection/hq/queued": "7",
}


async def ask(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    status.add_parser(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["status", *arguments])
    return await asyncio.to_thread(parsed.func, parsed)


def test_topics_become_facts_and_facts_become_lines():
    found = status_of(MOSQUITTO)
    assert found == Status(
        version="mosquitto version 2.0.11",
        uptime_s=93_784,
        clients_connected=12,
        clients_absent=3,
        clients_maximum=20,
        published=900,
        published_per_s=1.5,
        retained_messages=53,
        queued_messages=60,
        queued_bytes=1_178,
        bridges={"hq": True, "b/c": False},
        bridges_queued={"hq": 7},
    )
    assert list(rows(found)) == [
        ("version", "mosquitto version 2.0.11"),
        ("uptime", "1 d 2 h"),
        ("clients", "12 connected, 3 away, at most 20 so far"),
        ("messages in", "1.5/s, 900 since the start"),
        ("retained", "53"),
        ("queued", "60 messages, 1178 bytes"),
        ("bridge b/c", "DOWN"),
        ("bridge hq", "up, 7 messages wait"),
    ]


def test_what_is_no_number_is_left_out():
    assert list(rows(status_of({"uptime": "", "clients/connected": "-", "x": "y"}))) == []
    counted = {"uptime": "100 seconds", "publish/messages/sent": "1234"}
    assert dict(rows(status_of(counted)))["messages out"] == "1234 since the start, 12.3/s"
    assert dict(rows(status_of({"uptime": "59"})))["uptime"] == "59 s"
    assert dict(rows(status_of({"uptime": "61"})))["uptime"] == "1 min 1 s"
    assert dict(rows(status_of({"uptime": "3661"})))["uptime"] == "1 h 1 min"


def is_up(broker):
    told = broker.core.router.status.get("$SYS/broker/connection/up/state")
    return told is not None and told.content.payload == b"1"


async def test_a_bridge_is_seen_from_outside(capsys):
    with structlog.testing.capture_logs():
        async with (
            Broker.open(BrokerConfig(port=0)) as upstream,
            Broker.open(
                BrokerConfig(port=0, bridges=(bridge(upstream.port, ("t", "in")),))
            ) as broker,
        ):
            for each in (upstream, broker):
                await until(lambda each=each: is_up(each))
            for port in (upstream.port, broker.port):
                capsys.readouterr()
                assert await ask("--port", str(port), "--json") == 0
                told = json.loads(capsys.readouterr().out.splitlines()[-1])
                assert told["ok"]
                assert told["status"]["bridges"] == {"up": True}
            assert told["status"]["version"].startswith("shoal-broker version ")
            assert told["status"]["clients_connected"] >= 1


async def test_no_broker_is_exit_code_3(capsys):
    assert await ask("--port", str(free_port())) == 3
    assert "cannot be reached" in capsys.readouterr().out
    assert await ask("--port", str(free_port()), "--json") == 3
    assert json.loads(capsys.readouterr().out)["ok"] is False


async def test_a_missing_file_is_exit_code_2(capsys):
    assert await ask("--port", "1", "--password-file", "/nowhere/secret") == 2
    assert "/nowhere/secret" in capsys.readouterr().out


@pytest.mark.system
@pytest.mark.skipif(Mosquitto.found() is None, reason="mosquitto is not installed")
async def test_mosquitto_is_understood_and_one_that_hides_itself_is_exit_code_1(tmp_path, capsys):
    async with Mosquitto.open(tmp_path, extra="allow_anonymous true\nsys_interval 1") as mosquitto:
        assert await ask("--port", str(mosquitto.port)) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["broker", f"127.0.0.1:{mosquitto.port}"]
        assert lines[1].startswith("version          mosquitto version ")
        assert any(line.startswith("clients  ") for line in lines)
    async with Mosquitto.open(tmp_path, extra="allow_anonymous true\nsys_interval 0") as mosquitto:
        assert await ask("--port", str(mosquitto.port)) == 1
        assert "may this client read $SYS/#" in capsys.readouterr().out
