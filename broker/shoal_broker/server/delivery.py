"""From a session's queues to its connection: windows, repeats, expiry and sizes. No I/O.

A connection is given messages only while less than the write buffer's limit waits to be written,
so that a slow consumer costs one such buffer and its session's limits.
"""

from shoal_broker.codec import PubRecPacket, PubRelPacket, PubRelReasonCode, QoS
from shoal_broker.server.connection import Connection
from shoal_broker.server.counters import Counters, Dropped
from shoal_broker.server.messages import Delivery
from shoal_broker.server.reasons import FAILURES_FROM
from shoal_broker.server.sessions import NOTHING, Session
from shoal_broker.server.writing import PublishWriter


class Courier:
    """Fills the output of connections."""

    def __init__(self, *, max_in_flight: int, write_buffer_bytes: int, counters: Counters) -> None:
        self.writer = PublishWriter()
        self._max_in_flight = max_in_flight
        self._write_buffer_bytes = write_buffer_bytes
        self._counters = counters

    def deliver(self, session: Session, delivery: Delivery, now_s: float) -> bool:
        """Send it, or have it wait for its turn. False when there is no room for it."""
        if not session.admit(delivery, now_s):
            return False
        connection = session.connection
        if (
            connection is not None
            and connection.writable
            and not session.has_waiting
            and connection.output_bytes < self._write_buffer_bytes
            and (
                not delivery.qos
                or len(session.in_flight) < min(connection.receive_max, self._max_in_flight)
            )
        ):
            if not delivery.qos:
                session.held_bytes -= delivery.message.size_bytes
            self._send(connection, session, delivery, now_s)
        else:
            session.wait(delivery)
            self.pump(session, now_s)
        return True

    def pump(self, session: Session, now_s: float) -> None:
        """Send what waits, as far as the client's window and the write buffer allow."""
        connection = session.connection
        if connection is None or not connection.writable or not session.has_waiting:
            return
        window = min(connection.receive_max, self._max_in_flight)
        limit = self._write_buffer_bytes
        in_flight = session.in_flight
        if session.repeats:
            self._repeat(connection, session, window, now_s)
            if session.repeats:
                return
            session.repeats = NOTHING
        if session.backlog:
            self._send_retained(connection, session, window, now_s)
            if session.backlog:
                return
        queue = session.queue
        while queue and len(in_flight) < window and connection.output_bytes < limit:
            delivery = queue.popleft()
            self._send(connection, session, delivery, now_s)
        if not queue:
            session.queue = NOTHING
        best_effort = session.best_effort
        while best_effort and connection.output_bytes < limit:
            delivery = best_effort.popleft()
            session.held_bytes -= delivery.message.size_bytes
            self._send(connection, session, delivery, now_s)
        if not best_effort:
            session.best_effort = NOTHING

    def handed_over(
        self, connection: Connection, session: Session, packet: PubRecPacket, now_s: float
    ) -> None:
        """PUBREC: answer with PUBREL, or with nothing when the client refuses the message."""
        packet_id = packet.packet_id
        if not session.hand_over(packet_id):
            gone = PubRelReasonCode.PACKET_ID_NOT_FOUND
            connection.send(PubRelPacket(packet_id, reason_code=gone))
        elif int(packet.reason_code) >= FAILURES_FROM:
            self._counters.dropped[Dropped.REFUSED_BY_CLIENT] += 1
            session.settle(packet_id)
            self.pump(session, now_s)
        else:
            connection.send(PubRelPacket(packet_id))

    def _repeat(self, connection: Connection, session: Session, window: int, now_s: float) -> None:
        # MQTT 5, 4.4: in order, same packet ids, PUBLISH with DUP or PUBREL. What expired meanwhile is repeated all
        # the same: the client may have it already and owe nothing but the acknowledgement.
        in_flight, repeats = session.in_flight, session.repeats
        while repeats and connection.output_bytes < self._write_buffer_bytes:
            packet_id = repeats[0]
            delivery = in_flight[packet_id]
            if delivery is None:
                # MQTT 5, 4.9: a PUBREL does not wait for the window.
                repeats.popleft()
                connection.send(PubRelPacket(packet_id))
            elif len(in_flight) - len(repeats) < window:
                repeats.popleft()
                self._write(connection, session, delivery, packet_id, now_s, duplicate=True)
            else:
                return

    def _send_retained(
        self, connection: Connection, session: Session, window: int, now_s: float
    ) -> None:
        # Before the queue: that holds what was published after these were looked up.
        while session.backlog and len(session.in_flight) < window:
            if connection.output_bytes >= self._write_buffer_bytes:
                return
            delivery = _next_retained(session)
            if delivery is not None:
                session.held_bytes += delivery.message.size_bytes
                self._send(connection, session, delivery, now_s)
                if not delivery.qos:
                    session.held_bytes -= delivery.message.size_bytes

    def _send(
        self, connection: Connection, session: Session, delivery: Delivery, now_s: float
    ) -> None:
        if delivery.message.has_expired(now_s):
            self._counters.dropped[Dropped.EXPIRED] += 1
            if delivery.qos:
                session.drop(delivery)
            return
        packet_id = None
        if delivery.qos:
            packet_id = session.send(delivery)
        self._write(connection, session, delivery, packet_id, now_s, duplicate=False)

    def _write(
        self,
        connection: Connection,
        session: Session,
        delivery: Delivery,
        packet_id: int | None,
        now_s: float,
        *,
        duplicate: bool,
    ) -> None:
        aliases = connection.aliases_given
        known = new = None
        if aliases is not None:
            topic = delivery.message.topic
            known = aliases.known(topic)
            new = aliases.next_for(topic) if known is None else None
        data, payload = self.writer.write(
            delivery,
            packet_id,
            now_s,
            duplicate=duplicate,
            encode=connection.encode,
            known_alias=known,
            new_alias=new,
        )
        if len(data) + len(payload) > connection.max_packet_bytes:
            # MQTT 5, 3.1.2.11.4: as if it had been delivered.
            self._counters.dropped[Dropped.TOO_LARGE_FOR_CLIENT] += 1
            if packet_id is not None:
                session.settle(packet_id)
            return
        if aliases is not None and new is not None:
            aliases.give(delivery.message.topic, new)
        self._counters.messages_out += 1
        if packet_id is None:
            self._counters.messages_out_qos0 += 1
        elif delivery.qos > 1:
            self._counters.messages_out_qos2 += 1
        # Of a QoS 2 message nobody may have anything that we could forget.
        if delivery.message.content.qos is QoS.EXACTLY_ONCE:
            connection.send_bytes(data, payload)
        else:
            connection.send_early(data, payload)


def _next_retained(session: Session) -> Delivery | None:
    pattern, messages = next(iter(session.backlog.items()))
    if not messages:
        del session.backlog[pattern]
        return None
    message = messages.popleft()
    if session.journal is not None:
        session.journal.gave(pattern, message)
    if not messages:
        # At once: what waits for the retained messages, waits no longer.
        del session.backlog[pattern]
    subscription = session.subscriptions[pattern]
    return Delivery(
        message,
        min(int(message.content.qos), subscription.max_qos),
        True,
        subscription.identifiers,
        None,
    )
