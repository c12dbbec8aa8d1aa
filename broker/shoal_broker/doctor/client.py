"""The doctor's MQTT client: synchronous, one-shot, every wait bounded. paho-mqtt without a session.

It draws no conclusions: that is what the probes do.
"""

from __future__ import annotations

import secrets
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, Queue
from threading import Event
from typing import Any, TypeVar

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from shoal_broker import tls_failures
from shoal_broker.doctor.errors import (
    BrokenOffError,
    CutError,
    DoctorError,
    RefusedError,
    UnreachableError,
)
from shoal_broker.tls import TlsFiles, client_context
from shoal_broker.tls_socket import TlsSocket

T = TypeVar("T")

WAIT_S = 5.0
FAILURE_REASON = 0x80
# 0xff begins no CBOR item: what starts with it is no message of Shoal.
NO_CBOR = b"\xff"


@dataclass(frozen=True, slots=True)
class Target:
    """The broker in question and the names that the probes use on it."""

    host: str
    port: int
    username: str | None
    password: str | None = field(repr=False)
    tls: TlsFiles | None = None
    prefix: str = field(default_factory=lambda: f"shoal-doctor/{secrets.token_hex(6)}")

    def topic(self, name: str) -> str:
        """A topic of this run."""
        return f"{self.prefix}/{name}"


class ProbeClient:
    """A connected client whose every call waits, at most WAIT_S, for the broker's answer."""

    def __init__(self, client: paho.Client) -> None:
        self._client = client
        # None in one of them: the connection is gone, and nothing comes any more.
        self._messages: Queue[paho.MQTTMessage | None] = Queue()
        self._connacked = Event()
        self._suback: Queue[list[ReasonCode] | None] = Queue()
        self._puback: Queue[ReasonCode | None] = Queue()
        self.reason: ReasonCode | None = None
        self.connack: Properties | None = None
        self.session_present = False
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = lambda _client, _userdata, message: self._messages.put(message)
        client.on_subscribe = lambda *answer: self._suback.put(answer[3])
        client.on_publish = lambda *answer: self._puback.put(answer[3])

    def wait_connack(self) -> None:
        """Raise UnreachableError unless the broker takes us."""
        if not self._connacked.wait(WAIT_S):
            raise UnreachableError(
                f"no MQTT 5 CONNACK within {WAIT_S:g} s: is this an MQTT 5 broker?"
            )
        if self.reason is None:
            raise BrokenOffError("the connection broke before its CONNACK")
        if self.reason.value >= FAILURE_REASON:
            raise UnreachableError(f"the broker refuses the connection: {self.reason}")

    def subscribe(self, topic_filter: str) -> None:
        """Subscribe at QoS 1. Raises RefusedError, or CutError."""
        self._client.subscribe(topic_filter, options=SubscribeOptions(qos=1))
        for reason in _get(self._suback, f"no SUBACK for {topic_filter}"):
            if reason.value >= FAILURE_REASON:
                raise RefusedError(f"subscribing to {topic_filter} is refused: {reason}")

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None:
        """Publish at QoS 1. Raises RefusedError, or CutError."""
        sent = self._client.publish(topic, payload, 1, retain, properties)
        if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise CutError(f"cannot publish to {topic}: {paho.error_string(sent.rc)}")
        reason = _get(self._puback, f"no PUBACK for {topic}")
        if reason.value >= FAILURE_REASON:
            raise RefusedError(f"publishing to {topic} is refused: {reason}")

    def clear_retained(self, topic: str) -> None:
        """Remove the retained message of a topic."""
        self.publish(topic, b"", retain=True)

    def next_message(
        self, otherwise: str = "a message that was acknowledged is not delivered"
    ) -> paho.MQTTMessage:
        """Return the next message that came in; `otherwise` says what it means that none does."""
        return _get(self._messages, otherwise)

    def collect(self, *, quiet_s: float, within_s: float) -> Iterator[paho.MQTTMessage]:
        """Yield what comes in, until nothing does for `quiet_s` or `within_s` are over."""
        until_s = time.monotonic() + within_s
        with suppress(Empty):
            while (left_s := until_s - time.monotonic()) > 0:
                message = self._messages.get(timeout=min(quiet_s, left_s))
                if message is None:
                    raise CutError("the broker ended the connection")
                yield message

    def drain(self) -> int:
        """Wait a moment and return how many messages have come in since the last call."""
        count = 0
        with suppress(Empty):
            while self._messages.get(timeout=0 if count else 0.05) is not None:
                count += 1
        return count

    def drop(self) -> None:
        """Break the connection without a goodbye."""
        self._client.loop_stop()
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def _on_disconnect(self, *_facts: Any) -> None:
        self._connacked.set()
        for queue in (self._messages, self._suback, self._puback):
            queue.put(None)

    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: Any,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self.session_present = bool(flags.session_present)
        self.reason, self.connack = reason, properties
        self._connacked.set()


