"""Inbound messages to the subscribers that want them, acknowledged when all of those are through.

One worker a subscription (unless it is `SideBySide`): order is kept within it and a slow one holds
up no other. What is in
work is bounded by a window over all of them; beyond it the reader waits and the broker holds back.
Acknowledgements leave in the order in which messages are finished, not in which they came (a
departure from MQTT-4.6.0-2 that brokers accept, and without which one slow subscriber stops all).
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from shoal_broker.bus_errors import Redeliver, TopicError
from shoal_broker.link import Arrival, Inbound, Link
from shoal_broker.slots import Slots
from shoal_broker.topic_filter import check_filter, matches

Subscriber = Callable[[Inbound], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class SideBySide:
    """A subscriber whose messages may be worked on `at_once`, in no order: one commit serves many."""

    subscriber: Subscriber
    at_once: int = 32

    def __call__(self, inbound: Inbound) -> Awaitable[None]:
        """As any subscriber."""
        return self.subscriber(inbound)


log = structlog.get_logger(__name__)

MAX_SUBSCRIPTION_ID = 268_435_455


@dataclass(slots=True)
class InboundStats:
    """Counters since the session opened."""

    received: int = 0
    handled: int = 0
    failed: int = 0
    redeliver_asked: int = 0
    recognised: int = 0
    unroutable: int = 0


@dataclass(slots=True, eq=False)
class _Delivery:
    """A message in work: on which link it came and how many subscribers are not yet through."""

    link: Link
    arrival: Arrival
    unfinished: int
    given_up: bool = False


@dataclass(slots=True, eq=False)
class Subscription:
    """A topic filter, who gets its messages, and those that wait; `is_granted` by the broker, as far as we know.

    The window bounds those that wait to a few dozen: a list is quick enough.
    """

    topic_filter: str
    subscriber: Subscriber
    qos: int
    id: int
    at_once: int
    """How many of its messages are worked on at a time; more than one keeps no order."""
    is_granted: bool = False
    waiting: list[_Delivery] = field(default_factory=list)
    workers: int = 0


class Dispatcher:
    """The subscriptions of a session and the messages in work.

    Workers run in `tasks`, for as long as there is something to do: a process may hold ten thousand
    sessions, most of them idle.
    """

    __slots__ = (
        "_by_id",
        "_given_up_link",
        "_is_stopped",
        "_link",
        "_loop",
        "_orphans",
        "_slots",
        "_tasks",
        "_unacknowledged",
        "_workers",
        "stats",
        "subscriptions",
    )

    def __init__(self, tasks: asyncio.TaskGroup, *, window: int) -> None:
        self.stats = InboundStats()
        self.subscriptions: dict[str, Subscription] = {}
        self._tasks = tasks
        # Asked for with each worker, and the way to it is a system call.
        self._loop = asyncio.get_running_loop()
        self._workers: dict[asyncio.Task[None] | None, None] = {}
        self._is_stopped = False
        self._slots = Slots(window)
        self._by_id: dict[int, Subscription] = {}
        self._link: Link | None = None
        self._given_up_link: Link | None = None
        # QoS 1 messages without our PUBACK, by packet id: of this link and of the one before.
        self._unacknowledged: dict[int, _Delivery] = {}
        self._orphans: dict[int, _Delivery] = {}

    def add(self, topic_filter: str, subscriber: Subscriber, *, qos: int) -> Subscription:
        """Remember a subscription. Raises TopicError."""
        check_filter(topic_filter)
        if topic_filter in self.subscriptions:
            raise TopicError(f"{topic_filter!r} is subscribed to already")
        # The same in every run of the program: a session that resumes brings old ids.
        number = zlib.crc32(topic_filter.encode()) % MAX_SUBSCRIPTION_ID + 1
        taken = {other.id for other in self.subscriptions.values()}
        while number in taken:
            number = number % MAX_SUBSCRIPTION_ID + 1
        at_once = subscriber.at_once if isinstance(subscriber, SideBySide) else 1
        subscription = Subscription(topic_filter, subscriber, qos, number, at_once)
        self.subscriptions[topic_filter] = self._by_id[number] = subscription
        return subscription

    def remove(self, topic_filter: str) -> bool:
        """Forget a subscription; what has come in for it is still worked on."""
        subscription = self.subscriptions.pop(topic_filter, None)
        if subscription is not None:
            del self._by_id[subscription.id]
        return subscription is not None

    def stop(self) -> None:
        """End the workers now: what they are not through with comes again in the next run."""
        self._is_stopped = True
        for worker in self._workers:
            if worker is not None:
                worker.cancel()

    def link_opened(self, link: Link) -> None:
        """Messages come from `link` now."""
        self._link = link
        if not link.greeting.session_present:
            # Nothing will be sent again, packet ids start anew, and so do subscriptions.
            self._orphans = {}
            for subscription in self.subscriptions.values():
                subscription.is_granted = False

    def link_lost(self) -> None:
        """What has no PUBACK yet will come again; `deliver` recognises it."""
        self._link = None
        self._orphans = {
            packet_id: delivery
            for packet_id, delivery in (self._orphans | self._unacknowledged).items()
            if not delivery.given_up
        }
        self._unacknowledged = {}

    async def wait_for_room(self) -> None:
        """Return when `deliver` has room for a message that found none."""
        await self._slots.take()
        self._slots.give()

    def deliver(self, link: Link, arrival: Arrival) -> bool:
        """Queue the message for everybody who wants it. False, and nothing done, while the window is full."""
        if self._orphans and arrival.inbound.qos and self._recognise(link, arrival):
            return True
        wanted = self._route(arrival)
        if not wanted:
            self.stats.received += 1
            self.stats.unroutable += 1
            log.debug("message without a subscription", topic=arrival.inbound.topic)
            if arrival.inbound.qos:
                link.acknowledge(arrival)
            return True
        if not self._slots.try_take():
            return False
        self.stats.received += 1
        if arrival.inbound.qos and link is self._given_up_link:
            # Read before the link was dropped for `Redeliver`: it comes again, in its turn.
            self._slots.give()
            return True
        delivery = _Delivery(link, arrival, len(wanted))
        if arrival.inbound.qos:
            self._unacknowledged[arrival.packet_id] = delivery
        for subscription in wanted:
            subscription.waiting.append(delivery)
            if subscription.workers < subscription.at_once and not self._is_stopped:
                subscription.workers += 1
                worker = self._tasks.create_task(self._work(subscription), name="session.worker")
                self._workers[worker] = None
        return True

    def _recognise(self, link: Link, arrival: Arrival) -> bool:
        """A message sent again that we still work on, or are through with, is not worked on twice."""
        orphan = self._orphans.pop(arrival.packet_id, None)
        if orphan is None or orphan.arrival.inbound.payload != arrival.inbound.payload:
            return False
        if orphan.arrival.inbound.topic != arrival.inbound.topic:
            return False
        self.stats.received += 1
        self.stats.recognised += 1
        orphan.link, orphan.arrival = link, arrival
        self._unacknowledged[arrival.packet_id] = orphan
        if not orphan.unfinished:
            self._acknowledge(orphan)
        return True

    def _route(self, arrival: Arrival) -> Sequence[Subscription]:
        """Brokers that send a copy for each overlapping subscription say which one it is for."""
        topic, by_id = arrival.inbound.topic, self._by_id
        if len(arrival.subscription_ids) == 1:
            only = by_id.get(arrival.subscription_ids[0])
            if only is not None and matches(only.topic_filter, topic):
                return (only,)
        named = [
            by_id[number]
            for number in arrival.subscription_ids
            if number in by_id and matches(by_id[number].topic_filter, topic)
        ]
        return named or [s for s in self.subscriptions.values() if matches(s.topic_filter, topic)]

    async def _work(self, subscription: Subscription) -> None:
        waiting, subscriber = subscription.waiting, subscription.subscriber
        try:
            while waiting:
                delivery = waiting.pop(0)
                if not delivery.given_up:
                    try:
                        await subscriber(delivery.arrival.inbound)
                        self.stats.handled += 1
                    except Redeliver:
                        self._give_up(subscription, delivery)
                    except Exception:
                        # A message that cannot be worked on must not block those behind it.
                        self.stats.failed += 1
                        log.exception(
                            "message failed",
                            topic=delivery.arrival.inbound.topic,
                            topic_filter=subscription.topic_filter,
                        )
                self._finish(delivery)
        finally:
            subscription.workers -= 1
            self._workers.pop(asyncio.current_task(self._loop), None)

    def _give_up(self, subscription: Subscription, delivery: _Delivery) -> None:
        """The broker is to send it again, and what waits behind it too, so that order is kept."""
        self.stats.redeliver_asked += 1
        log.info("message asked for again", topic=delivery.arrival.inbound.topic)
        for other in subscription.waiting:
            if other.arrival.inbound.qos and other.link is delivery.link:
                other.given_up = True
        if delivery.arrival.inbound.qos:
            delivery.given_up = True
            # What was lost with an earlier link comes again by itself.
            self._given_up_link = delivery.link
            delivery.link.abort()
            self._orphans.pop(delivery.arrival.packet_id, None)

    def _finish(self, delivery: _Delivery) -> None:
        delivery.unfinished -= 1
        if not delivery.unfinished:
            self._slots.give()
            if delivery.arrival.inbound.qos:
                self._acknowledge(delivery)

    def _acknowledge(self, delivery: _Delivery) -> None:
        packet_id = delivery.arrival.packet_id
        if (
            not delivery.given_up
            and delivery.link is self._link
            and delivery.link.acknowledge(delivery.arrival)
        ):
            self._unacknowledged.pop(packet_id, None)
