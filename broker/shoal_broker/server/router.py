"""Where a message goes: to the sessions that subscribed, to one member of each share, to the retained store.

It knows the sessions, since a message reaches them while they are away: how they begin and end is
`session_life`, what they subscribe to `subscribing`. No packets, no I/O.
"""

from dataclasses import replace

from shoal_broker.server.access import Rights, compiled, reader_of
from shoal_broker.server.access_rules import AccessRules
from shoal_broker.server.config import BrokerConfig
from shoal_broker.server.counters import Counters, Dropped
from shoal_broker.server.delivery import Courier
from shoal_broker.server.events import ClientDenied
from shoal_broker.server.journal import Journal
from shoal_broker.server.ledger import Ledger
from shoal_broker.server.messages import Delivery, Message
from shoal_broker.server.reserved import LARGEST_STATE_BYTES, is_own_state
from shoal_broker.server.retained import RetainedStore
from shoal_broker.server.sessions import Session
from shoal_broker.server.subscriptions import (
    SharedGroup,
    SubscriptionTree,
    merge_overlapping,
)

MAX_LEVELS = 128
"""A topic of 65,535 bytes could have 65,536 levels, each with a node of its own in memory."""

STATUS_ROOT = "$SYS"
MAX_STATUS_TOPICS = 1_024
MAX_STATUS_BYTES = 1 << 20
"""The states of bridges among them, which tell us themselves."""

ACCEPTED = 0x00
NO_MATCHING_SUBSCRIBERS = 0x10
NOT_AUTHORIZED = 0x87
TOPIC_NAME_INVALID = 0x90
QUOTA_EXCEEDED = 0x97


