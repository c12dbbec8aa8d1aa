"""The broker with clients that other people wrote: paho, aiomqtt, mosquitto_pub and mosquitto_sub."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading

import aiomqtt
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.passwords import set_password

MOSQUITTO = shutil.which("mosquitto_pub") and shutil.which("mosquitto_sub")


@pytest.fixture
async def broker():
    async with Broker.open(BrokerConfig(port=0)) as running:
        yield running


def aio(broker, **options):
    return aiomqtt.Client(
        "127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5, timeout=5, **options
    )


def properties(kind, **values):
    made = Properties(kind)
    for name, value in values.items():
        setattr(made, name, value)
    return made


async def test_aiomqtt_requests_and_gets_a_reply(broker):
    async def serve(ready):
        async with aio(broker, identifier="server") as server:
            await server.subscribe("service", qos=1)
            ready.set()
            async for message in server.messages:
                reply = properties(
                    PacketTypes.PUBLISH, CorrelationData=message.properties.CorrelationData
                )
                await server.publish(
                    message.properties.ResponseTopic,
                    message.payload.upper(),
                    qos=1,
                    properties=reply,
                )
                return

    ready = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(ready))
        await ready.wait()
        async with aio(broker, identifier="asker") as asker:
            await asker.subscribe("answers/asker", qos=1)
            asked = properties(
                PacketTypes.PUBLISH, ResponseTopic="answers/asker", CorrelationData=b"\x80\x01"
            )
            await asker.publish("service", b"hello", qos=1, properties=asked)
            message = await anext(aiter(asker.messages))
            assert message.payload == b"HELLO"
            assert message.properties.CorrelationData == b"\x80\x01"


async def test_aiomqtt_session_survives_its_connection(broker):
    expiry = properties(PacketTypes.CONNECT, SessionExpiryInterval=60)
    options = {"identifier": "node", "clean_start": False, "properties": expiry}
    async with aio(broker, **options) as node:
        await node.subscribe("t", qos=1)
    async with aio(broker, identifier="sender") as sender:
        for n in range(20):
            await sender.publish("t", bytes([n]), qos=1)
    async with aio(broker, **options) as node, asyncio.timeout(5):
        messages = aiter(node.messages)
        assert [(await anext(messages)).payload for _ in range(20)] == [
            bytes([n]) for n in range(20)
        ]


async def test_aiomqtt_gets_wills_and_retained_messages(broker):
    async with aio(broker, identifier="watcher") as watcher, asyncio.timeout(5):
        await watcher.subscribe("p/+", qos=1)
        will = aiomqtt.Will("p/node", b"gone", qos=1, retain=True)
        messages = aiter(watcher.messages)
        with contextlib.suppress(aiomqtt.MqttError):
            async with aio(broker, identifier="node", will=will) as node:
                await node.publish("p/node", b"here", qos=1, retain=True)
                assert (await anext(messages)).payload == b"here"
                broker.core.router.sessions["node"].connection.owner.transport.abort()
                assert (await anext(messages)).payload == b"gone"


def paho_client(client_id):
    return paho.Client(
        CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTProtocolVersion.MQTTv5
    )


async def test_paho_publishes_and_is_told_what_became_of_it(broker):
    def talk():
        client = paho_client("paho")
        client.max_inflight_messages_set(50)
        got, done = [], threading.Event()
        acknowledged, settled = [], threading.Event()

        def on_publish(_client, _user, _mid, code, _properties):
            acknowledged.append(code.value)
            if len(acknowledged) == 200:
                settled.set()

        client.on_publish = on_publish

        def on_message(_client, _user, message):
            got.append((message.topic, message.payload, message.qos))
            if len(got) == 200:
                done.set()

        client.on_message = on_message
        client.on_connect = lambda c, *_: c.subscribe("t/#", qos=2)
        subscribed = threading.Event()
        granted = []
        client.on_subscribe = lambda _c, _u, _m, codes, _p: (
            granted.extend(code.value for code in codes),
            subscribed.set(),
        )
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        assert subscribed.wait(5)
        for n in range(200):
            client.publish(f"t/{n}", bytes([n]), qos=1)
        assert done.wait(5)
        assert settled.wait(5)
        client.disconnect()
        client.loop_stop()
        return granted, got, acknowledged

    granted, got, acknowledged = await asyncio.to_thread(talk)
    assert granted == [2]
    assert got == [(f"t/{n}", bytes([n]), 1) for n in range(200)]
    assert acknowledged == [0] * 200


async def test_aiomqtt_with_3_1_1_requests_from_a_client_with_5(broker):
    old = aiomqtt.Client(
        "127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V311, timeout=5, identifier="o"
    )
    async with asyncio.timeout(10), old, aio(broker, identifier="n") as new:
        await old.subscribe("answers", qos=1)
        await new.subscribe("service", qos=1)
        await old.publish("service", b"hello", qos=1)
        request = await anext(aiter(new.messages))
        await new.publish("answers", request.payload.upper(), qos=1)
        assert (await anext(aiter(old.messages))).payload == b"HELLO"


async def test_paho_with_3_1_is_told_that_its_version_is_not_spoken(broker):
    def talk():
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id="old",
            protocol=paho.MQTTProtocolVersion.MQTTv31,
            reconnect_on_failure=False,
        )
        answered = threading.Event()
        codes = []
        client.on_connect = lambda _c, _u, _f, code, _p: (codes.append(str(code)), answered.set())
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        assert answered.wait(5)
        client.disconnect()
        client.loop_stop()
        return codes[0]

    assert await asyncio.to_thread(talk) == "Unsupported protocol version"


async def test_paho_with_a_wrong_password_is_refused(tmp_path):
    users = tmp_path / "users"
    set_password(users, "u", "right")

    def talk(port, password):
        client = paho_client("p")
        client.username_pw_set("u", password)
        answered = threading.Event()
        codes = []
        client.on_connect = lambda _c, _u, _f, code, _p: (codes.append(code.value), answered.set())
        client.connect("127.0.0.1", port)
        client.loop_start()
        assert answered.wait(5)
        client.disconnect()
        client.loop_stop()
        return codes[0]

    async with Broker.open(BrokerConfig(port=0, password_file=users)) as broker:
        assert await asyncio.to_thread(talk, broker.port, "wrong") == 0x86
        assert await asyncio.to_thread(talk, broker.port, "right") == 0


@pytest.mark.system
@pytest.mark.skipif(not MOSQUITTO, reason="mosquitto-clients is not installed")
async def test_mosquitto_pub_reaches_mosquitto_sub(broker):
    address = ["-h", "127.0.0.1", "-p", str(broker.port), "-V", "mqttv5", "-q", "1"]
    listening = await asyncio.create_subprocess_exec(
        "mosquitto_sub",
        *address,
        *("-t", "a/+", "-C", "2", "-W", "10", "-F", "%t %p %r"),
        stdout=asyncio.subprocess.PIPE,
    )
    sending = await asyncio.create_subprocess_exec(
        "mosquitto_pub", *address, "-t", "a/kept", "-m", "retained", "-r"
    )
    assert await sending.wait() == 0
    async with asyncio.timeout(10):
        while not len(broker.core.router.subscriptions):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    sending = await asyncio.create_subprocess_exec(
        "mosquitto_pub",
        *address,
        "-t",
        "a/live",
        "-m",
        "hello",
        "-D",
        "publish",
        "content-type",
        "x",
    )
    assert await sending.wait() == 0
    output, _ = await listening.communicate()
    assert listening.returncode == 0
    lines = output.decode().splitlines()
    assert lines[0].startswith("a/kept retained")
    assert lines[1] == "a/live hello 0"
