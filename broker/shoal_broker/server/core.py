"""The broker without I/O: received bytes in, bytes to send and events out.

The shell calls `open`, `receive`, `written`, `lost` and `tick`; after each it takes `take_unsent()`
(connections with something to write or to close) and `take_events()`. Time comes in as `now_s`,
seconds on a monotonic clock. Nothing here blocks, and nothing a client sends raises.
"""

from collections.abc import Callable, Iterable

from shoal_broker.codec import (
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    Packet,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
    UnsubAckPacket,
    UnsubAckReasonCode,
    UnsubscribePacket,
)
from shoal_broker.errors import ProtocolError
from shoal_broker.server.access_rules import AccessRules
from shoal_broker.server.admission import BANNED
from shoal_broker.server.config import BrokerConfig, Login
from shoal_broker.server.connection import Connection, State
from shoal_broker.server.counters import Counters
from shoal_broker.server.events import Event
from shoal_broker.server.inbound import Inbound
from shoal_broker.server.lifecycle import Lifecycle
from shoal_broker.server.reasons import words
from shoal_broker.server.router import STATUS_ROOT, Router
from shoal_broker.server.session_life import SessionLife
from shoal_broker.server.sessions import Session
from shoal_broker.server.status_topics import StatusTopics
from shoal_broker.server.subscribing import Subscribing

PROTOCOL_VIOLATION = 0x82

TURN = 1_000
"""Packets, messages delivered and retained ones looked at, before others are heard: some 10 ms."""
LARGEST_LOOK_UP = 1_000_000
"""Topic levels that one SUBSCRIBE may have looked at for retained messages: less than a second."""


