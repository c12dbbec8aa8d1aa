"""A session whose broker has everything retained and answers within the same moment: no network, no clock."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Self

from shoal_broker.session import Inbound
from shoal_broker.topic_filter import matches


class RetainedSession:
    """Use it in place of `Session`: `app.Session = RetainedSession.of(retained, on_publish)`.

    Attributes:
        subscriptions: those that the session was opened with.
    """

    connected = True
    linked_s = 0.0
    last_inbound_s: float | None = 0.0
    greeting = None

    def __init__(self, retained: dict[str, bytes], on_publish, subscriptions) -> None:
        self.retained = retained
        self.subscriptions = dict(subscriptions)
        self.backoff = SimpleNamespace(fleet_nodes=0)
        self._on_publish = on_publish
        self._tasks: set[asyncio.Task] = set()

    @classmethod
    def of(cls, retained: dict[str, bytes], on_publish=lambda _topic, _payload: None):
        """What stands in for the class `Session`; `opened` holds the newest one."""

        opener = SimpleNamespace(opened=None)

        @asynccontextmanager
        async def open_(_config, *, subscriptions=(), **_) -> AsyncIterator[Self]:
            opener.opened = cls(retained, on_publish, subscriptions)
            yield opener.opened

        opener.open = open_
        return opener

    async def deliver(self, topic: str) -> None:
        """What is retained there, to whom the session was opened for; returns when it is taken."""
        await self.subscriptions[topic](self._message(topic))

    async def subscribe(self, topic_filter: str, subscriber, *, qos: int = 1) -> None:
        if isinstance(subscriber, object) and hasattr(subscriber, "receive"):
            subscriber = subscriber.receive
        for topic in [topic for topic in self.retained if matches(topic_filter, topic)]:
            task = asyncio.ensure_future(subscriber(self._message(topic)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def unsubscribe(self, topic_filter: str) -> None:
        """Nothing is remembered."""

    async def publish(self, topic: str, payload: bytes, **_) -> None:
        self._on_publish(topic, payload)

    async def wait_connected(self, timeout_s: float) -> None:
        """It is."""

    async def reconnect(self) -> None:
        """It is."""

    def outbox_changed(self) -> None:
        """Nothing leaves it."""

    def _message(self, topic: str) -> Inbound:
        return Inbound(topic=topic, payload=self.retained[topic], qos=1, retain=True)
