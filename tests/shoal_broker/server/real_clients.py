"""Four MQTT clients that other people wrote, behind one small face: what a test says to one it says to all.

mosquitto_pub and mosquitto_sub are programs; paho runs a thread, gmqtt and aiomqtt on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import aiomqtt
import gmqtt
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

TIMEOUT_S = 10.0
KEPT_S = 3600
MOSQUITTO_CLIENTS = shutil.which("mosquitto_pub") and shutil.which("mosquitto_sub")
LARGEST_LINE_BYTES = 1 << 20


class Got(NamedTuple):
    """A message as the client told its application."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True)
class Connect:
    """How to connect. `kept`: the session outlives its connection. `will`: topic and payload, at QoS 1."""

    port: int
    version: str
    """`5` or `3.1.1`."""
    client_id: str
    kept: bool = False
    keep_alive_s: int = 60
    will: tuple[str, bytes] | None = None

    @property
    def is_mqtt5(self) -> bool:
        return self.version == "5"


class RealClient(Protocol):
    """A connected client."""

    async def subscribe(self, pattern: str, qos: int) -> None:
        """Returns once it was granted."""

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False
    ) -> None:
        """Returns once it was acknowledged."""

    async def next_message(self) -> Got: ...

    async def cut(self) -> None:
        """End the connection without a goodbye."""


# --- paho


class PahoClient:
    """paho with its thread."""

    def __init__(self, wanted: Connect) -> None:
        self._loop = asyncio.get_running_loop()
        self._messages: asyncio.Queue[Got] = asyncio.Queue()
        self._answers: dict[str, asyncio.Queue[object]] = {
            kind: asyncio.Queue() for kind in ("connect", "subscribe", "publish", "disconnect")
        }
        version = MQTTProtocolVersion.MQTTv5 if wanted.is_mqtt5 else MQTTProtocolVersion.MQTTv311
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=wanted.client_id,
            clean_session=None if wanted.is_mqtt5 else not wanted.kept,
            protocol=version,
            reconnect_on_failure=False,
        )
        if wanted.will is not None:
            client.will_set(*wanted.will, qos=1)
        client.on_connect = lambda _c, _u, _f, code, _p: self._answer("connect", code)
        client.on_subscribe = lambda _c, _u, _m, codes, _p: self._answer("subscribe", codes)
        client.on_publish = lambda _c, _u, mid, *_: self._answer("publish", mid)
        client.on_disconnect = lambda *_: self._answer("disconnect", None)
        client.on_message = lambda _c, _u, m: self._loop.call_soon_threadsafe(
            self._messages.put_nowait, Got(m.topic, m.payload, m.qos, m.retain)
        )

    def _answer(self, kind: str, what: object) -> None:
        # After a test has ended its event loop, nobody asks any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._answers[kind].put_nowait, what)

    async def _answered(self, kind: str) -> object:
        async with asyncio.timeout(TIMEOUT_S):
            return await self._answers[kind].get()

    @classmethod
    @asynccontextmanager
    async def connected(cls, wanted: Connect) -> AsyncIterator[PahoClient]:
        self = cls(wanted)
        options: dict = {}
        if wanted.is_mqtt5:
            expiry = Properties(PacketTypes.CONNECT)
            expiry.SessionExpiryInterval = KEPT_S if wanted.kept else 0
            options = {"clean_start": not wanted.kept, "properties": expiry}
        self._client.connect("127.0.0.1", wanted.port, wanted.keep_alive_s, **options)
        self._client.loop_start()
        try:
            code = await self._answered("connect")
            assert code == 0, code
            yield self
        finally:
            self._client.disconnect()
            await asyncio.to_thread(self._client.loop_stop)

    async def subscribe(self, pattern: str, qos: int) -> None:
        self._client.subscribe(pattern, qos)
        (granted,) = await self._answered("subscribe")  # type: ignore[misc]
        assert granted.value == qos

    async def publish(self, topic, payload, *, qos=0, retain=False) -> None:
        info = self._client.publish(topic, payload, qos, retain)
        assert await self._answered("publish") == info.mid

    async def next_message(self) -> Got:
        async with asyncio.timeout(TIMEOUT_S):
            return await self._messages.get()

    async def cut(self) -> None:
        self._client.socket().shutdown(socket.SHUT_RDWR)
        await self._answered("disconnect")


