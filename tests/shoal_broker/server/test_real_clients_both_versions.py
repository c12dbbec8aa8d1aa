"""`shoal-broker --no-auth` as a process, with clients that other people wrote, in MQTT 5 and 3.1.1."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys

import pytest
from tests.shoal_broker.server.real_clients import (
    CLIENTS,
    MOSQUITTO_CLIENTS,
    Connect,
    Got,
    MosquittoClient,
    PahoClient,
)
from tests.support.mosquitto import Mosquitto

pytestmark = [pytest.mark.system, pytest.mark.slow]

VERSIONS = ("5", "3.1.1")
QUALITIES = (0, 1, 2)
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    log = tmp_path_factory.mktemp("broker") / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "shoal_broker", "--port", "0", "--no-auth"],
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        said = process.stdout.readline().decode()
        assert said.startswith("shoal-broker listening on 127.0.0.1:"), log.read_text()
        yield int(said.rpartition(":")[2])
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert process.returncode == 0
    assert "Traceback" not in log.read_text()


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture(params=CLIENTS)
def client(request):
    if request.param == "mosquitto" and not MOSQUITTO_CLIENTS:
        pytest.skip("mosquitto-clients is not installed")
    return CLIENTS[request.param]


@pytest.fixture
def name():
    """Nobody else's: of clients and of topics."""
    return f"n{next(NUMBERS)}"


@pytest.fixture
def connected(client, version, port, name):
    def connect(role="c", **options):
        return client.connected(Connect(port, version, f"{name}-{role}", **options))

    return connect


@pytest.mark.parametrize("qos", QUALITIES)
async def test_messages_come_back_in_order(connected, name, qos):
    payloads = [b"%d" % n for n in range(5)]
    async with connected() as one:
        await one.subscribe(f"{name}/t", qos)
        for payload in payloads:
            await one.publish(f"{name}/t", payload, qos=qos)
        got = [await one.next_message() for _ in payloads]
    assert got == [Got(f"{name}/t", payload, qos, False) for payload in payloads]


@pytest.mark.parametrize(("published", "subscribed"), [(1, 0), (2, 1), (1, 2)])
async def test_the_lower_quality_of_service_wins(connected, name, published, subscribed):
    async with connected() as one:
        await one.subscribe(f"{name}/t", subscribed)
        await one.publish(f"{name}/t", b"m", qos=published)
        assert (await one.next_message()).qos == min(published, subscribed)


async def test_wildcards_match(connected, name):
    async with connected("plus") as plus, connected("hash") as everything:
        await plus.subscribe(f"{name}/+/t", 1)
        await everything.subscribe(f"{name}/#", 1)
        topics = [f"{name}/a/t", f"{name}/a/b/t", f"{name}/b/t", name]
        for topic in topics:
            await plus.publish(topic, b"m", qos=1)
        assert [(await plus.next_message()).topic for _ in range(2)] == [topics[0], topics[2]]
        assert [(await everything.next_message()).topic for _ in topics] == topics


async def test_a_retained_message_is_given_kept_and_cleared(connected, name):
    topic = f"{name}/kept"
    async with connected("writer") as writer:
        await writer.publish(topic, b"old", qos=1, retain=True)
        await writer.publish(topic, b"kept", qos=1, retain=True)
        async with connected("reader") as reader:
            await reader.subscribe(topic, 1)
            assert await reader.next_message() == Got(topic, b"kept", 1, True)
            await writer.publish(topic, b"live", qos=1, retain=True)
            assert await reader.next_message() == Got(topic, b"live", 1, False)
        await writer.publish(topic, b"", qos=1, retain=True)
        async with connected("late") as late:
            await late.subscribe(f"{name}/#", 1)
            await writer.publish(f"{name}/other", b"first", qos=1)
            assert (await late.next_message()).payload == b"first"


async def test_a_will_goes_out_when_the_connection_is_cut_and_not_at_a_goodbye(
    connected, client, version, name
):
    async with connected("watcher") as watcher:
        await watcher.subscribe(f"{name}/w/#", 1)
        async with connected("polite", will=(f"{name}/w/polite", b"gone")) as polite:
            await polite.subscribe(f"{name}/x", 0)
        if client is MosquittoClient and version == "5":
            # It says goodbye with 0x04: disconnect, but with the will.
            assert (await watcher.next_message()).topic == f"{name}/w/polite"
        async with connected("cut", will=(f"{name}/w/cut", b"gone")) as cut:
            await cut.subscribe(f"{name}/x", 0)
            await cut.cut()
            assert await watcher.next_message() == Got(f"{name}/w/cut", b"gone", 1, False)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("farewell", ["goodbye", "cut"])