class BrokerCore:
    """One broker. `new_client_id` names clients that leave it to us; bridges know us as `broker_id`."""

    def __init__(
        self,
        config: BrokerConfig,
        *,
        new_client_id: Callable[[], str],
        version: str = "unknown",
        broker_id: str = "",
    ) -> None:
        self.counters = Counters()
        self.router = Router(config, self.counters)
        self.connections: set[Connection] = set()
        self._subscribing = Subscribing(config, self.router)
        self._life = SessionLife(config, self.router, self.counters)
        self._inbound = Inbound(config, self.router, self.counters)
        self._lifecycle = Lifecycle(
            config, self.router, self._life, self.counters, new_client_id, broker_id
        )
        self._status = StatusTopics(
            config.sys_interval_s,
            self.router,
            self.counters,
            version=version,
            durable=config.durable_dir is not None,
        )
        self._config = config
        self._login = config.login_at(config.listeners[0])
        self._unsent: list[Connection] = []
        self._unread: list[Connection] = []

    # --- what the shell calls

    def open(
        self,
        *,
        peer: str,
        owner: object,
        now_s: float,
        login: Login | None = None,
        unwelcome: tuple[ConnAckReasonCode, str] | None = None,
    ) -> Connection:
        """A network connection was accepted, by the first listener unless `login` is given.

        `unwelcome`: what is to be said to its CONNECT.
        """
        config = self._config
        if login is not Login.INSIDE and len(self.connections) >= config.max_connections:
            limit = config.max_connections
            full = f"{limit} clients are connected, which is the limit"
            unwelcome = ConnAckReasonCode.SERVER_BUSY, full
        connection = Connection(
            peer=peer,
            owner=owner,
            now_s=now_s,
            max_packet_bytes=config.max_packet_bytes,
            unsent=self._unsent,
            unwelcome=unwelcome,
            login=login or self._login,
        )
        self.connections.add(connection)
        self.counters.connections += 1
        return connection

    def receive(self, connection: Connection, received: bytes, now_s: float) -> None:
        """Bytes arrived."""
        if connection.state is State.CLOSED:
            return
        connection.last_heard_s = now_s
        connection.reader.feed(received)
        if not connection.awaits_turn:
            self._read_on(connection, now_s)

    def read_on(self, connection: Connection, now_s: float) -> None:
        """The next turn of a connection that awaits one."""
        connection.awaits_turn = False
        self._read_on(connection, now_s)

    def authenticated(self, connection: Connection, now_s: float, *, accepted: bool) -> None:
        """The answer to AuthenticationWanted."""
        self._lifecycle.authenticated(connection, now_s, accepted=accepted)
        self._read_on(connection, now_s)

    def guessed_too_often(self, connection: Connection) -> None:
        """The answer to AuthenticationWanted where too many wrong passwords came from."""
        self._lifecycle.guessed_too_often(connection)

    def written(self, connection: Connection, now_s: float, *, writable: bool) -> None:
        """The output was handed to the network; `writable` while its buffer is below the limit."""
        connection.writable = writable
        session = connection.session
        if writable and session is not None and connection.state is State.CONNECTED:
            self.router.courier.pump(session, now_s)

    def lost(self, connection: Connection, now_s: float, reason: str) -> None:
        """The network connection is gone, whoever ended it."""
        self.connections.discard(connection)
        self._lifecycle.lost(connection, now_s, reason)

    def apply_access(self, rules: AccessRules) -> None:
        """From now on these rules hold."""
        self.router.apply_access(rules)

    def tick(self, now_s: float) -> None:
        """Time has passed: about once a second is right."""
        for connection in list(self.connections):
            self._lifecycle.check_patience(connection, now_s)
        for session in list(self.router.sessions.values()):
            self._life.run_clocks(session, now_s)
        self.router.count_queues()
        self.router.retained.drop_expired(now_s)
        self._status.tick(now_s)

    def dismiss(self, connections: Iterable[Connection], reason: str, now_s: float) -> None:
        """Send these away: they may no longer be here."""
        for connection in list(connections):
            self._lifecycle.dismiss(connection, reason, now_s)

    def dismiss_banned(self, now_s: float) -> None:
        """Send away the connected users whom the rules ban."""
        banned = [each for each in self.connections if each.identity in self.router.banned]
        self.dismiss(banned, BANNED, now_s)

    def dismiss_users(self, is_gone: Callable[[str], bool], now_s: float) -> None:
        """Send away the connected users who had a password and are gone."""
        gone = [
            connection
            for connection in self.connections
            if connection.login is Login.PASSWORD and is_gone(connection.identity or "")
        ]
        self.dismiss(gone, "this user is no longer known", now_s)

    def shut_down(self) -> None:
        """Say goodbye to everybody (0x8B). Sessions end with the process, so no wills are sent."""
        for connection in list(self.connections):
            if connection.state is State.CONNECTED:
                connection.send(
                    DisconnectPacket(reason_code=DisconnectReasonCode.SERVER_SHUTTING_DOWN)
                )
            self._lifecycle.close(connection)

    def take_unsent(self) -> list[Connection]:
        """Connections with output to write, or to be closed after it; each once."""
        self.router.courier.writer.forget()
        unsent = self._unsent[:]
        self._unsent.clear()
        for connection in unsent:
            self.counters.sent_packets += connection.output_packets
        return unsent

    def take_unread(self) -> list[Connection]:
        """Connections to `read_on`, and not to receive from before: each said more than a turn has room for."""
        unread = self._unread
        if unread:
            self._unread = []
        return unread

    def take_events(self) -> list[Event]:
        """What happened since the last call."""
        events = self._lifecycle.events
        if events:
            self._lifecycle.events = []
        if self.router.denials:
            events = [*events, *self.router.denials]
            self.router.denials.clear()
        return events

    # --- packets

    def _read_on(self, connection: Connection, now_s: float) -> None:
        reader = connection.reader
        # What is no CONNECT may announce a length that never comes.
        if connection.state is State.NEW and not reader.starts_with_connect:
            stranger = ProtocolError(PROTOCOL_VIOLATION, "the first packet is not CONNECT")
            self._lifecycle.answer_error(connection, stranger, now_s)
            return
        router = self.router
        turn_ends = router.work + TURN
        try:
            while connection.state is State.CONNECTED or connection.state is State.NEW:
                if router.work >= turn_ends:
                    connection.awaits_turn = True
                    self._unread.append(connection)
                    return
                packet = reader.next_packet()
                if packet is None:
                    return
                router.work += 1
                self.counters.received_packets += 1
                self._act(connection, packet, now_s)
        except ProtocolError as exc:
            self._lifecycle.answer_error(connection, exc, now_s)

    def _act(self, connection: Connection, packet: Packet, now_s: float) -> None:
        session = connection.session
        if session is None:
            if not isinstance(packet, ConnectPacket):
                raise ProtocolError(PROTOCOL_VIOLATION, "the first packet is not CONNECT")
            self._lifecycle.connect(connection, packet, now_s)
            return
        match packet:
            case PublishPacket():
                self._inbound.publish(connection, session, packet, now_s)
            case PubAckPacket():
                session.acknowledge(packet.packet_id)
                self.router.courier.pump(session, now_s)
            case PubRecPacket():
                self.router.courier.handed_over(connection, session, packet, now_s)
            case PubRelPacket():
                self._inbound.release(connection, session, packet.packet_id)
            case PubCompPacket():
                session.complete(packet.packet_id)
                self.router.courier.pump(session, now_s)
            case _:
                self._act_seldom(connection, session, packet, now_s)

    def _act_seldom(
        self, connection: Connection, session: Session, packet: Packet, now_s: float
    ) -> None:
        match packet:
            case PingReqPacket():
                connection.send(PingRespPacket())
            case SubscribePacket():
                self._subscribe(connection, session, packet, now_s)
            case UnsubscribePacket():
                answers = [
                    UnsubAckReasonCode(self._subscribing.unsubscribe(session, pattern))
                    for pattern in packet.patterns
                ]
                connection.send(UnsubAckPacket(packet.packet_id, answers))
            case DisconnectPacket():
                self._goodbye(connection, session, packet, now_s)
            case _:
                raise ProtocolError(
                    PROTOCOL_VIOLATION, f"{type(packet).__name__} has no place in this session"
                )

    def _subscribe(
        self, connection: Connection, session: Session, packet: SubscribePacket, now_s: float
    ) -> None:
        if any(wanted.pattern.startswith(STATUS_ROOT) for wanted in packet.topic_filters):
            self._status.refresh(now_s)
        look_up_ends = self.router.work + LARGEST_LOOK_UP
        codes = [
            self._subscribing.subscribe(
                session, wanted, packet.subscription_id, look_up_ends=look_up_ends
            )
            for wanted in packet.topic_filters
        ]
        connection.send(
            SubAckPacket(
                packet.packet_id,
                [SubAckReasonCode(code) for code in codes],
                reason_str=words(connection, max(codes), codes=len(codes)),
            )
        )
        self.router.courier.pump(session, now_s)

    def _goodbye(
        self, connection: Connection, session: Session, packet: DisconnectPacket, now_s: float
    ) -> None:
        interval_s = packet.session_expiry_interval
        if interval_s is not None:
            if interval_s and not connection.session_expiry_s:
                raise ProtocolError(
                    PROTOCOL_VIOLATION, "DISCONNECT gives a session an expiry that it never had"
                )
            session.expiry_interval_s = min(interval_s, self._config.max_session_expiry_s)
        self._lifecycle.leave(
            connection,
            now_s,
            with_will=packet.reason_code != DisconnectReasonCode.NORMAL_DISCONNECTION,
            reason_code=int(packet.reason_code),
            reason="client said goodbye",
        )
        self._lifecycle.close(connection)
