"""One accepted socket on asyncio: its options, its write buffer, its end. Knows no MQTT."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol, cast

from shoal_broker.near import hurry_if_near
from shoal_broker.reading import ReadingProtocol
from shoal_broker.server.config import Login, Tls
from shoal_broker.server.connection import Connection
from shoal_broker.server.rates import Meter, neighbourhood

GOODBYE_TIMEOUT_S = 5.0
"""For a client to read what we told it last; then the connection is cut."""

# Why a link is not read for a while; a bit each.
ANSWERS, PASSWORD, RATE, DISK, TURN = 1, 2, 4, 8, 16
"""It takes no answers, its password is being checked, it sends more than it may, too much is not on the disk,
not all that it said is acted on yet."""


class LinkOwner(Protocol):
    """Who is told what happens on a link."""

    def opened(self, link: Link) -> Connection:
        """A client connected."""

    def received(self, connection: Connection, received: bytes) -> None:
        """Bytes arrived."""

    def writable(self, connection: Connection, *, writable: bool) -> None:
        """The write buffer passed its limit, or is well below it again."""

    def lost(self, link: Link, reason: str) -> None:
        """The network connection is gone."""


class Link(ReadingProtocol):
    """One accepted socket."""

    listener = "mqtt"
    """Which listener accepted it, for the metrics."""

    def __init__(self, owner: LinkOwner, *, login: Login, write_buffer_bytes: int) -> None:
        self._owner = owner
        self.login = login
        self._write_buffer_bytes = write_buffer_bytes
        self.writable = True
        self.held = 0
        """Why it is not read; 0: it is."""
        self._cut: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport
        self.connection: Connection
        self.peer = self.address = "?"
        self.why_lost: str | None = None
        """Said by who knows better than the event loop."""
        self.tls: Tls | None = None
        """Of the listener that accepted it."""
        self.certificate: int | None = None
        """The number of the one that the client has shown."""
        self.meter: Meter | None = None
        self._pause: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket was accepted."""
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if self.login is Login.INSIDE:
            self.peer = self.listener = "inside"
        else:
            if peer:
                self.address = neighbourhood(peer[0])
                self.peer = f"{peer[0]}:{peer[1]}"
            _set_up(transport.get_extra_info("socket"))
        self.transport.set_write_buffer_limits(high=self._write_buffer_bytes)
        self.connection = self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes arrived."""
        self._owner.received(self.connection, data)

    def pause_writing(self) -> None:
        """asyncio: the write buffer is above its limit."""
        self.writable = False
        self._owner.writable(self.connection, writable=False)

    def resume_writing(self) -> None:
        """asyncio: the write buffer is well below its limit again."""
        self.writable = True
        self.read_on(ANSWERS)
        self._owner.writable(self.connection, writable=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the socket is closed."""
        for timer in (self._cut, self._pause):
            if timer is not None:
                timer.cancel()
        self._owner.lost(self, self.why_lost or ("connection lost" if exc is None else str(exc)))

    def write(self, data: bytes) -> None:
        """Send bytes of MQTT."""
        self.transport.write(data)

    def identified(self, name: str | None, certificate: int | None) -> None:
        """The TLS handshake is over; `name` is what the client's certificate says, and its number."""
        self.connection.identity = name
        self.certificate = certificate

    def hold(self, reason: int) -> None:
        """Do not read it until every reason to is gone."""
        if not self.held:
            self.transport.pause_reading()
        self.held |= reason

    def hold_for(self, wait_s: float) -> None:
        """Do not read it for so long: it sends more than it may."""
        self.hold(RATE)
        if self._pause is not None:
            self._pause.cancel()
        loop = asyncio.get_running_loop()
        self._pause = loop.call_later(wait_s, self.read_on, RATE)

    def read_on(self, reason: int) -> None:
        """This reason not to read it is gone."""
        if self.held:
            self.held &= ~reason
            if not self.held and not self.transport.is_closing():
                self.transport.resume_reading()

    def hold_back(self) -> None:
        """Stop reading from a client that takes no answers, or cannot have them yet: those have no other bound."""
        limit = 2 * self._write_buffer_bytes
        if self.transport.get_write_buffer_size() + self.connection.held_bytes > limit:
            self.hold(ANSWERS)

    def close(self) -> None:
        """Close once everything is written, at the latest in GOODBYE_TIMEOUT_S."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            loop = asyncio.get_running_loop()
            self._cut = loop.call_later(GOODBYE_TIMEOUT_S, self.transport.abort)


def _set_up(tcp: socket.socket) -> None:
    # With Nagle's algorithm a QoS 1 round trip takes 44 to 88 ms instead of 0.5.
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A client without keep alive that lost its power would stay connected for ever.
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    hurry_if_near(tcp)
