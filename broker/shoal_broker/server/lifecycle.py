"""How connections and sessions begin and end: CONNECT, takeover, refusals, goodbyes, time-outs. No I/O.

What happens in between is `core`'s business.
"""

from collections import deque
from collections.abc import Callable

from shoal_broker.client_packets import BRIDGE_PROPERTY
from shoal_broker.codec import (
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    refused_version,
)
from shoal_broker.errors import ProtocolError
from shoal_broker.server import admission
from shoal_broker.server.aliases import TopicAliases
from shoal_broker.server.config import BrokerConfig, Login
from shoal_broker.server.connection import Connection, State
from shoal_broker.server.counters import Counters
from shoal_broker.server.events import (
    AuthenticationWanted,
    ClientConnected,
    ClientGone,
    ClientRefused,
    Event,
)
from shoal_broker.server.reasons import parting_words
from shoal_broker.server.router import Router
from shoal_broker.server.session_life import SessionLife
from shoal_broker.server.sessions import LARGEST_PACKET_ID, NOTHING

KEEP_ALIVE_GRACE = 1.5
"""MQTT 5, 3.1.2.10."""


MAX_REASON_CHARACTERS = 200


class Lifecycle:
    """Every transition of `Connection.state`. Adds to `events` what the shell is to know."""

    def __init__(
        self,
        config: BrokerConfig,
        router: Router,
        life: SessionLife,
        counters: Counters,
        new_client_id: Callable[[], str],
        broker_id: str,
    ) -> None:
        self.events: list[Event] = []
        self._config = config
        self._router = router
        self._life = life
        self._counters = counters
        self._new_client_id = new_client_id
        self._broker_id = broker_id
        self._waiting: dict[Connection, ConnectPacket] = {}

    # --- beginnings

    def connect(self, connection: Connection, packet: ConnectPacket, now_s: float) -> None:
        """The first packet arrived: refuse it, have its password checked, or accept it."""
        if packet.max_packet_size is not None:
            connection.max_packet_bytes = packet.max_packet_size
        if connection.unwelcome is not None:
            self._refuse(connection, *connection.unwelcome)
            return
        if connection.login is Login.INSIDE:
            self._accept(connection, packet, now_s)
            return
        refused = admission.refusal(packet, connection)
        if refused is not None:
            self._refuse(connection, *refused)
            return
        if connection.login is not Login.PASSWORD:
            self._accept(connection, packet, now_s)
            return
        connection.state = State.AUTHENTICATING
        self._waiting[connection] = packet
        self.events.append(
            AuthenticationWanted(connection, packet.username or "", packet.password or b"")
        )

    def authenticated(self, connection: Connection, now_s: float, *, accepted: bool) -> None:
        """The password of the CONNECT that waits was checked."""
        packet = self._waiting.pop(connection, None)
        if packet is None or connection.state is not State.AUTHENTICATING:
            return
        if accepted:
            connection.identity = packet.username
            self._accept(connection, packet, now_s)
        else:
            self._refuse(
                connection, ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD, "wrong user or password"
            )

    def guessed_too_often(self, connection: Connection) -> None:
        """The password of the CONNECT that waits is not looked at."""
        if self._waiting.pop(connection, None) is not None:
            self._refuse(
                connection,
                ConnAckReasonCode.CONNECTION_RATE_EXCEEDED,
                "too many wrong passwords from this address: try later",
            )

    def _accept(self, connection: Connection, packet: ConnectPacket, now_s: float) -> None:
        sessions = self._router.sessions
        identity = connection.identity
        if identity in self._router.banned:
            self._refuse(connection, ConnAckReasonCode.BANNED, admission.BANNED)
            return
        rights = self._router.rights(identity)
        if rights is not None and rights.names_client:
            client_id = rights.identity
        else:
            client_id = packet.client_id or self._unused_client_id()
        session = sessions.get(client_id)
        owner = None if session is None else session.identity
        denied = admission.denial(packet, rights, identity=identity, owner=owner)
        if denied is not None:
            self._refuse(connection, *denied)
            return
        if session is not None and session.connection is not None:
            self._send_away(
                session.connection, DisconnectReasonCode.SESSION_TAKEN_OVER, "taken over", now_s
            )
            session = sessions.get(client_id)
        if session is not None and packet.clean_start:
            self._life.end(session, now_s)
            session = None
        session_present = session is not None
        if session is None:
            session = self._life.new(client_id)
        if session is None:
            self._refuse(
                connection,
                ConnAckReasonCode.QUOTA_EXCEEDED,
                f"{self._config.max_sessions} sessions are kept, which is the limit",
            )
            return
        session.connection = connection
        self._router.belongs_to(session, identity, rights)
        session.expiry_interval_s = admission.session_expiry_s(packet, self._config)
        session.expires_at_s = None
        session.will = packet.will
        session.will_due_at_s = None
        session.repeats = deque(session.in_flight) if session.in_flight else NOTHING
        connection.session = session
        connection.session_expiry_s = packet.session_expiry_interval
        connection.keep_alive_s = admission.keep_alive_s(packet, connection, self._config)
        connection.wants_reasons = packet.request_problem_info
        aliases = min(packet.topic_alias_max, self._config.max_topic_aliases)
        if aliases:
            connection.aliases_given = TopicAliases(aliases)
        connection.receive_max = packet.receive_max
        # In 3.1.1 nobody can be told: packet ids are the limit there.
        connection.receive_limit = (
            self._config.receive_max if connection.is_mqtt5 else LARGEST_PACKET_ID
        )
        if session.unreleased:
            connection.inherited = set(session.unreleased)
        connection.reader.max_packet_bytes = self._config.max_packet_bytes
        connection.state = State.CONNECTED
        self._life.connected(session)
        connection.send(
            admission.acceptance(
                packet,
                self._config,
                session_present=session_present,
                client_id=client_id,
                keep_alive_s=connection.keep_alive_s,
                broker_id=self._broker_id if BRIDGE_PROPERTY in packet.user_properties else "",
            )
        )
        self.events.append(
            ClientConnected(
                connection.peer,
                client_id,
                "5" if connection.is_mqtt5 else "3.1.1",
                identity or packet.username,
                packet.clean_start,
                session_present,
                connection.keep_alive_s,
            )
        )
        self._router.courier.pump(session, now_s)

    def _unused_client_id(self) -> str:
        while (client_id := self._new_client_id()) in self._router.sessions:
            pass
        return client_id

    # --- endings

    def lost(self, connection: Connection, now_s: float, reason: str) -> None:
        """The network connection is gone, whoever ended it."""
        if connection.state is State.CONNECTED:
            self.leave(connection, now_s, with_will=True, reason_code=None, reason=reason)
        elif connection.state is not State.CLOSED:
            self._turn_away(connection, None, reason)
        connection.state = State.CLOSED
        self._waiting.pop(connection, None)

    def _refuse(self, connection: Connection, code: ConnAckReasonCode, reason: str) -> None:
        words = parting_words(connection, reason)
        connection.send(ConnAckPacket(reason_code=code, reason_str=words))
        self._turn_away(connection, int(code), reason)
        self.close(connection)

    def answer_error(self, connection: Connection, error: ProtocolError, now_s: float) -> None:
        """Tell the other end what it did wrong, as far as it can understand that, and close."""
        # It may quote a topic, and goes over the wire and into the log.
        code, reason = error.reason_code, str(error)[:MAX_REASON_CHARACTERS]
        if connection.session is not None:
            goodbye = _goodbye_code(code)
            self._send_away(connection, goodbye, reason, now_s)
        elif error.protocol_level is not None:
            connection.send_bytes(refused_version(error.protocol_level))
            self._turn_away(connection, code, reason)
            self.close(connection)
        elif connection.reader.starts_with_connect:
            self._refuse(connection, _refusal_code(code), reason)
        else:
            # Not an MQTT client: it would not understand an answer.
            self._turn_away(connection, None, reason)
            self.close(connection)

    def _send_away(
        self, connection: Connection, code: DisconnectReasonCode, reason: str, now_s: float
    ) -> None:
        words = parting_words(connection, reason)
        connection.send(DisconnectPacket(reason_code=code, reason_str=words))
        self.leave(connection, now_s, with_will=True, reason_code=int(code), reason=reason)
        self.close(connection)

    def dismiss(self, connection: Connection, reason: str, now_s: float) -> None:
        """Send away a client who may no longer be connected, before or after its CONNECT."""
        if connection.state is State.CONNECTED:
            code = DisconnectReasonCode.ADMINISTRATIVE_ACTION
            self._send_away(connection, code, reason, now_s)
        elif connection.state is not State.CLOSED:
            self._turn_away(connection, None, reason)
            self.close(connection)

    def leave(
        self,
        connection: Connection,
        now_s: float,
        *,
        with_will: bool,
        reason_code: int | None,
        reason: str,
    ) -> None:
        """A connected client is gone: its session goes on without it, or ends."""
        session = connection.session
        if session is None or session.connection is not connection:
            return
        # Closed first: what the will or a requeued message causes must not come back here.
        connection.state = State.CLOSED
        self.events.append(ClientGone(connection.peer, session.client_id, reason_code, reason))
        self._life.left(session, now_s, with_will=with_will)

    def close(self, connection: Connection) -> None:
        """Nothing more is read; the network connection ends once the output is written."""
        connection.state = State.CLOSED
        self._waiting.pop(connection, None)
        connection.mark_unsent()

    def check_patience(self, connection: Connection, now_s: float) -> None:
        """Send away who is silent for too long, before or after CONNECT."""
        if connection.state is State.CONNECTED:
            keep_alive_s = connection.keep_alive_s
            silent_s = now_s - connection.last_heard_s
            if keep_alive_s and silent_s > keep_alive_s * KEEP_ALIVE_GRACE:
                self._send_away(
                    connection,
                    DisconnectReasonCode.KEEP_ALIVE_TIMEOUT,
                    "nothing heard for 1.5 times the keep alive",
                    now_s,
                )
        elif (
            connection.state is not State.CLOSED
            and now_s - connection.opened_at_s > self._config.connect_timeout_s
        ):
            self._turn_away(connection, None, "no CONNECT in time")
            self.close(connection)

    def _turn_away(self, connection: Connection, reason_code: int | None, reason: str) -> None:
        self._counters.refused += 1
        self._counters.refused_by[reason_code] += 1
        self.events.append(ClientRefused(connection.peer, reason_code, reason))


def _goodbye_code(reason_code: int) -> DisconnectReasonCode:
    """The code for DISCONNECT, which does not know all of them."""
    try:
        return DisconnectReasonCode(reason_code)
    except ValueError:
        return DisconnectReasonCode.PROTOCOL_ERROR


def _refusal_code(reason_code: int) -> ConnAckReasonCode:
    """The code for CONNACK, likewise."""
    try:
        return ConnAckReasonCode(reason_code)
    except ValueError:
        return ConnAckReasonCode.PROTOCOL_ERROR
