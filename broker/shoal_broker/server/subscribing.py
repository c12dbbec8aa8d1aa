"""What SUBSCRIBE and UNSUBSCRIBE do to a session: filters, rights, and the retained messages that are due. No I/O."""

from collections import deque

from shoal_broker.codec import RetainHandling, TopicFilter
from shoal_broker.server.access import Reading, reader_of
from shoal_broker.server.config import BrokerConfig
from shoal_broker.server.router import (
    ACCEPTED,
    MAX_LEVELS,
    NOT_AUTHORIZED,
    QUOTA_EXCEEDED,
    Router,
)
from shoal_broker.server.sessions import Session
from shoal_broker.server.subscriptions import Subscription, split_share

NO_SUBSCRIPTION_EXISTED = 0x11
TOPIC_FILTER_INVALID = 0x8F


class Subscribing:
    """Changes the subscriptions of sessions, and of the router."""

    def __init__(self, config: BrokerConfig, router: Router) -> None:
        self._router = router
        self._max_subscriptions = config.max_subscriptions
        self._max_bytes = config.max_subscription_bytes
        self._max_retained_messages = config.max_retained_messages

    def subscribe(
        self, session: Session, wanted: TopicFilter, identifier: int | None, *, look_up_ends: int
    ) -> int:
        """Subscribe, and queue the retained messages that belong to it. The reason code for SUBACK.

        When the router's `work` has come to `look_up_ends`, no more retained messages are looked for.
        """
        pattern = wanted.pattern
        share_name, topic_filter = split_share(pattern)
        earlier = session.subscriptions.get(pattern)
        if earlier is None and (
            len(session.subscriptions) >= self._max_subscriptions
            or self._router.subscriptions.size_bytes >= self._max_bytes
        ):
            return QUOTA_EXCEEDED
        if topic_filter.count("/") >= MAX_LEVELS:
            return TOPIC_FILTER_INVALID
        rights = session.rights
        if rights is not None and rights.reading(topic_filter) is Reading.NOTHING:
            self._router.note_denied(session, rights, "subscribe", pattern)
            return NOT_AUTHORIZED
        subscription = Subscription(
            subscriber=session,
            topic_filter=topic_filter,
            share_name=share_name,
            max_qos=int(wanted.max_qos),
            no_local=wanted.no_local,
            retain_as_published=wanted.retain_as_published,
            identifiers=[] if identifier is None else [identifier],
            rights=reader_of(rights, topic_filter),
        )
        wants_retained = wanted.retain_handling == RetainHandling.SEND_ALWAYS or (
            wanted.retain_handling == RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS
            and earlier is None
        )
        # MQTT 5, 4.8.2: a shared subscription gets no retained messages when it is made.
        if (
            share_name is None
            and wants_retained
            and (
                self._router.work >= look_up_ends or not self._queue_retained(session, subscription)
            )
        ):
            return QUOTA_EXCEEDED
        session.subscriptions[pattern] = subscription
        self._router.subscriptions.add(subscription)
        if session.journal is not None:
            session.journal.subscribed(pattern, subscription)
        return subscription.max_qos

    def _queue_retained(self, session: Session, subscription: Subscription) -> bool:
        """Have the session get what is retained; False when it waits for too many already."""
        retained = (
            self._router.status
            if subscription.topic_filter.startswith("$")
            else self._router.retained
        )
        messages = deque(
            message
            for message in retained.match(subscription.topic_filter)
            if not (subscription.no_local and message.publisher == session.client_id)
            and subscription.may_have(message.topic)
        )
        self._router.work += retained.looked_at
        # Subscribing again starts again: what the same filter still has to come is replaced.
        replaced = len(session.backlog.get(subscription.topic_filter, ()))
        if session.backlog_messages - replaced + len(messages) > self._max_retained_messages:
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
        self._router.subscriptions.remove(subscription)
        if session.journal is not None:
            session.journal.unsubscribed(pattern)
        return ACCEPTED
