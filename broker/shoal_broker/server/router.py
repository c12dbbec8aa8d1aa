"""Where a message goes: to the sessions that subscribed, to one member of each share, to the retained store.

Also owns the sessions, since a message reaches them while they are away. No packets, no I/O.
"""

from collections import deque
from dataclasses import replace

from shoal_broker.codec import RetainHandling, TopicFilter
from shoal_broker.server.access import Reading, Rights, compiled
from shoal_broker.server.access_rules import AccessRules
from shoal_broker.server.config import BrokerConfig
from shoal_broker.server.counters import Counters, Dropped
from shoal_broker.server.delivery import Courier
from shoal_broker.server.events import ClientDenied
from shoal_broker.server.journal import Journal
from shoal_broker.server.ledger import Ledger
from shoal_broker.server.messages import Delivery, Message, from_will
from shoal_broker.server.reserved import is_own_state
from shoal_broker.server.retained import RetainedStore
from shoal_broker.server.sessions import NEVER_EXPIRES, NOTHING, Session
from shoal_broker.server.subscriptions import (
    SharedGroup,
    Subscription,
    SubscriptionTree,
    merge_overlapping,
    split_share,
)

MAX_LEVELS = 128
"""A topic of 65,535 bytes could have 65,536 levels, each with a node of its own in memory."""

STATUS_ROOT = "$SYS"
MAX_STATUS_TOPICS = 1_024
MAX_STATUS_BYTES = 1 << 20
"""The states of bridges among them, which tell us themselves."""

