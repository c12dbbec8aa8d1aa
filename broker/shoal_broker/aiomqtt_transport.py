"""A `Link` over aiomqtt and paho-mqtt: the only module of the session that imports either.

aiomqtt connects in a thread, answers before the application has a message, and hides CONNACK
properties, PUBACK reasons and the loss of the line from those who wait. So this module reaches
into private names of exactly the pinned versions; `PRIVATE_NAMES` lists them for the test.
What it does not do: reconnect, choose who gets a message, or keep anything.
"""

# ruff: noqa: SLF001, ARG002 - private names and paho's callback signatures are what this file is for
from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiomqtt
import paho.mqtt.client as paho
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from shoal_broker import tls_failures
from shoal_broker.bus_errors import (
    IdentityRefusedError,
    LinkError,
    RefusedByBrokerError,
    TrustError,
)
from shoal_broker.link import (
    NO_MATCHING_SUBSCRIBERS,
    Arrival,
    Greeting,
    Inbound,
    Outbound,
    SessionConfig,
    Will,
)
from shoal_broker.tcp import open_socket
from shoal_broker.tls import TlsFiles, client_context
from shoal_broker.tls_socket import TlsSocket, handshake, pending_bytes

T = TypeVar("T")

PRIVATE_NAMES = {
    aiomqtt.Client: (
        "_client_connect",
        "_on_connect",
        "_on_message",
        "_on_publish",
        "_on_socket_close",
        "_on_socket_open",
        "_on_socket_register_write",
    ),
    paho.Client: ("_create_socket_connection", "_send_pingreq", "_sock_close"),
}
PRIVATE_ATTRIBUTES = {
    aiomqtt.Client: ("_client", "_connected", "_disconnected", "_loop"),
    paho.Client: ("_last_bytes_received", "_last_msg_out"),
}

# What paho would print to stderr arrives here as an exception anyway.
_QUIET = logging.getLogger("shoal_broker.paho")
_QUIET.setLevel(logging.CRITICAL)

# CONNACK reasons that waiting does not cure: malformed id, bad credentials, not authorised, banned,
# bad authentication method.
IDENTITY_REASONS = frozenset({0x85, 0x86, 0x87, 0x8A, 0x8C})
FAILURE_REASON = 0x80
# Messages read ahead of the session before the socket is left alone (QoS 0 floods, brokers that
# send beyond the receive maximum): TCP pushes back, nothing is discarded.
READ_AHEAD_MESSAGES = 1024


@asynccontextmanager
async def connect(config: SessionConfig, will: Will | None) -> AsyncIterator[AiomqttLink]:
    """Make one connection; leaving the context drops it.

    Raises LinkError, or TrustError when one end does not take the other.
    """
    sock = await open_socket(config)
    if config.tls is not None:
        sock = await _secured(sock, config, config.tls)
    client = _Client(config, will)
    link = AiomqttLink(client)
    try:
        await client.greet(sock, config.connect_timeout_s)
        yield link
    finally:
        link.abort()
        # Before the CONNECT the socket is not yet paho's to close.
        sock.close()


async def _secured(sock: socket.socket, config: SessionConfig, tls: TlsFiles) -> TlsSocket:
    """The socket that stands for `sock` from now on. Raises LinkError, TrustError."""
    try:
        async with tls_failures.handshake_within(config.connect_timeout_s, tls):
            context = await asyncio.to_thread(client_context, tls)
            return await handshake(sock, context, tls.server_name or config.host)
    except BaseException:
        sock.close()
        raise


