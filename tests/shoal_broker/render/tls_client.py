"""A plain MQTT 5 client over TLS for tests of brokers: paho, synchronous, every wait bounded."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Queue
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions
from tests.shoal_broker.render.rendered_mosquitto import Authority

WAIT_S = 5.0


class RefusedError(Exception):
    """The broker does not take us."""


@dataclass(frozen=True)
class Message:
    topic: str
    payload: bytes
    retain: bool


class TlsClient:
    def __init__(self, client: paho.Client) -> None:
        self._client = client
        self._messages: Queue[Message] = Queue()
        self._answers: Queue[Any] = Queue()
        self.settled = threading.Event()
        self.ended = threading.Event()
        self.refused = "no answer"
        self.session_present = False
        self.connack: Properties | None = None
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = lambda _c, _u, m: self._messages.put(
            Message(m.topic, bytes(m.payload), bool(m.retain))
        )
        client.on_publish = lambda *answer: self._answers.put(answer[3].value)
        client.on_subscribe = lambda *answer: self._answers.put(answer[3][0].value)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """At QoS 1; the reason code of the PUBACK."""
        self._client.publish(topic, payload, 1, retain)
        return self._answers.get(timeout=WAIT_S)

    def publish_and_be_cut(self, topic: str, payload: bytes) -> bool:
        """Whether the broker ends the connection at this message."""
        self._client.publish(topic, payload, 1)
        return self.ended.wait(WAIT_S)

    def subscribe(self, *topic_filters: str) -> None:
        for topic_filter in topic_filters:
            self._client.subscribe(topic_filter, options=SubscribeOptions(qos=1))
            self._answers.get(timeout=WAIT_S)

    def until(self, marker: bytes) -> list[Message]:
        """What comes before the message `marker`, which was published after everything else."""
        before = []
        while (message := self._messages.get(timeout=WAIT_S)).payload != marker:
            before.append(message)
        return before

    def drop(self) -> None:
        """Break the connection without a goodbye."""
        self._client.loop_stop()
        sock = self._client.socket()
        assert sock is not None
        sock.close()

    def _on_connect(self, _client, _userdata, flags, reason, properties) -> None:
        self.session_present = bool(flags.session_present)
        self.connack = properties
        self.refused = str(reason) if reason.is_failure else ""
        self.settled.set()

    def _on_disconnect(self, *_facts) -> None:
        self.ended.set()
        self.settled.set()


@contextmanager
def connected(
    port: int,
    authority: Authority,
    name: str | None,
    *,
    issuer: Authority | None = None,
    client_id: str | None = None,
    username: str | None = None,
    keep_session: bool = False,
    newest_tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    will: tuple[str, bytes] | None = None,
) -> Iterator[TlsClient]:
    """Connect with the certificate of `name` (None: without one). Raises RefusedError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(str(authority.folder / "ca.crt"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = newest_tls
    if name is not None:
        context.load_cert_chain(*(issuer or authority).issue(name))
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id or name or "nobody",
        protocol=MQTTProtocolVersion.MQTTv5,
        reconnect_on_failure=False,
    )
    client.tls_set_context(context)
    if username is not None:
        client.username_pw_set(username, "pretended")
    if will is not None:
        client.will_set(*will, qos=1)
    mine = TlsClient(client)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600 if keep_session else 0
    try:
        client.connect("127.0.0.1", port, clean_start=not keep_session, properties=properties)
    except OSError as exc:
        raise RefusedError(str(exc)) from exc
    client.loop_start()
    try:
        mine.settled.wait(WAIT_S)
        if mine.refused:
            raise RefusedError(mine.refused)
        yield mine
    finally:
        client.disconnect()
        client.loop_stop()