ACCEPTED = 0x00
NO_MATCHING_SUBSCRIBERS = 0x10
NO_SUBSCRIPTION_EXISTED = 0x11
NOT_AUTHORIZED = 0x87
TOPIC_FILTER_INVALID = 0x8F
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
        self._access = compiled(config.access)
        self._config = config
        self._counters = counters
        self._journal: Journal | None = None

    @property
    def accepting(self) -> bool:
        """False while a durable broker cannot write: clients are to be promised nothing then."""
        return self._journal is None or self._journal.accepting

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
            reader = _reader(rights, subscription.topic_filter)
            if subscription.rights is not reader:
                changed = replace(subscription, rights=reader)
                session.subscriptions[pattern] = changed
                self.subscriptions.add(changed)

    def apply_access(self, rules: AccessRules) -> None:
        """From now on these rules hold, for what waits in queues, too."""
        self._access = compiled(rules)
        for session in self.sessions.values():
            self.belongs_to(session, session.identity, self.rights(session.identity))
            session.forget_unreadable()

    # --- messages

    def publish(self, message: Message, now_s: float) -> int:
        """Route `message`; the reason code is what a QoS 1 or 2 publisher is told.

        0x97 when the retained store is full (then nobody gets it), or when a session that is to survive
        its connection could not queue it (then the others have it).
        """
        content = message.content
        if message.topic.startswith("$"):
            if is_own_state(message.topic, message.publisher):
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
            if not self._share(group, message, now_s):
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

    def _share(self, group: SharedGroup, message: Message, now_s: float) -> bool:
        """Give it to one member; False when a QoS 1 or 2 message found no room with any of them."""
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

    # --- subscriptions

    def subscribe(self, session: Session, wanted: TopicFilter, identifier: int | None) -> int:
        """Subscribe, and queue the retained messages that belong to it. The reason code for SUBACK."""
        pattern = wanted.pattern
        share_name, topic_filter = split_share(pattern)
        earlier = session.subscriptions.get(pattern)
        if earlier is None and len(session.subscriptions) >= self._config.max_subscriptions:
            return QUOTA_EXCEEDED
        if topic_filter.count("/") >= MAX_LEVELS:
            return TOPIC_FILTER_INVALID
        rights = session.rights
        if rights is not None and rights.reading(topic_filter) is Reading.NOTHING:
            self.note_denied(session, rights, "subscribe", pattern)
            return NOT_AUTHORIZED
        subscription = Subscription(
            subscriber=session,
            topic_filter=topic_filter,
            share_name=share_name,
            max_qos=int(wanted.max_qos),
            no_local=wanted.no_local,
            retain_as_published=wanted.retain_as_published,
            identifiers=[] if identifier is None else [identifier],
            rights=_reader(rights, topic_filter),
        )
        wants_retained = wanted.retain_handling == RetainHandling.SEND_ALWAYS or (
            wanted.retain_handling == RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS
            and earlier is None
        )
        # MQTT 5, 4.8.2: a shared subscription gets no retained messages when it is made.
        if (
            share_name is None
            and wants_retained
            and not self._queue_retained(session, subscription)
        ):
            return QUOTA_EXCEEDED
        session.subscriptions[pattern] = subscription
        self.subscriptions.add(subscription)
        if session.journal is not None:
            session.journal.subscribed(pattern, subscription)
        return subscription.max_qos

    def _queue_retained(self, session: Session, subscription: Subscription) -> bool:
        """Have the session get what is retained; False when it waits for too many already."""
        retained = self.status if subscription.topic_filter.startswith("$") else self.retained
        messages = deque(
            message
            for message in retained.match(subscription.topic_filter)
            if not (subscription.no_local and message.publisher == session.client_id)
            and subscription.may_have(message.topic)
        )
        # Subscribing again starts again: what the same filter still has to come is replaced.
        replaced = len(session.backlog.get(subscription.topic_filter, ()))
        if session.backlog_messages - replaced + len(messages) > self._config.max_retained_messages:
            return False
        session.backlog.pop(subscription.topic_filter, None)
        if messages:
            session.backlog[subscription.topic_filter] = messages
        if session.journal is not None:
            session.journal.owes(subscription.topic_filter, messages)
        return True

    def unsubscribe(self, session: Session, pattern: str) -> int:
        """Remove the subscription; what is queued still goes out. The reason code for UNSUBACK."""
        subscription = session.subscriptions.pop(pattern, None)
        if subscription is None:
            return NO_SUBSCRIPTION_EXISTED
        session.backlog.pop(pattern, None)
        self.subscriptions.remove(subscription)
        if session.journal is not None:
            session.journal.unsubscribed(pattern)
        return ACCEPTED

    # --- sessions

    def new_session(self, client_id: str) -> Session | None:
        """Create the session of a client id that has none; None at the limit."""
        if len(self.sessions) >= self._config.max_sessions:
            return None
        return self.restore_session(client_id)

    def restore_session(self, client_id: str) -> Session:
        """Create it whatever the limit is: it was accepted once."""
        session = self.sessions[client_id] = Session(
            client_id,
            max_messages=self._config.max_queued_messages,
            max_bytes=self._config.max_queued_bytes,
            counters=self._counters,
        )
        return session

    def write_to(self, journal: Journal) -> None:
        """Tell `journal` of every change from here on: what is there now is known to it."""
        self._journal = self.retained.journal = journal
        # They may be others than when this was stored.
        self.apply_access(self._config.access)

    def connected(self, session: Session) -> None:
        """The session has a connection, and an interval that says whether it is to be remembered."""
        if self._journal is None:
            return
        if session.is_persistent:
            if session.journal is None:
                session.journal = self._journal.session(session)
            session.journal.connected()
        elif session.journal is not None:
            session.journal.ended()
            session.journal = None

    def left(self, session: Session, now_s: float, *, with_will: bool) -> None:
        """The session has no connection any more: start its clocks, or end it."""
        session.connection = None
        session.repeats = NOTHING
        for lost in session.best_effort:
            session.held_bytes -= lost.message.size_bytes
        if session.best_effort:
            self._counters.dropped[Dropped.OFFLINE_QOS0] += len(session.best_effort)
            session.best_effort = NOTHING
        if session.will is not None:
            if with_will:
                session.will_due_at_s = now_s + session.will.will_delay_interval
            else:
                session.will = None
        interval_s = session.expiry_interval_s
        session.expires_at_s = None if interval_s == NEVER_EXPIRES else now_s + interval_s
        if session.journal is not None:
            session.journal.changed()
        self.run_clocks(session, now_s)

    def run_clocks(self, session: Session, now_s: float) -> None:
        """Send a will that is due, end a session that has expired."""
        if session.connection is not None:
            return
        if session.expires_at_s is not None and session.expires_at_s <= now_s:
            self.end_session(session, now_s)
        elif session.will_due_at_s is not None and session.will_due_at_s <= now_s:
            self._publish_will(session, now_s)

    def end_session(self, session: Session, now_s: float) -> None:
        """Forget the session: its will goes out, its share of shared work goes to the others."""
        self.sessions.pop(session.client_id, None)
        for subscription in session.subscriptions.values():
            self.subscriptions.remove(subscription)
        if session.will_due_at_s is not None:
            self._publish_will(session, now_s)
        for delivery, may_move in session.unacknowledged():
            group = delivery.group
            if (
                group is None
                or not may_move
                or not group.members
                or delivery.message.has_expired(now_s)
            ):
                self._counters.dropped[Dropped.SESSION_ENDED] += 1
            else:
                self._share(group, delivery.message, now_s)
        # Last: what the others get of it is stored already.
        if session.journal is not None:
            session.journal.ended()
            session.journal = None
        session.subscriptions.clear()
        session.forget_messages()

    def _publish_will(self, session: Session, now_s: float) -> None:
        will, session.will, session.will_due_at_s = session.will, None, None
        if session.journal is not None:
            session.journal.changed()
        if will is None:
            return
        # Checked at CONNECT, but the rules may be others by now.
        is_own = is_own_state(will.topic, session.client_id)
        if not is_own and session.rights is not None and not session.rights.may_write(will.topic):
            self._counters.dropped[Dropped.NOT_AUTHORIZED] += 1
        else:
            self.publish(from_will(will, session.client_id, now_s, self.ledger), now_s)


def _reader(rights: Rights | None, topic_filter: str) -> Rights | None:
    """What messages of a subscription are to be looked at by; None: by nothing."""
    if rights is None or rights.reading(topic_filter) is Reading.ALL:
        return None
    return rights


def _has_reader(group: SharedGroup, topic: str) -> bool:
    return any(member.may_have(topic) for member in group.members.values())