class AiomqttLink:
    """See `shoal_broker.link.Link`."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    @property
    def greeting(self) -> Greeting:
        """What the broker granted."""
        greeting = self._client.greeting
        if greeting is None:
            raise LinkError("the broker has not answered yet")
        return greeting

    @property
    def last_inbound_s(self) -> float:
        """`time.monotonic()` when bytes last came in."""
        return self._client.engine._last_bytes_received

    @property
    def last_outbound_s(self) -> float:
        """`time.monotonic()` when a packet last went out."""
        return self._client.engine._last_msg_out

    @property
    def socket(self) -> socket.socket | None:
        """The TCP socket, for tests that look at its options."""
        sock = self._client.engine.socket()
        return sock if isinstance(sock, socket.socket) else None

    async def receive(self) -> Arrival:
        """Return the next message; what came in before the line broke comes first."""
        client = self._client
        while not client.arrivals:
            client.arrived.clear()
            await client.or_lost(client.arrived.wait())
        arrival = client.arrivals.popleft()
        client.resume_reading()
        return arrival

    def acknowledge(self, arrival: Arrival) -> bool:
        """Send the PUBACK."""
        if self._client.lost.done():
            return False
        rc = self._client.engine.ack(arrival.packet_id, arrival.inbound.qos)
        return rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    async def publish(self, message: Outbound) -> bool:
        """Return at PUBACK (QoS 1) or when written to the socket (QoS 0)."""
        client = self._client
        try:
            info = client.engine.publish(
                message.topic,
                message.payload,
                message.qos,
                message.retain,
                _publish_properties(message),
            )
        except ValueError as exc:
            raise RefusedByBrokerError(
                f"{message.topic}: cannot be sent: {exc}", reason_code=0x90
            ) from exc
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LinkError(f"cannot publish: {paho.error_string(info.rc)}")
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        client.publishes[info.mid] = answer
        try:
            reason = await client.or_lost(answer)
        finally:
            client.publishes.pop(info.mid, None)
        if reason >= FAILURE_REASON:
            raise RefusedByBrokerError(
                f"{message.topic}: the broker refused the message (reason 0x{reason:02x})",
                reason_code=reason,
            )
        return reason != NO_MATCHING_SUBSCRIBERS

    async def subscribe(self, topic_filter: str, *, qos: int, subscription_id: int) -> None:
        """Return at SUBACK."""
        properties = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call]
        properties.SubscriptionIdentifier = subscription_id
        try:
            codes = await self._client.or_lost(
                self._client.subscribe(
                    topic_filter, options=SubscribeOptions(qos=qos), properties=properties
                )
            )
        except (aiomqtt.MqttError, ValueError) as exc:
            raise LinkError(f"cannot subscribe to {topic_filter}: {exc}") from exc
        for code in codes:
            reason = code.value if isinstance(code, ReasonCode) else code
            if reason >= FAILURE_REASON:
                raise RefusedByBrokerError(
                    f"{topic_filter}: the broker refused the subscription (reason 0x{reason:02x})",
                    reason_code=reason,
                )

    async def unsubscribe(self, topic_filter: str) -> None:
        """Return at UNSUBACK."""
        try:
            await self._client.or_lost(self._client.unsubscribe(topic_filter))
        except aiomqtt.MqttError as exc:
            raise LinkError(f"cannot unsubscribe from {topic_filter}: {exc}") from exc

    def ping(self) -> None:
        """Send a PINGREQ."""
        if not self._client.lost.done():
            self._client.engine._send_pingreq()

    async def disconnect(self) -> None:
        """Send a normal DISCONNECT and wait until it is written."""
        self._client.engine.disconnect()
        with contextlib.suppress(LinkError):
            await self._client.or_lost(asyncio.get_running_loop().create_future())

    def abort(self, reason: LinkError | None = None) -> None:
        """Drop the connection now."""
        self._client.drop(reason or LinkError("the connection was dropped on our side"))


class _Client(aiomqtt.Client):
    """aiomqtt's client with its callbacks replaced by ones that keep what they are told."""

    def __init__(self, config: SessionConfig, will: Will | None) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = config.session_expiry_s
        properties.ReceiveMaximum = config.receive_maximum
        super().__init__(
            config.host,
            config.port,
            username=config.username,
            password=config.password,
            identifier=config.client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=config.clean_start,
            keepalive=config.keepalive_s,
            properties=properties,
            logger=_QUIET,
            # The session counts what is in flight; paho must not queue on top of it.
            max_inflight_messages=65_535,
            timeout=config.connect_timeout_s,
            will=None
            if will is None
            else aiomqtt.Will(will.topic, will.payload, will.qos, will.retain),
        )
        self.pending_calls_threshold = 1000
        # paho acknowledges on arrival otherwise, and looks at this only from now on: before CONNECT.
        self.engine.manual_ack_set(True)
        self.keepalive_s = config.keepalive_s
        self.tls = config.tls
        self.greeting: Greeting | None = None
        self.publishes: dict[int, asyncio.Future[int]] = {}
        self.arrivals: deque[Arrival] = deque()
        self.arrived = asyncio.Event()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._paused = False
        self._read_is_due = False
        self._disconnected.add_done_callback(self._on_lost)

    @property
    def engine(self) -> paho.Client:
        """The client underneath."""
        return self._client

    async def greet(self, sock: socket.socket, timeout_s: float) -> None:
        """CONNECT over `sock` and wait for the CONNACK.

        aiomqtt would connect in a thread, which cannot be cancelled; over a socket that is
        connected already, TLS and all, nothing blocks.
        """
        self.engine._create_socket_connection = lambda: sock  # type: ignore[method-assign]
        try:
            self._client_connect()
            async with asyncio.timeout(timeout_s):
                await self.or_lost(self._connected)
        except TrustError:
            raise
        except LinkError as exc:
            if self.tls is None:
                raise tls_failures.without_tls(exc) from exc.__cause__
            raise
        except MqttConnectError as exc:
            reason = exc.rc.value if isinstance(exc.rc, ReasonCode) else int(exc.rc or 0)
            if reason in IDENTITY_REASONS:
                raise IdentityRefusedError(
                    f"the broker refuses this identity: {exc.rc}", reason_code=reason
                ) from exc
            raise LinkError(f"the broker refuses the connection: {exc.rc}") from exc
        except TimeoutError as exc:
            raise LinkError(f"no CONNACK within {timeout_s:g} s") from exc
        except (OSError, ValueError, aiomqtt.MqttError) as exc:
            raise LinkError(f"cannot connect: {exc}") from exc

    async def or_lost(self, wanted: Awaitable[T]) -> T:
        """Wait for `wanted`, but no longer than the connection lives; then raise LinkError."""
        task: asyncio.Future[T] = asyncio.ensure_future(wanted)
        either: set[asyncio.Future[Any]] = {task, self.lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self.lost.result()
            raise LinkError("the connection is closed")
        finally:
            task.cancel()

    def drop(self, reason: LinkError) -> None:
        """Close the socket and tell everybody who waits."""
        self._fail(reason)
        self.engine._sock_close()

    def resume_reading(self) -> None:
        """Read from the socket again once the session has caught up."""
        if self._paused and len(self.arrivals) <= READ_AHEAD_MESSAGES // 2:
            self._paused = False
            sock = self.engine.socket()
            if sock is not None:
                self._loop.add_reader(sock.fileno(), self._read)
                self._read_what_is_pending()

    def _fail(self, reason: LinkError) -> None:
        if not self.lost.done():
            self.lost.set_exception(reason)
            # Whether anybody waits or not: the reader will see it.
            self.lost.exception()

    def _on_lost(self, disconnected: asyncio.Future[None]) -> None:
        cause = None if disconnected.cancelled() else disconnected.exception()
        error = LinkError(f"the connection is gone: {cause}" if cause else "disconnected")
        error.__cause__ = cause
        self._fail(error)

    def _read(self) -> None:
        try:
            self.engine.loop_read()
        except Exception as exc:  # noqa: BLE001 - whatever a packet makes paho raise ends the link
            self.drop(_link_error("the broker sent what paho cannot read", exc))
            return
        sock = self.engine.socket()
        if sock is None or self._paused:
            return
        if len(self.arrivals) >= READ_AHEAD_MESSAGES:
            self._paused = True
            self._loop.remove_reader(sock.fileno())
        else:
            self._read_what_is_pending()

    def _write(self) -> None:
        try:
            self.engine.loop_write()
        except Exception as exc:  # noqa: BLE001 - whatever it raises, nothing more can be sent
            self.drop(_link_error("the connection broke", exc))

    def _read_what_is_pending(self) -> None:
        """No selector wakes us for what TLS has decrypted already."""
        if not self._read_is_due and pending_bytes(self.engine.socket()):
            self._read_is_due = True
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._read_is_due = False
        if not self._paused and self.engine.socket() is not None:
            self._read()

    # --- callbacks of paho that aiomqtt binds in its constructor

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        # aiomqtt starts a task of its own here that wakes up every second for the keepalive; the
        # session keeps the keepalive instead.
        self._loop.add_reader(sock.fileno(), self._read)

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        # aiomqtt would do so a turn later, when the socket may be gone already.
        if sock.fileno() >= 0:
            self._loop.add_writer(sock.fileno(), self._write)

    def _on_socket_close(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        super()._on_socket_close(client, userdata, sock)
        error = LinkError("the broker closed the connection")
        if isinstance(sock, TlsSocket) and self.tls is not None and sock.failure is not None:
            error = tls_failures.explain(sock.failure, self.tls)
            error.__cause__ = sock.failure
        self._fail(error)

    def _on_connect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        self.greeting = Greeting(
            session_present=bool(flags.session_present),
            receive_maximum=getattr(properties, "ReceiveMaximum", 65_535),
            maximum_packet_bytes=getattr(properties, "MaximumPacketSize", None),
            retain_available=bool(getattr(properties, "RetainAvailable", 1)),
            keepalive_s=getattr(properties, "ServerKeepAlive", self.keepalive_s),
        )
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        properties = message.properties
        self.arrivals.append(
            Arrival(
                Inbound(
                    topic=message.topic,
                    payload=bytes(message.payload),
                    qos=message.qos,
                    retain=bool(message.retain),
                    response_topic=getattr(properties, "ResponseTopic", None),
                    correlation=getattr(properties, "CorrelationData", None),
                    message_expiry_s=getattr(properties, "MessageExpiryInterval", None),
                ),
                message.mid,
                tuple(getattr(properties, "SubscriptionIdentifier", ())),
            )
        )
        self.arrived.set()

    def _on_publish(
        self,
        client: paho.Client,
        userdata: Any,
        mid: int,
        reason_code: ReasonCode,
        properties: Properties,
    ) -> None:
        answer = self.publishes.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(reason_code.value)


def _link_error(what: str, cause: BaseException | None) -> LinkError:
    return LinkError(f"{what}: {cause}" if cause and str(cause) else what)


def _publish_properties(message: Outbound) -> Properties | None:
    if (
        message.expiry_s is None
        and not message.response_topic
        and message.correlation is None
        and message.properties is None
    ):
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if message.expiry_s is not None:
        properties.MessageExpiryInterval = message.expiry_s
    if message.response_topic:
        properties.ResponseTopic = message.response_topic
    if message.correlation is not None:
        properties.CorrelationData = message.correlation
    if message.properties is not None:
        properties.PayloadFormatIndicator = message.properties.payload_format
        if message.properties.content_type is not None:
            properties.ContentType = message.properties.content_type
        properties.UserProperty = list(message.properties.user)
    return properties