class Router:
    """Sessions, subscriptions and retained messages, and the way between them."""

    def __init__(self, config: BrokerConfig, counters: Counters) -> None:
        self.sessions: dict[str, Session] = {}
        self.subscriptions = SubscriptionTree()
        self.retained = RetainedStore(
            max_messages=config.max_retained_messages, max_bytes=config.max_retained_bytes
        )
        self.status = RetainedStore(max_messages=MAX_STATUS_TOPICS, max_bytes=MAX_STATUS_BYTES)
        """What the broker says of itself: apart, since it is nobody's and no limit of theirs."""
        self.courier = Courier(
            max_in_flight=config.max_in_flight,
            write_buffer_bytes=config.write_buffer_bytes,
            counters=counters,
        )
        self.denials: list[ClientDenied] = []
        """What the shell is to log; emptied by it."""
        self.ledger = Ledger(config.max_queued_bytes_total)
        self.work = 0
        """Counts up with what costs time: subscribers found, retained messages looked at."""
        self._access = compiled(config.access)
        self.banned = frozenset(config.access.banned)
        """Users who may not connect."""
        self._config = config
        self._counters = counters
        self.journal: Journal | None = None
        """None: everything is kept in memory."""

    @property
    def accepting(self) -> bool:
        """False while a durable broker cannot write: clients are to be promised nothing then."""
        return self.journal is None or self.journal.accepting

    # --- access rules

    def rights(self, identity: str | None) -> Rights | None:
        """What this user may do; None for anonymous clients and without rules: everything."""
        if identity is None or self._access is None:
            return None
        return self._access.rights(identity)

    def note_denied(self, session: Session, rights: Rights, action: str, topic: str) -> None:
        """Have the first denial of a client logged: not every version of MQTT can tell it."""
        if not rights.was_denied:
            rights.was_denied = True
            self.denials.append(ClientDenied(session.client_id, rights.identity, action, topic))

    def belongs_to(self, session: Session, identity: str | None, rights: Rights | None) -> None:
        """The session is this identity's; what it subscribed to is looked at by these rights."""
        changes_hands = session.identity != identity
        session.identity, session.rights = identity, rights
        if changes_hands:
            session.forget_unreadable(in_flight=True)
        for pattern, subscription in session.subscriptions.items():
            reader = reader_of(rights, subscription.topic_filter)
            if subscription.rights is not reader:
                changed = replace(subscription, rights=reader)
                session.subscriptions[pattern] = changed
                self.subscriptions.add(changed)

    def apply_access(self, rules: AccessRules) -> None:
        """From now on these rules hold, for what waits in queues, too."""
        self._access = compiled(rules)
        self.banned = frozenset(rules.banned)
        for session in self.sessions.values():
            self.belongs_to(session, session.identity, self.rights(session.identity))
            session.forget_unreadable()

    def write_to(self, journal: Journal) -> None:
        """Tell `journal` of every change from here on: what is there now is known to it."""
        self.journal = self.retained.journal = journal
        # They may be others than when this was stored.
        self.apply_access(self._config.access)

    def add_session(self, client_id: str) -> Session:
        """Create it, whatever the limit is."""
        session = self.sessions[client_id] = Session(
            client_id,
            max_messages=self._config.max_queued_messages,
            max_bytes=self._config.max_queued_bytes,
            counters=self._counters,
        )
        return session

    # --- messages

    def publish(self, message: Message, now_s: float) -> int:
        """Route `message`; the reason code is what a QoS 1 or 2 publisher is told.

        0x97 when the retained store is full (then nobody gets it), or when a session that is to survive
        its connection could not queue it (then the others have it).
        """
        content = message.content
        if message.topic.startswith("$"):
            is_small = len(content.payload) <= LARGEST_STATE_BYTES
            if is_small and is_own_state(message.topic, message.publisher):
                self.announce(message, now_s)
                return ACCEPTED
            self._counters.dropped[Dropped.RESERVED_TOPIC] += 1
            return TOPIC_NAME_INVALID
        if content.retain:
            refused = self._keep(message)
            if refused:
                return refused
        return self._distribute(message, now_s)

    def announce(self, message: Message, now_s: float) -> None:
        """Publish, as the server, what the broker says of itself."""
        if message.content.payload:
            self.status.put(message)
        else:
            self.status.clear(message.topic)
        self._distribute(message, now_s)

    def _distribute(self, message: Message, now_s: float) -> int:
        content = message.content
        subscriptions, groups = self.subscriptions.match(message.topic)
        if not subscriptions and not groups:
            return NO_MATCHING_SUBSCRIBERS
        self.work += len(subscriptions)
        reason_code = ACCEPTED
        qos = int(content.qos)
        retain = content.retain
        for one in merge_overlapping(subscriptions, message.publisher):
            delivery = Delivery(
                message,
                min(qos, one.max_qos),
                retain and one.retain_as_published,
                one.identifiers,
                None,
            )
            session = self.sessions[one.subscriber.client_id]
            if not self._deliver(session, delivery, now_s) and session.is_persistent:
                reason_code = QUOTA_EXCEEDED
        for group in groups:
            if not self.share(group, message, now_s):
                reason_code = QUOTA_EXCEEDED
        return reason_code

    def has_room(self, message: Message, now_s: float) -> bool:
        """Whether everybody who is to get this QoS 2 message has room for it.

        Everybody is every session that outlives its connection and one member of each share. Who is
        refused publishes anew: what some had by then would come to them twice.
        """
        subscriptions, groups = self.subscriptions.match(message.topic)
        sessions, size_bytes = self.sessions, message.size_bytes
        for one in merge_overlapping(subscriptions, message.publisher):
            session = sessions[one.subscriber.client_id]
            if one.max_qos and session.is_persistent and not self._fits(session, size_bytes, now_s):
                self._counters.dropped[Dropped.QUEUE_FULL] += 1
                return False
        for group in groups:
            if _has_reader(group, message.topic) and not any(
                self._fits(sessions[member], size_bytes, now_s) or not subscription.max_qos
                for member, subscription in group.members.items()
                if subscription.may_have(message.topic)
            ):
                self._counters.dropped[Dropped.QUEUE_FULL] += 1
                return False
        return True

    def _fits(self, session: Session, size_bytes: int, now_s: float) -> bool:
        if session.held_messages and self.is_full:
            return False
        return session.make_room(size_bytes, now_s)

    def _keep(self, message: Message) -> int:
        """Store a retained message; 0 or the reason code of the refusal."""
        if message.topic.count("/") >= MAX_LEVELS:
            self._counters.dropped[Dropped.RETAINED_FULL] += 1
            return TOPIC_NAME_INVALID
        if not message.content.payload:
            self.retained.clear(message.topic)
        elif not self.retained.put(message):
            self._counters.dropped[Dropped.RETAINED_FULL] += 1
            return QUOTA_EXCEEDED
        return ACCEPTED

    @property
    def is_full(self) -> bool:
        """Whether all queues together are at their limit: then only who has nothing gets something."""
        ledger = self.ledger
        if not ledger.is_full:
            return False
        # What was added may be gone: counting is worth its while when there was enough of that.
        if ledger.added > len(self.sessions):
            self.count_queues()
        return ledger.is_full

    def count_queues(self) -> None:
        """See how much is in all queues."""
        self.ledger.count(sum(session.held_messages for session in self.sessions.values()))

    def _deliver(self, session: Session, delivery: Delivery, now_s: float) -> bool:
        if session.connection is None and not delivery.qos:
            self._counters.dropped[Dropped.OFFLINE_QOS0] += 1
            return True
        if session.held_messages and self.is_full:
            self._counters.dropped[Dropped.QUEUE_FULL] += 1
            return not delivery.qos
        if not self.courier.deliver(session, delivery, now_s):
            return not delivery.qos
        self.ledger.added += 1
        return True

    def share(self, group: SharedGroup, message: Message, now_s: float) -> bool:
        """Give it to one member; False when a QoS 1 or 2 message found no room with any of them."""
        self.work += len(group.members)
        qos, as_published = int(message.content.qos), message.content.retain
        for member in group.candidates():
            if not member.may_have(message.topic):
                continue
            session = self.sessions[member.subscriber.client_id]
            delivery = Delivery(
                message,
                min(qos, member.max_qos),
                member.retain_as_published and as_published,
                member.identifiers,
                group,
            )
            if self._deliver(session, delivery, now_s):
                group.chosen(member)
                return True
        return not qos or not _has_reader(group, message.topic)


def _has_reader(group: SharedGroup, topic: str) -> bool:
    return any(member.may_have(topic) for member in group.members.values())