# --- gmqtt


class GmqttClient:
    """gmqtt, whose publish is a plain call."""

    def __init__(self, wanted: Connect) -> None:
        self._messages: asyncio.Queue[Got] = asyncio.Queue()
        self._granted: asyncio.Queue[tuple[int, ...]] = asyncio.Queue()
        options: dict = {}
        if wanted.is_mqtt5 and wanted.kept:
            options["session_expiry_interval"] = KEPT_S
        if wanted.will is not None:
            options["will_message"] = gmqtt.Message(*wanted.will, qos=1)
        self._client = client = gmqtt.Client(
            wanted.client_id, clean_session=not wanted.kept, **options
        )
        client.on_message = self._on_message
        client.on_subscribe = lambda _c, _m, granted, _p: self._granted.put_nowait(granted)

    async def _on_message(self, _client, topic, payload, qos, properties) -> int:
        self._messages.put_nowait(Got(topic, payload, qos, bool(properties["retain"])))
        return 0

    @classmethod
    @asynccontextmanager
    async def connected(cls, wanted: Connect) -> AsyncIterator[GmqttClient]:
        self = cls(wanted)
        version = 5 if wanted.is_mqtt5 else 4
        async with asyncio.timeout(TIMEOUT_S):
            await self._client.connect(
                "127.0.0.1", wanted.port, keepalive=wanted.keep_alive_s, version=version
            )
        try:
            yield self
        finally:
            await self._client.disconnect()

    async def subscribe(self, pattern: str, qos: int) -> None:
        self._client.subscribe(pattern, qos)
        async with asyncio.timeout(TIMEOUT_S):
            assert tuple(await self._granted.get()) == (qos,)

    async def publish(self, topic, payload, *, qos=0, retain=False) -> None:
        self._client.publish(topic, payload, qos=qos, retain=retain)
        async with asyncio.timeout(TIMEOUT_S):
            await self._client._persistent_storage.wait_empty()

    async def next_message(self) -> Got:
        async with asyncio.timeout(TIMEOUT_S):
            return await self._messages.get()

    async def cut(self) -> None:
        # It would connect again: with no retries allowed it still has one.
        self._client._is_active = False
        self._client._connection._transport.abort()


# --- aiomqtt


