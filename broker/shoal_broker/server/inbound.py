"""What clients publish: topic aliases, the exchanges of QoS 1 and 2, the receive maximum. No I/O.

Where a message goes from here is `router`'s business.
"""

from shoal_broker.codec import (
    PubAckPacket,
    PubAckReasonCode,
    PubCompPacket,
    PubCompReasonCode,
    PublishPacket,
    PubRecPacket,
    PubRecReasonCode,
    QoS,
)
from shoal_broker.errors import ProtocolError
from shoal_broker.server.config import BrokerConfig
from shoal_broker.server.connection import Connection
from shoal_broker.server.counters import Counters, Dropped
from shoal_broker.server.messages import Message, from_publish
from shoal_broker.server.reasons import FAILURES_FROM, words
from shoal_broker.server.reserved import is_own_state
from shoal_broker.server.router import NOT_AUTHORIZED, QUOTA_EXCEEDED, Router
from shoal_broker.server.sessions import Session

PROTOCOL_VIOLATION = 0x82
RECEIVE_MAXIMUM_EXCEEDED = 0x93
TOPIC_ALIAS_INVALID = 0x94


class Inbound:
    """Takes PUBLISH and PUBREL, answers with PUBACK, PUBREC and PUBCOMP."""

    def __init__(self, config: BrokerConfig, router: Router, counters: Counters) -> None:
        self._max_topic_aliases = config.max_topic_aliases
        self._router = router
        self._counters = counters

    def publish(
        self, connection: Connection, session: Session, packet: PublishPacket, now_s: float
    ) -> None:
        """Route the message and answer it. Raises ProtocolError."""
        if packet.subscription_ids:
            raise ProtocolError(PROTOCOL_VIOLATION, "a client sets no subscription identifier")
        topic = packet.topic
        if packet.topic_alias is not None:
            topic = self._resolve(connection, topic, packet.topic_alias)
        self._counters.messages_in += 1
        packet_id = packet.packet_id
        message = from_publish(
            packet,
            topic,
            session.client_id,
            connection.reader.packet_bytes + (0 if packet.topic else len(topic)),
            now_s,
            self._router.ledger,
        )
        reader = connection.reader
        if reader.plain_packet is not None:
            self._router.courier.writer.received(
                message, reader.plain_packet, reader.plain_topic_end, connection.encode
            )
        if packet_id is None:
            self._counters.messages_in_qos0 += 1
            self._route(session, message, now_s)
        elif packet.qos is QoS.EXACTLY_ONCE:
            self._counters.messages_in_qos2 += 1
            self._take_once(connection, session, message, packet_id, now_s)
        else:
            connection.unanswered += 1
            _check_quota(connection, session)
            reason_code = self._route(session, message, now_s)
            if not reason_code:
                connection.acknowledge(packet_id)
                return
            answer = PubAckPacket(
                packet_id,
                reason_code=PubAckReasonCode(reason_code),
                reason_str=words(connection, reason_code),
            )
            if reason_code < FAILURES_FROM:
                connection.send(answer)
            else:
                self._refuse(connection, answer)

    def release(self, connection: Connection, session: Session, packet_id: int) -> None:
        """PUBREL: the id is free again; one that we do not know is said to be unknown, no error."""
        if session.release(packet_id):
            if packet_id in connection.inherited:
                connection.inherited.discard(packet_id)
            else:
                connection.unanswered += 1
            code = PubCompReasonCode.SUCCESS
        else:
            code = PubCompReasonCode.PACKET_ID_NOT_FOUND
        connection.send(PubCompPacket(packet_id, reason_code=code))

    def _take_once(
        self,
        connection: Connection,
        session: Session,
        message: Message,
        packet_id: int,
        now_s: float,
    ) -> None:
        # MQTT 5, 4.3.3: until its PUBREL, whatever comes with this id is the message that we have.
        if session.is_unreleased(packet_id):
            connection.inherited.discard(packet_id)
            connection.send(PubRecPacket(packet_id))
            return
        connection.unanswered += 1
        _check_quota(connection, session)
        reason_code = self._route(session, message, now_s, once=True)
        if reason_code < FAILURES_FROM:
            # From here it is counted among the unreleased.
            connection.unanswered -= 1
            session.receive(packet_id)
        answer = PubRecPacket(
            packet_id,
            reason_code=PubRecReasonCode(reason_code),
            reason_str=words(connection, reason_code),
        )
        if reason_code < FAILURES_FROM:
            connection.send(answer)
        else:
            self._refuse(connection, answer)

    def _refuse(self, connection: Connection, answer: PubAckPacket | PubRecPacket) -> None:
        # MQTT 3.1.1 has no word for it, and would take the answer for a promise.
        if not self._router.accepting and not connection.is_mqtt5:
            raise ProtocolError(QUOTA_EXCEEDED, "nothing can be written to the disk now")
        connection.refuse(answer)

    def _route(
        self, session: Session, message: Message, now_s: float, *, once: bool = False
    ) -> int:
        """Publish what the session may; the reason code. `once`: to everybody, or to nobody."""
        rights = session.rights
        if (
            rights is not None
            and not rights.may_write(message.topic)
            and not is_own_state(message.topic, session.client_id)
        ):
            self._counters.dropped[Dropped.NOT_AUTHORIZED] += 1
            self._router.note_denied(session, rights, "publish", message.topic)
            return NOT_AUTHORIZED
        if not self._router.accepting and int(message.content.qos):
            self._counters.dropped[Dropped.NOT_STORED] += 1
            return QUOTA_EXCEEDED
        if once and not self._router.has_room(message, now_s):
            return QUOTA_EXCEEDED
        return self._router.publish(message, now_s)

    def _resolve(self, connection: Connection, topic: str, alias: int) -> str:
        """The topic that a PUBLISH with this alias goes to."""
        if alias > self._max_topic_aliases:
            raise ProtocolError(
                TOPIC_ALIAS_INVALID, f"topic alias {alias} is above what was announced"
            )
        if topic:
            connection.aliases[alias] = topic
        elif alias in connection.aliases:
            topic = connection.aliases[alias]
        else:
            raise ProtocolError(PROTOCOL_VIOLATION, f"topic alias {alias} was never given")
        return topic


def _check_quota(connection: Connection, session: Session) -> None:
    """MQTT 5, 3.3.4 and 4.9: what was published on this connection and is not answered has a limit."""
    unfinished = connection.unanswered
    if session.unreleased:
        unfinished += len(session.unreleased) - len(connection.inherited)
    if unfinished > connection.receive_limit:
        raise ProtocolError(
            RECEIVE_MAXIMUM_EXCEEDED,
            f"more than {connection.receive_limit} messages at a time, which was announced",
        )
