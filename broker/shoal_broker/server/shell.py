"""The broker on asyncio: sockets and timers around the core. It decides nothing about MQTT.

Output is written once an iteration of the event loop for each connection, whatever caused it.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Self, cast

from shoal_broker.errors import ConfigError, ListenError
from shoal_broker.server import optional_parts
from shoal_broker.server.access_rules import AccessRules
from shoal_broker.server.config import BrokerConfig, Listener, Login, Tls
from shoal_broker.server.connection import Connection, State
from shoal_broker.server.core import BrokerCore
from shoal_broker.server.counters import Counters
from shoal_broker.server.event_log import EventLog
from shoal_broker.server.events import (
    AuthenticationWanted,
    ClientConnected,
    ClientDenied,
    ClientGone,
    ClientRefused,
)
from shoal_broker.server.files import Files
from shoal_broker.server.link import ANSWERS, DISK, TURN, Link
from shoal_broker.server.listening import let_in, listen
from shoal_broker.server.loop_lag import LoopLag
from shoal_broker.server.password_checks import PasswordChecks
from shoal_broker.server.rates import Addresses, Meter
from shoal_broker.server.revocation import Revocations
from shoal_broker.server.tls import REVOKED, Secured, TlsStream

if TYPE_CHECKING:
    from shoal_broker.server.bridge.bridge import Bridge
    from shoal_broker.server.durable.committer import Committer
    from shoal_broker.server.durable.gate import Gate

SWEEP_INTERVAL_S = 1.0
"""How late a will, an expiry or a keep alive may be noticed."""

SHUTDOWN_TIMEOUT_S = 1.0

SURPLUS_CONNECTIONS = 64
"""Beyond the limit these many at a time may hear that the broker is full; more are cut at once."""


class Broker:
    """A running broker. What it keeps is gone when it is closed, unless it is durable."""

    def __init__(self, config: BrokerConfig, files: Files, clock: Callable[[], float]) -> None:
        self.config = config
        self.id = secrets.token_hex(8)
        """What bridges know it by."""
        self.core = BrokerCore(
            config,
            new_client_id=_random_client_id,
            version=version("shoal"),
            broker_id=self.id,
        )
        self.bridges: list[Bridge] = []
        self.ports: list[int] = []
        """Of each listener, in the order of `config.listeners`."""
        self.metrics_port: int | None = None
        self.loop_lag = LoopLag()
        self.started_at_s = time.time()
        self._clock = clock
        self._event_log = EventLog(clock())
        self._files = files
        self._loop = asyncio.get_running_loop()
        self.tasks: asyncio.TaskGroup
        self._servers: list[asyncio.Server] = []
        self._links: set[Link] = set()
        self._unwelcome: set[Link] = set()
        self._passwords = PasswordChecks(self.core, clock=clock, after=self._after)
        self.revocations = Revocations(lambda: self.secured, self._go_by, clock=clock)
        self._addresses = Addresses(
            max_connections=config.max_connections_per_address or config.max_connections,
            connects_per_s=config.max_connects_per_s,
        )
        self._flush_scheduled = False
        self._gate: Gate | None = None
        self._not_read: set[Link] = set()
        """Because too much is not on the disk yet."""
        self._unread: list[Connection] = []
        """Who said more than a turn has room for; others are heard in between."""
        self._all_gone = asyncio.Event()
        self._aborted = False
        self._is_closing = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: BrokerConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> AsyncIterator[Self]:
        """Listen until the block ends; then say goodbye (0x8B) and close.

        Raises ListenError, PasswordFileError, CertificateFileError and DurabilityError.
        """
        files = await asyncio.to_thread(Files.read, config)
        broker = cls(config, files, clock)
        failure: Exception | None = None
        async with optional_parts.gate(
            config.durable_dir,
            broker.core.router,
            clock=clock,
            write=broker._released,
            read_on=broker._read_on,
            is_gone=broker._is_gone,
        ) as gate:
            broker._gate = gate
            await broker._listen()
            async with asyncio.TaskGroup() as tasks:
                broker.tasks = tasks
                working = [tasks.create_task(broker._sweep_forever(), name="broker.sweep")]
                if gate is not None:
                    working.append(tasks.create_task(gate.run(), name="broker.commits"))
                if any(tls.crl_file is not None for tls in broker.secured):
                    watch = broker.revocations.run()
                    working.append(tasks.create_task(watch, name="broker.revocations"))
                try:
                    async with (
                        optional_parts.metrics(config, broker) as broker.metrics_port,
                        optional_parts.bridges(
                            config.bridges,
                            broker.core,
                            broker_id=broker.id,
                            accept_inside=broker.accept_inside,
                            tasks=tasks,
                        ) as broker.bridges,
                    ):
                        # After the bridges: what the first client says has to reach them.
                        await broker._let_in()
                        yield broker
                except Exception as exc:  # noqa: BLE001 - raised below, without the group around it
                    failure = exc
                finally:
                    await broker._close()
                    for task in working:
                        task.cancel()
        if failure is not None:
            raise failure

    @property
    def port(self) -> int:
        """Of the first listener."""
        return self.ports[0]

    @property
    def committer(self) -> Committer | None:
        """What makes it durable; None when it is not."""
        return None if self._gate is None else self._gate.committer

    @property
    def listener_names(self) -> list[str]:
        """What the metrics call the listeners."""
        return [listener.name for listener in self.config.listeners]

    @property
    def links(self) -> Collection[Link]:
        """Every connection that is open now."""
        return self._links

    @property
    def websocket_port(self) -> int:
        """Of the first listener that speaks WebSocket. Raises StopIteration when there is none."""
        ports = zip(self.config.listeners, self.ports, strict=True)
        return next(port for listener, port in ports if listener.websocket)

    @property
    def secured(self) -> Mapping[Tls, Secured]:
        """What the listeners that speak TLS go by, as their files were when they were last read."""
        return self._files.secured

    @property
    def counters(self) -> Counters:
        """What was counted since the start."""
        return self.core.counters

    def sweep(self) -> None:
        """Do now what is due by the clock; happens by itself once a second."""
        now_s = self._clock()
        self._passwords.guesses.sweep(now_s)
        self._addresses.sweep(now_s)
        for link in self._not_read:
            # It may have spoken.
            link.connection.last_heard_s = now_s
        self.core.tick(now_s)
        self._event_log.sweep(now_s)
        self._after()
        if self._gate is not None:
            self._gate.sweep()

    async def read_again(self, access: AccessRules) -> None:
        """Use these access rules, and the files for TLS and passwords as they are now.

        Connections stay as they are but for the rules; who may no longer connect is sent away (0x98): users
        who are not in the password file any more or are banned, and certificates that were revoked.
        Raises PasswordFileError and CertificateFileError: then nothing has changed.
        """
        self._files = await asyncio.to_thread(Files.read, self.config)
        self.core.apply_access(access)
        self.core.dismiss_banned(self._clock())
        passwords = self._files.passwords
        if passwords is not None:
            self.core.dismiss_users(lambda user: user not in passwords, self._clock())
        self._send_revoked_away()
        self._after()

    def _go_by(self, secured: Mapping[Tls, Secured]) -> None:
        self._files = replace(self._files, secured=secured)
        self._send_revoked_away()
        self._after()

    def _send_revoked_away(self) -> None:
        secured = self.secured
        revoked = [
            link.connection
            for link in self._links
            if link.tls is not None and link.certificate in secured[link.tls].revoked.numbers
        ]
        self.core.dismiss(revoked, REVOKED, self._clock())

    def abort(self) -> None:
        """Drop the listener and every connection at once, as a kill would: no goodbye, no wills."""
        self._aborted = True
        self._stop_listening()
        for link in list(self._links):
            link.transport.abort()

    async def accept_inside(self, sock: socket.socket) -> None:
        """Serve one end of a pair of sockets whose other end is ours, too. Raises OSError."""
        if self._is_closing:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the broker is closing")
        buffer_bytes = self.config.write_buffer_bytes
        await self._loop.connect_accepted_socket(
            lambda: Link(self, login=Login.INSIDE, write_buffer_bytes=buffer_bytes), sock
        )

    # --- life

    async def _listen(self) -> None:
        try:
            for listener in self.config.listeners:
                server, port = await listen(listener.host, listener.port, _links(self, listener))
                self._servers.append(server)
                self.ports.append(port)
        except (ListenError, ConfigError):
            self._stop_listening()
            raise

    async def _let_in(self) -> None:
        for server, listener, port in zip(
            self._servers, self.config.listeners, self.ports, strict=True
        ):
            await let_in(server, listener.host, port)

    def _stop_listening(self) -> None:
        self._is_closing = True
        for server in self._servers:
            server.close()

    async def _sweep_forever(self) -> None:
        while True:
            due_s = self._loop.time() + SWEEP_INTERVAL_S
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self.loop_lag.note(due_s=due_s, now_s=self._loop.time())
            self.sweep()

    async def _close(self) -> None:
        self._stop_listening()
        if not self._aborted:
            self.core.shut_down()
            self._flush()
            if self._gate is not None:
                await self._gate.stop()
        self._check_all_gone()
        try:
            async with asyncio.timeout(SHUTDOWN_TIMEOUT_S):
                await self._all_gone.wait()
        except TimeoutError:
            for link in list(self._links):
                link.transport.abort()
            await asyncio.sleep(0)
        self._event_log.sweep(self._clock(), at_last=True)

    # --- the core's wishes

    def _after(self) -> None:
        """After every call of the core: its events now, its output at the end of this iteration."""
        for event in self.core.take_events():
            match event:
                case AuthenticationWanted():
                    passwords = self._files.passwords
                    if passwords is None:
                        raise AssertionError(
                            "authentication is wanted, but there is no password file"
                        )
                    self._passwords.begin(event, passwords, self.tasks)
                case ClientConnected() | ClientRefused() | ClientDenied() | ClientGone():
                    self._event_log.write(event, self._clock())
        for connection in self.core.take_unread():
            _link_of(connection).hold(TURN)
            self._unread.append(connection)
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._unread:
            self._take_turns()
        unsent = self.core.take_unsent()
        gate = self._gate
        if unsent:
            now_s = self._clock()
            for connection in unsent:
                output = connection.take_output() if gate is None else gate.pass_on(connection)
                self._write(connection, output, now_s)
            self._after()
        if gate is not None:
            gate.proceed()

    def _take_turns(self) -> None:
        unread, self._unread = self._unread, []
        for connection in unread:
            now_s = self._clock()
            messages_before = self.counters.messages_in
            self.core.read_on(connection, now_s)
            self._meter(connection, messages_before, 0, now_s)
            if not connection.awaits_turn:
                _link_of(connection).read_on(TURN)
        self._after()

    def _write(self, connection: Connection, output: bytes, now_s: float) -> None:
        link = _link_of(connection)
        if link.transport.is_closing():
            return
        if output:
            self.counters.sent_bytes += len(output)
            link.write(output)
        if connection.state is not State.CLOSED:
            link.hold_back()
            self.core.written(connection, now_s, writable=self._has_room(link))
        elif not connection.held_bytes:
            link.close()

    def _has_room(self, link: Link) -> bool:
        return link.writable and link.connection.held_bytes < self.config.write_buffer_bytes

    def _released(self, connection: Connection, output: bytes) -> None:
        """What was held back is on the disk."""
        self._write(connection, output, self._clock())
        link = _link_of(connection)
        if self._has_room(link):
            link.read_on(ANSWERS)
        self._schedule_flush()

    def _read_on(self) -> None:
        """Enough is on the disk to read those again that we stopped reading."""
        for link in self._not_read:
            link.read_on(DISK)
        self._not_read.clear()

    def _is_gone(self, connection: Connection) -> bool:
        return _link_of(connection) not in self._links

    # --- the links' news

    def opened(self, link: Link) -> Connection:
        """As LinkOwner."""
        config, now_s = self.config, self._clock()
        self._links.add(link)
        if link.login is Login.INSIDE:
            return self.core.open(peer=link.peer, owner=link, now_s=now_s, login=link.login)
        refusal = self._addresses.opened(link.address, now_s)
        connection = self.core.open(
            peer=link.peer,
            owner=link,
            now_s=now_s,
            login=link.login,
            unwelcome=None if refusal is None else (refusal.reason_code, refusal.reason),
        )
        if connection.unwelcome is not None:
            self._unwelcome.add(link)
            is_told = refusal is None or refusal.is_told
            if not is_told or len(self._unwelcome) > SURPLUS_CONNECTIONS:
                link.why_lost = connection.unwelcome[1]
                link.transport.abort()
        elif config.max_messages_per_s or config.max_bytes_per_s:
            link.meter = Meter(
                messages_per_s=config.max_messages_per_s,
                bytes_per_s=config.max_bytes_per_s,
                now_s=now_s,
            )
        return connection

    def received(self, connection: Connection, received: bytes) -> None:
        """As LinkOwner."""
        self.counters.received_bytes += len(received)
        messages_before = self.counters.messages_in
        now_s = self._clock()
        self.core.receive(connection, received, now_s)
        self._meter(connection, messages_before, len(received), now_s)
        self._after()
        if self._gate is not None and self._gate.is_full:
            link = _link_of(connection)
            link.hold(DISK)
            self._not_read.add(link)

    def _meter(
        self, connection: Connection, messages_before: int, size_bytes: int, now_s: float
    ) -> None:
        meter = _link_of(connection).meter
        if meter is not None:
            messages = self.counters.messages_in - messages_before
            wait_s = meter.take(messages=messages, size_bytes=size_bytes, now_s=now_s)
            if wait_s:
                self._slow_down(connection, wait_s, now_s)

    def _slow_down(self, connection: Connection, wait_s: float, now_s: float) -> None:
        if connection.state is State.CLOSED:
            return
        self.counters.slowed_down += 1
        _link_of(connection).hold_for(wait_s)
        # It is not the client's silence: its keep alive runs from when it can be heard again.
        connection.last_heard_s = now_s + wait_s

    def writable(self, connection: Connection, *, writable: bool) -> None:
        """As LinkOwner."""
        writable = writable and self._has_room(_link_of(connection))
        self.core.written(connection, self._clock(), writable=writable)
        if writable:
            self._after()

    def lost(self, link: Link, reason: str) -> None:
        """As LinkOwner."""
        self._links.discard(link)
        self._unwelcome.discard(link)
        if link.login is not Login.INSIDE:
            self._addresses.closed(link.address, self._clock())
        self._passwords.cancel(link)
        self._not_read.discard(link)
        if not self._aborted:
            self.core.lost(link.connection, self._clock(), reason)
            self._after()
        self._check_all_gone()

    def _check_all_gone(self) -> None:
        if not self._links:
            self._all_gone.set()


def _links(broker: Broker, listener: Listener) -> Callable[[], asyncio.BaseProtocol]:
    new_link: Callable[[], Link] = partial(_plain_link, broker, listener)
    if listener.websocket:
        new_link = optional_parts.websocket_links(broker, broker.config, listener)
    files = listener.tls
    if files is None:
        return new_link

    def secured_link() -> TlsStream:
        link = new_link()
        link.tls = files
        # Looked up each time: files are read again.
        return TlsStream(lambda: broker.secured[files], link, broker.counters)

    return secured_link


def _plain_link(broker: Broker, listener: Listener) -> Link:
    link = Link(
        broker,
        login=broker.config.login_at(listener),
        write_buffer_bytes=broker.config.write_buffer_bytes,
    )
    link.listener = listener.name
    return link


def _link_of(connection: Connection) -> Link:
    return cast("Link", connection.owner)


def _random_client_id() -> str:
    return f"auto-{secrets.token_hex(8)}"
