"""A `Link` on our own guarded codec: one asyncio protocol, no client library, a fraction of the CPU.

Reads what comes in and ends the connection when it must; `outgoing` decides when a packet leaves,
`client_packets` makes and reads the packets. What it does not do: reconnect, choose who gets a
message, or keep anything. No topic aliases, and nothing is published at QoS 2.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import structlog

from shoal_broker import client_packets, tcp, tls_failures
from shoal_broker.bus_errors import LinkError, RefusedByBrokerError, TrustError
from shoal_broker.client_packets import FAILURE_REASON, reason_text
from shoal_broker.codec import (
    ConnAckPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    Packet,
    PacketReader,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    SubAckPacket,
    UnsubAckPacket,
    encode,
    puback,
)
from shoal_broker.errors import ProtocolError
from shoal_broker.link import (
    NO_MATCHING_SUBSCRIBERS,
    Arrival,
    Greeting,
    Outbound,
    SessionConfig,
    Will,
)
from shoal_broker.outgoing import Outgoing, fail
from shoal_broker.reading import ReadingProtocol
from shoal_broker.tls import TlsFiles, client_context
from shoal_broker.tls_socket import LastWordsSocket

log = structlog.get_logger(__name__)

# Messages read ahead of the session before the socket is left alone (QoS 0 floods, brokers that
# send beyond the receive maximum): TCP pushes back, nothing is discarded.
READ_AHEAD_MESSAGES = 1024
# How long the broker gets to close after our DISCONNECT: closing first, with messages of its own
# unread, resets the connection, and a DISCONNECT that was not read yet is lost with it.
LINGER_S = 0.5
PROTOCOL_ERROR = 0x82
TOPIC_ALIAS_INVALID = 0x94

_EXACTLY_ONCE = 2
_PINGREQ = encode(PingReqPacket())


@asynccontextmanager
async def connect(config: SessionConfig, will: Will | None) -> AsyncIterator[CodecLink]:
    """Make one connection; leaving the context drops it.

    Raises LinkError, or TrustError when one end does not take the other.
    """
    hello = client_packets.connect_packet(config, will)
    link = await _open(config)
    try:
        await link.greet(hello, config)
        yield link
    finally:
        link.abort()


class CodecLink(ReadingProtocol):
    """See `shoal_broker.link.Link`. What asyncio's protocols have is for the event loop to call."""

    __slots__ = (
        "_arrivals",
        "_arrived",
        "_connack",
        "_gone",
        "_greeted",
        "_greeting",
        "_is_bridge",
        "_is_leaving",
        "_is_reading",
        "_last_inbound_s",
        "_lost",
        "_max_qos",
        "_out",
        "_reader",
        "_tls",
        "_transport",
    )

    def __init__(self, tls: TlsFiles | None = None) -> None:
        loop = asyncio.get_running_loop()
        self._tls = tls
        self._transport: asyncio.Transport
        self._out: Outgoing
        self._reader = PacketReader(client_packets.MAX_PACKET_BYTES)
        self._greeted: asyncio.Future[None] = loop.create_future()
        self._connack: ConnAckPacket | None = None
        self._greeting: Greeting | None = None
        self._max_qos = 0
        self._is_bridge = False
        # A list: READ_AHEAD_MESSAGES bounds it, and an empty deque is 760 bytes a connection.
        self._arrivals: list[Arrival] = []
        self._arrived: asyncio.Future[None] | None = None
        self._last_inbound_s = time.monotonic()
        self._is_reading = True
        self._is_leaving = False
        self._lost: LinkError | None = None
        self._gone: asyncio.Future[None] = loop.create_future()

    @property
    def greeting(self) -> Greeting:
        """What the broker granted."""
        if self._greeting is None:
            raise LinkError("the broker has not answered yet")
        return self._greeting

    @property
    def last_inbound_s(self) -> float:
        """`time.monotonic()` when bytes last came in; now, while it is we who do not read."""
        return self._last_inbound_s if self._is_reading else time.monotonic()

    @property
    def last_outbound_s(self) -> float:
        """`time.monotonic()` when a packet last went out."""
        return self._out.last_s

    @property
    def socket(self) -> socket.socket | None:
        """The TCP socket, for tests that look at its options."""
        found: socket.socket | None = self._transport.get_extra_info("socket")
        return found

    async def greet(self, hello: bytes, config: SessionConfig) -> None:
        """Send the CONNECT `hello` and wait for the CONNACK. Raises LinkError, TrustError."""
        self._is_bridge = config.is_bridge
        self._out.send(hello)
        try:
            async with asyncio.timeout(config.connect_timeout_s):
                await self._greeted
        except TimeoutError as exc:
            raise LinkError(f"no CONNACK within {config.connect_timeout_s:g} s") from exc
        except LinkError as exc:
            if isinstance(self._lost, TrustError):
                # What waited was given a LinkError of its own; here the kind counts.
                raise self._lost from self._lost.__cause__
            if self._tls is None:
                raise tls_failures.without_tls(exc) from exc.__cause__
            raise
        self._greeting = client_packets.greeting(self._granted(), config)
        self._max_qos = min(1, int(self._granted().max_qos))
        self._out.receive_maximum = self._greeting.receive_maximum
        self._out.maximum_packet_bytes = self._greeting.maximum_packet_bytes

    async def receive(self) -> Arrival:
        """Return the next message; what came in before the line broke comes first."""
        while not self._arrivals:
            self._check_alive()
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        arrival = self._arrivals.pop(0)
        if not self._is_reading and len(self._arrivals) <= READ_AHEAD_MESSAGES // 2:
            self._take_packets()
        return arrival

    def acknowledge(self, arrival: Arrival) -> bool:
        """Send the PUBACK (PUBREC where somebody else subscribed this session at QoS 2)."""
        if self._out.is_closed:
            return False
        if arrival.inbound.qos == _EXACTLY_ONCE:
            self._send(encode(PubRecPacket(arrival.packet_id)))
        else:
            self._send(puback(arrival.packet_id))
        return True

    async def publish(self, message: Outbound) -> bool:
        """Return at PUBACK (QoS 1) or when written to the socket (QoS 0)."""
        self._check_alive()
        if message.qos > self._max_qos:
            raise RefusedByBrokerError(
                f"{message.topic}: QoS {message.qos} is not available",
                reason_code=client_packets.QOS_NOT_SUPPORTED,
            )
        encode_message = partial(client_packets.publish_packet, message)
        if not message.qos:
            await self._out.write_out(encode_message)
            return True
        answer = await self._out.publish(encode_message)
        if not isinstance(answer, PubAckPacket):
            return True
        reason = int(answer.reason_code)
        if reason >= FAILURE_REASON:
            told = reason_text(reason, answer.reason_str)
            raise RefusedByBrokerError(
                f"{message.topic}: the broker refused the message ({told})", reason_code=reason
            )
        return reason != NO_MATCHING_SUBSCRIBERS

    async def subscribe(self, topic_filter: str, *, qos: int, subscription_id: int) -> None:
        """Return at SUBACK."""
        self._check_alive()
        granted = self._granted()
        if (reason := client_packets.unsupported(topic_filter, granted)) is not None:
            raise RefusedByBrokerError(
                f"{topic_filter}: the broker has no such subscriptions (reason 0x{reason:02x})",
                reason_code=reason,
            )
        number = subscription_id if granted.subscription_id_available else None
        answer = await self._out.request(
            partial(
                client_packets.subscribe_packet,
                topic_filter,
                qos,
                number,
                is_bridge=self._is_bridge,
            )
        )
        if isinstance(answer, SubAckPacket):
            reason = int(answer.reason_codes[0])
            if reason >= FAILURE_REASON:
                told = reason_text(reason, answer.reason_str)
                raise RefusedByBrokerError(
                    f"{topic_filter}: the broker refused the subscription ({told})",
                    reason_code=reason,
                )

    async def unsubscribe(self, topic_filter: str) -> None:
        """Return at UNSUBACK; a refusal is logged, for nothing could be done about it."""
        self._check_alive()
        answer = await self._out.request(partial(client_packets.unsubscribe_packet, topic_filter))
        if isinstance(answer, UnsubAckPacket):
            reason = int(answer.reason_codes[0])
            if reason >= FAILURE_REASON:
                log.warning("unsubscribe refused", topic_filter=topic_filter, reason_code=reason)

    def ping(self) -> None:
        """Send a PINGREQ, unless what was sent before has not left yet."""
        if self._out.is_writable:
            self._send(_PINGREQ)

    async def disconnect(self) -> None:
        """Send a normal DISCONNECT; return when it is written and the broker has closed, or lingers."""
        if self._lost is not None:
            return
        self._out.send_last(encode(DisconnectPacket()))
        self._is_leaving = True
        # To hear the broker close; what it still sends is discarded, and comes again.
        self._transport.resume_reading()
        done, _ = await asyncio.wait((self._gone,), timeout=LINGER_S)
        if not done:
            self._transport.close()
            await asyncio.wait((self._gone,))

    def abort(self, reason: LinkError | None = None) -> None:
        """Drop the connection now."""
        self._lose(reason or LinkError("the connection was dropped on our side"))
        self._transport.abort()

    # --- the event loop's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP stands."""
        self._transport = cast("asyncio.Transport", transport)
        self._out = Outgoing(self._transport)
        # Above nothing: a QoS 0 publish returns when its bytes are the kernel's. asyncio's TLS calls
        # at the mark, not above it, and holds up to 64 KiB below itself that it does not count.
        self._transport.set_write_buffer_limits(high=0 if self._tls is None else 1)

    def data_received(self, data: bytes) -> None:
        """Bytes came in."""
        self._last_inbound_s = time.monotonic()
        if self._lost is None and not self._is_leaving:
            self._reader.feed(data)
            self._take_packets()

    def pause_writing(self) -> None:
        """The socket takes no more."""
        self._out.pause()

    def resume_writing(self) -> None:
        """The socket has taken everything."""
        self._out.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """TCP is gone."""
        if self._tls is not None and isinstance(exc, OSError):
            error = tls_failures.explain(exc, self._tls)
            error.__cause__ = exc
        elif exc is not None:
            error = LinkError(f"the connection is gone: {exc}")
            error.__cause__ = exc
        elif self._is_leaving:
            error = LinkError("disconnected")
        else:
            error = LinkError("the broker closed the connection")
        self._lose(error)
        self._gone.set_result(None)

    # --- in

    def _take_packets(self) -> None:
        """Take what is complete, as far as the session has room for it; the rest stays unread."""
        try:
            while len(self._arrivals) < READ_AHEAD_MESSAGES:
                packet = self._reader.next_packet()
                if packet is None:
                    self._read_on()
                    break
                self._take(packet)
            else:
                self._is_reading = False
                self._transport.pause_reading()
        except ProtocolError as exc:
            self._refuse(exc)
            return
        self._out.advance()

    def _read_on(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            # The silence until now was ours.
            self._last_inbound_s = time.monotonic()
            self._transport.resume_reading()

    def _take(self, packet: Packet) -> None:
        """Raises ProtocolError for what a broker may not send now."""
        if self._connack is None:
            self._be_greeted(packet)
            return
        match packet:
            case PublishPacket():
                self._arrive(packet)
            case PubAckPacket():
                self._out.answer_publish(packet)
            case SubAckPacket() | UnsubAckPacket():
                if len(packet.reason_codes) != 1:
                    raise ProtocolError(PROTOCOL_ERROR, "not one reason for one topic filter")
                self._out.answer_request(packet)
            case PubRelPacket():
                self._send(encode(PubCompPacket(packet.packet_id)))
            case PingRespPacket():
                """It came in: that is all there is to it."""
            case DisconnectPacket():
                told = reason_text(int(packet.reason_code), packet.reason_str)
                self._end(LinkError(f"the broker ended the connection: {told}"))
            case _:
                raise ProtocolError(PROTOCOL_ERROR, f"{_name(packet)} from a broker")

    def _arrive(self, packet: PublishPacket) -> None:
        if packet.topic_alias is not None:
            raise ProtocolError(TOPIC_ALIAS_INVALID, "a topic alias, and we take none")
        self._arrivals.append(client_packets.arrival(packet, is_bridge=self._is_bridge))
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _be_greeted(self, packet: Packet) -> None:
        if not isinstance(packet, ConnAckPacket):
            raise ProtocolError(PROTOCOL_ERROR, f"{_name(packet)} before CONNACK")
        self._connack = packet
        if not self._greeted.done():
            self._greeted.set_result(None)

    # --- out, and the end

    def _send(self, data: bytes) -> None:
        if not self._out.send(data):
            self._lose(LinkError("the broker reads nothing but goes on sending"))
            self._transport.abort()

    def _refuse(self, exc: ProtocolError) -> None:
        """Tell the broker what it did wrong, and go."""
        reason = DisconnectReasonCode.PROTOCOL_ERROR
        with contextlib.suppress(ValueError):
            reason = DisconnectReasonCode(exc.reason_code)
        self._out.send_last(encode(DisconnectPacket(reason_code=reason)))
        error = LinkError(f"the broker broke MQTT 5: {exc}")
        error.__cause__ = exc
        self._end(error)

    def _end(self, error: LinkError) -> None:
        """Nothing that may follow counts."""
        self._reader = PacketReader(client_packets.MAX_PACKET_BYTES)
        self._lose(error)
        self._transport.close()

    def _granted(self) -> ConnAckPacket:
        if self._connack is None:
            raise LinkError("the broker has not answered yet")
        return self._connack

    def _check_alive(self) -> None:
        if self._lost is not None:
            raise LinkError(str(self._lost)) from self._lost.__cause__
        if self._is_leaving:
            raise LinkError("disconnected")

    def _lose(self, error: LinkError) -> None:
        """Everybody who waits hears of the loss; the first reason is the one that counts."""
        if self._lost is None:
            self._lost = error
            self._out.fail(error)
            fail(self._greeted, error)
            if self._arrived is not None:
                fail(self._arrived, error)


async def _open(config: SessionConfig) -> CodecLink:
    """A link whose TCP connection, and TLS where it is wanted, stands."""
    sock = await tcp.open_socket(config)
    if config.tls is not None:
        return await _secure(LastWordsSocket(fileno=sock.detach()), config, config.tls)
    try:
        _, link = await asyncio.get_running_loop().create_connection(CodecLink, sock=sock)
    except OSError as exc:
        sock.close()
        raise LinkError(f"{config.host}:{config.port} is gone already: {exc}") from exc
    except BaseException:
        sock.close()
        raise
    return link


async def _secure(sock: socket.socket, config: SessionConfig, tls: TlsFiles) -> CodecLink:
    """Raises LinkError, TrustError."""
    name = tls.server_name or config.host
    async with tls_failures.handshake_within(config.connect_timeout_s, tls):
        try:
            context = await asyncio.to_thread(client_context, tls)
            # Refuses a name that is none while the socket is ours.
            context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
        except BaseException:
            sock.close()
            raise
        try:
            _, link = await asyncio.get_running_loop().create_connection(
                partial(CodecLink, tls),
                sock=sock,
                ssl=context,
                server_hostname=name,
                # It is bounded above; a broker that does not say goodbye is not waited for.
                ssl_handshake_timeout=2 * config.connect_timeout_s,
                ssl_shutdown_timeout=LINGER_S,
            )
        except BaseException:
            # The socket is asyncio's now, which goes on when it is cancelled before its first
            # turn: it ends, and closes, when it reads the end.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            raise
    return link


def _name(packet: Packet) -> str:
    return type(packet).__name__.removesuffix("Packet").upper()