class AiomqttClient:
    """aiomqtt, which is paho on the event loop."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self._messages = aiter(client.messages)

    @classmethod
    @asynccontextmanager
    async def connected(cls, wanted: Connect) -> AsyncIterator[AiomqttClient]:
        options: dict = {"clean_session": not wanted.kept}
        version = aiomqtt.ProtocolVersion.V311
        if wanted.is_mqtt5:
            expiry = Properties(PacketTypes.CONNECT)
            expiry.SessionExpiryInterval = KEPT_S if wanted.kept else 0
            options = {"clean_start": not wanted.kept, "properties": expiry}
            version = aiomqtt.ProtocolVersion.V5
        if wanted.will is not None:
            options["will"] = aiomqtt.Will(*wanted.will, qos=1)
        client = aiomqtt.Client(
            "127.0.0.1",
            wanted.port,
            identifier=wanted.client_id,
            protocol=version,
            timeout=TIMEOUT_S,
            keepalive=wanted.keep_alive_s,
            **options,
        )
        self = None
        try:
            async with client:
                self = cls(client)
                yield self
        except aiomqtt.MqttError:
            # It has something to say about a connection that the test itself has cut.
            if self is None or self._client is not None:
                raise

    async def subscribe(self, pattern: str, qos: int) -> None:
        (granted,) = await self._client.subscribe(pattern, qos)
        assert int(getattr(granted, "value", granted)) == qos

    async def publish(self, topic, payload, *, qos=0, retain=False) -> None:
        await self._client.publish(topic, payload, qos, retain)

    async def next_message(self) -> Got:
        async with asyncio.timeout(TIMEOUT_S):
            message = await anext(self._messages)
        return Got(str(message.topic), message.payload, message.qos, message.retain)

    async def cut(self) -> None:
        self._client._client.socket().shutdown(socket.SHUT_RDWR)
        self._client = None


# --- mosquitto


class MosquittoClient:
    """A mosquitto_sub for each subscription, a mosquitto_pub for each message.

    So there is a connection, with its will, only from the first subscription on, and one is enough.
    """

    def __init__(self, wanted: Connect) -> None:
        self._wanted = wanted
        self._sub: asyncio.subprocess.Process | None = None
        self._early: deque[str] = deque()
        """Messages of a session that was kept come before the answer to SUBSCRIBE."""

    @classmethod
    @asynccontextmanager
    async def connected(cls, wanted: Connect) -> AsyncIterator[MosquittoClient]:
        self = cls(wanted)
        try:
            yield self
        finally:
            if self._sub is not None and self._sub.returncode is None:
                self._sub.terminate()
                await self._sub.wait()

    def _words(self) -> list[str]:
        version = "mqttv5" if self._wanted.is_mqtt5 else "mqttv311"
        return ["-h", "127.0.0.1", "-p", str(self._wanted.port), "-V", version]

    async def subscribe(self, pattern: str, qos: int) -> None:
        assert self._sub is None
        wanted = self._wanted
        words = [*self._words(), "-i", wanted.client_id, "-t", pattern, "-q", str(qos)]
        words += ["-k", str(wanted.keep_alive_s), "-d", "-F", "got %t %q %r %x"]
        if wanted.kept:
            words += ["-c", *(("-x", str(KEPT_S)) if wanted.is_mqtt5 else ())]
        if wanted.will is not None:
            topic, payload = wanted.will
            words += ["--will-topic", topic, "--will-payload", payload.decode(), "--will-qos", "1"]
        self._sub = await asyncio.create_subprocess_exec(
            *("stdbuf", "-oL"),  # its answer to SUBSCRIBE would stay in its buffer
            "mosquitto_sub",
            *words,
            stdout=asyncio.subprocess.PIPE,
            limit=LARGEST_LINE_BYTES,
        )
        granted = await self._line("Subscribed ")
        assert granted.endswith(f": {qos}"), granted

    async def _line(self, beginning: str) -> str:
        """The next line that begins so; what is said in between is left out."""
        assert self._sub is not None
        assert self._sub.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                line = await self._sub.stdout.readline()
                assert line, "mosquitto_sub has ended"
                text = line.decode().rstrip("\n")
                if text.startswith(beginning):
                    return text
                if text.startswith("got "):
                    self._early.append(text)

    async def publish(self, topic, payload, *, qos=0, retain=False) -> None:
        words = [*self._words(), "-t", topic, "-q", str(qos), *(("-r",) if retain else ())]
        sending = await asyncio.create_subprocess_exec(
            "mosquitto_pub",
            *words,
            "-s" if payload else "-n",
            stdin=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(TIMEOUT_S):
            await sending.communicate(payload)
        assert sending.returncode == 0

    async def next_message(self) -> Got:
        words = (self._early.popleft() if self._early else await self._line("got ")).split(" ")
        _, topic, qos, retain, *payload = words
        return Got(topic, bytes.fromhex("".join(payload)), int(qos), retain == "1")

    async def cut(self) -> None:
        assert self._sub is not None
        self._sub.kill()
        await self._sub.wait()


CLIENTS = {
    "mosquitto": MosquittoClient,
    "paho": PahoClient,
    "gmqtt": GmqttClient,
    "aiomqtt": AiomqttClient,
}