@contextmanager
def connected(
    target: Target,
    name: str,
    *,
    clean: bool = True,
    session_expiry_s: int = 0,
    will_topic: str | None = None,
    nodelay: bool = True,
    client_id: str | None = None,
    takes: bool = True,
) -> Iterator[ProbeClient]:
    """Connect as `name` of this run; leaving says goodbye. Raises UnreachableError.

    `client_id` is for a broker that wants a certain one. Without `takes` nothing that comes in is
    acknowledged: the broker keeps it for whom it was meant.
    """
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id or f"{target.prefix.replace('/', '-')}-{name}",
        protocol=MQTTProtocolVersion.MQTTv5,
        reconnect_on_failure=False,
        manual_ack=not takes,
    )
    client.connect_timeout = WAIT_S
    if target.tls is not None:
        client.tls_set_context(_context(target.tls))
    if target.username is not None:
        client.username_pw_set(target.username, target.password)
    if will_topic is not None:
        client.will_set(will_topic, b"gone", qos=1)
    probe = ProbeClient(client)
    sockets: list[socket.socket] = []

    def on_socket_open(_client: paho.Client, _userdata: Any, sock: Any) -> None:
        # On unless its effect is measured: our own Nagle would be blamed on the broker.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, nodelay)
        sockets.append(sock)

    client.on_socket_open = on_socket_open
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = session_expiry_s
    try:
        client.connect(
            target.host, target.port, keepalive=30, clean_start=clean, properties=properties
        )
    except (OSError, ValueError) as exc:
        raise UnreachableError(_why_not(exc, target.tls)) from exc
    client.loop_start()
    try:
        try:
            probe.wait_connack()
        except BrokenOffError as exc:
            raise _why_broken_off(exc, sockets, target.tls) from exc
        yield probe
    finally:
        client.disconnect()
        client.loop_stop()


def _get(queue: Queue[T | None], what: str) -> T:
    try:
        answer = queue.get(timeout=WAIT_S)
    except Empty:
        raise DoctorError(f"{what} (waited {WAIT_S:g} s)") from None
    if answer is None:
        queue.put(None)
        raise CutError(f"{what}: the broker ended the connection")
    return answer


def _context(tls: TlsFiles) -> ssl.SSLContext:
    context = client_context(tls)
    context.sslsocket_class = TlsSocket
    return context


def _why_not(exc: OSError | ValueError, tls: TlsFiles | None) -> str:
    if tls is not None and isinstance(exc, ssl.SSLError):
        return str(tls_failures.explain(exc, tls))
    if tls is not None and isinstance(exc, ConnectionResetError):
        return str(tls_failures.hung_up())
    return f"cannot be reached: {exc}"


def _why_broken_off(
    exc: BrokenOffError, sockets: list[socket.socket], tls: TlsFiles | None
) -> UnreachableError:
    if tls is None:
        return UnreachableError(f"{exc}: does this port want TLS (--ca-file)?")
    for sock in sockets:
        # In TLS 1.3 our certificate is refused behind the handshake, and paho keeps it to itself.
        if isinstance(sock, TlsSocket) and sock.failure is not None:
            return UnreachableError(_why_not(sock.failure, tls))
    return exc