async def test_a_session_goes_on_over_a_reconnection(connected, name, farewell, qos):
    topic = f"{name}/t"
    async with connected("kept", kept=True) as kept:
        await kept.subscribe(topic, qos)
        if farewell == "cut":
            await kept.cut()
    payloads = [b"%d" % n for n in range(5)]
    async with connected("sender") as sender:
        for payload in payloads:
            await sender.publish(topic, payload, qos=qos)
    async with connected("kept", kept=True) as kept:
        # What waited comes with the connection; mosquitto_sub cannot connect without subscribing.
        await kept.subscribe(f"{name}/else", 1)
        got = [await kept.next_message() for _ in payloads]
    assert got == [Got(topic, payload, qos, False) for payload in payloads]


async def test_200_kilobytes_come_back_whole(connected, name):
    payload = bytes(range(256)) * 800
    async with connected() as one:
        await one.subscribe(f"{name}/large", 1)
        await one.publish(f"{name}/large", payload, qos=1)
        assert (await one.next_message()).payload == payload


@pytest.mark.parametrize("publisher", VERSIONS)
async def test_a_message_crosses_the_versions(client, port, name, publisher):
    subscriber = VERSIONS[1 - VERSIONS.index(publisher)]
    async with (
        client.connected(Connect(port, publisher, f"{name}-p")) as sender,
        client.connected(Connect(port, subscriber, f"{name}-s")) as receiver,
    ):
        await receiver.subscribe(f"{name}/t", 1)
        await sender.publish(f"{name}/t", b"m", qos=1)
        assert await receiver.next_message() == Got(f"{name}/t", b"m", 1, False)


@pytest.mark.parametrize("second", VERSIONS)
async def test_a_session_crosses_the_versions(client, port, name, second):
    first = VERSIONS[1 - VERSIONS.index(second)]
    async with client.connected(Connect(port, first, f"{name}-k", kept=True)) as kept:
        await kept.subscribe(f"{name}/t", 1)
    async with client.connected(Connect(port, first, f"{name}-s")) as sender:
        await sender.publish(f"{name}/t", b"m", qos=1)
    async with client.connected(Connect(port, second, f"{name}-k", kept=True)) as kept:
        await kept.subscribe(f"{name}/else", 1)
        assert (await kept.next_message()).payload == b"m"


@pytest.mark.skipif(not Mosquitto.found(), reason="mosquitto is not installed")
async def test_a_bridge_of_mosquitto_carries_messages_both_ways(version, port, name, tmp_path):
    protocol = "mqttv50" if version == "5" else "mqttv311"
    bridge = (
        f"allow_anonymous true\nconnection {name}\naddress 127.0.0.1:{port}\n"
        f"topic {name}/up out 1\ntopic {name}/down in 1\ntry_private false\n"
        f"bridge_protocol_version {protocol}\nnotifications false\n"
    )
    async with (
        Mosquitto.open(tmp_path, extra=bridge) as site,
        PahoClient.connected(Connect(site.port, version, f"{name}-site")) as below,
        PahoClient.connected(Connect(port, version, f"{name}-hub")) as above,
    ):
        await below.subscribe(f"{name}/down", 1)
        await above.subscribe(f"{name}/up", 1)
        await below.publish(f"{name}/up", b"up", qos=1)
        assert await above.next_message() == Got(f"{name}/up", b"up", 1, False)
        # It subscribes first of all, so it has done so by now.
        await above.publish(f"{name}/down", b"down", qos=1)
        assert await below.next_message() == Got(f"{name}/down", b"down", 1, False)


@pytest.mark.timeout(40)
async def test_quiet_clients_keep_themselves_alive(port, name):
    # mosquitto_sub refuses less than 5 seconds. The broker closes after 1.5 times that.
    async def stay(kind: str, version: str) -> None:
        keep_alive_s = 5 if kind == "mosquitto" else 1
        wanted = Connect(port, version, f"{name}-{kind}-{version}", keep_alive_s=keep_alive_s)
        async with CLIENTS[kind].connected(wanted) as quiet:
            await quiet.subscribe(f"{name}/{kind}/{version}", 1)
            await asyncio.sleep(keep_alive_s * 1.5 + 2)
            await quiet.publish(f"{name}/{kind}/{version}", b"still here", qos=1)
            assert (await quiet.next_message()).payload == b"still here"

    kinds = [kind for kind in CLIENTS if kind != "mosquitto" or MOSQUITTO_CLIENTS]
    async with asyncio.TaskGroup() as tasks:
        for kind, version in itertools.product(kinds, VERSIONS):
            tasks.create_task(stay(kind, version), name=f"{kind} {version}")
