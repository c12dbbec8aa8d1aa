"""MQTT over WebSocket (MQTT 5, section 6): the bytes of a Link in binary frames. Knows no MQTT.

The protocol itself is the `websockets` library's sans-I/O half (no dependencies, a release every few
months, wheels for aarch64; wsproto would bring h11 and is released once in years). What is decided
here: which requests become connections, and what ends one. Frames are a stream: a packet may span
several, and several may share one. No compression.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event
from websockets.protocol import State as WebSocketState
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from shoal_broker.loopback import is_loopback
from shoal_broker.server.config import BrokerConfig, Listener
from shoal_broker.server.connection import LARGEST_FIRST_PACKET_BYTES, State
from shoal_broker.server.link import Link, LinkOwner

PATH = "/mqtt"
SUBPROTOCOL = Subprotocol("mqtt")
ANY_ORIGIN = "*"

FRAME_SLACK_BYTES = 64 << 10
"""Beyond the largest packet: a frame may hold the end of one packet and the begin of the next."""

STRANGER_BYTES = LARGEST_FIRST_PACKET_BYTES + (64 << 10)
"""Until CONNECT is accepted, its handshake and framing included."""

# The library logs every connection; what is worth a line here is an event of the core.
_QUIET = logging.getLogger(__name__)
_QUIET.disabled = True


class WebSocketLink(Link):
    """One accepted socket on which WebSocket is spoken, from its HTTP request to its close frame."""

    def __init__(self, owner: LinkOwner, config: BrokerConfig, listener: Listener) -> None:
        super().__init__(
            owner,
            login=config.login_at(listener),
            write_buffer_bytes=config.write_buffer_bytes,
        )
        self.listener = listener.name
        self._listener = listener
        self._protocol = ServerProtocol(
            subprotocols=[SUBPROTOCOL],
            max_size=(None, config.max_packet_bytes + FRAME_SLACK_BYTES),
            logger=_QUIET,
        )
        self._stranger_bytes = 0

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes arrived."""
        if self.transport.is_closing():
            return
        if self.connection.state is not State.CONNECTED:
            self._stranger_bytes += len(data)
            if self._stranger_bytes > STRANGER_BYTES:
                self._end(CloseCode.MESSAGE_TOO_BIG, "too much before CONNECT was accepted")
                return
        protocol = self._protocol
        protocol.receive_data(data)
        if received := self._take(protocol.events_received()):
            self._owner.received(self.connection, received)
        self._write_out()

    def _take(self, events: list[Event]) -> bytes:
        """What there is of MQTT in these events."""
        received: list[bytes] = []
        for event in events:
            if isinstance(event, Request):
                self._shake_hands(event)
                if self._protocol.state is not WebSocketState.OPEN:
                    break
            elif isinstance(event, Frame):
                if event.opcode is Opcode.TEXT:
                    self._end(
                        CloseCode.UNSUPPORTED_DATA, "MQTT goes in binary messages, not in text"
                    )
                    break
                if event.opcode is Opcode.BINARY or event.opcode is Opcode.CONT:
                    received.append(bytes(event.data))
        return b"".join(received)

    def write(self, data: bytes) -> None:
        """Send bytes of MQTT, as one binary message."""
        if self._protocol.state is WebSocketState.OPEN:
            self._protocol.send_binary(data)
            self._write_out()

    def close(self) -> None:
        """Say goodbye in WebSocket's words, too, and close as any link does."""
        if self._protocol.state is WebSocketState.OPEN:
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            self.transport.write(b"".join(self._protocol.data_to_send()))
        super().close()

    # --- the opening handshake

    def _shake_hands(self, request: Request) -> None:
        protocol = self._protocol
        if protocol.writes or protocol.eof_sent:
            # Control frames behind a request that nobody has accepted: no client does that.
            self.why_lost = "spoke before the WebSocket handshake was over"
            self.transport.abort()
            return
        response = self._refusal(request) or protocol.accept(request)
        protocol.send_response(response)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            said = bytes(response.body or b"").decode().partition("\n")[0]
            self.why_lost = f"no WebSocket for MQTT ({response.status_code}): {said}"

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that is none for us; None: the library judges the rest."""
        if request.path.partition("?")[0] != PATH:
            return self._protocol.reject(404, f"MQTT is at {PATH}\n")
        if not origin_is_accepted(request.headers, self._listener):
            return self._protocol.reject(403, "pages of this origin may not connect\n")
        return None

    # --- the end

    def _end(self, code: CloseCode, reason: str) -> None:
        """End the connection for what the other side did."""
        self.why_lost = reason
        if self._protocol.state is WebSocketState.OPEN:
            self._protocol.fail(code, reason)
            self._write_out()
        else:
            self.transport.abort()

    def _write_out(self) -> None:
        protocol = self._protocol
        if not protocol.writes or self.transport.is_closing():
            return
        output = b"".join(protocol.data_to_send())
        if output:
            self.transport.write(output)
        if protocol.eof_sent:
            if self.why_lost is None:
                self.why_lost = _why(protocol)
            super().close()
        else:
            self.hold_back()


def origin_is_accepted(headers: Headers, listener: Listener) -> bool:
    """Whether who asks may connect: a program, or a page whose origin is one of those configured.

    Without any configured: a page that names the host it connects to as its own, and on loopback
    only by an address or `localhost`, for any page can have a name of its own lead there.
    """
    origins = headers.get_all("Origin")
    if not origins or ANY_ORIGIN in listener.origins:
        return True
    if len(origins) > 1:
        return False
    if listener.origins:
        return origins[0] in listener.origins
    hosts = headers.get_all("Host")
    if len(hosts) != 1:
        return False
    try:
        origin, host = urlsplit(origins[0]), urlsplit(f"//{hosts[0]}")
        is_ours = bool(host.hostname) and origin.netloc.lower() == host.netloc.lower()
    except ValueError:
        return False
    return is_ours and (not is_loopback(listener.host) or is_loopback(host.hostname or ""))


def _why(protocol: ServerProtocol) -> str:
    """What ended a connection that we did not end."""
    if protocol.parser_exc is not None:
        return f"broke the WebSocket protocol: {protocol.parser_exc}"
    if protocol.handshake_exc is not None:
        return f"no WebSocket handshake: {protocol.handshake_exc}"
    if protocol.close_rcvd is not None:
        return f"closed the WebSocket: {protocol.close_rcvd}"
    return "connection lost"
