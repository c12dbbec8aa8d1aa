"""Requests and their replies over a session: a response topic, and correlation data to tell them apart.

A session makes one of these when it is first asked; most never are. It does not send by itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Protocol

from shoal_broker.bus_errors import AnswerTimeoutError
from shoal_broker.dispatch import Subscriber
from shoal_broker.link import Inbound, Outbound
from shoal_broker.topic_filter import check_topic


class Subscribe(Protocol):
    """`Session.subscribe`."""

    def __call__(self, topic_filter: str, subscriber: Subscriber, *, qos: int) -> Awaitable[None]:
        """See there."""
        ...


class Requests:
    """The requests that wait for replies."""

    def __init__(
        self, subscribe: Subscribe, publish: Callable[[Outbound, float], Awaitable[None]]
    ) -> None:
        self._subscribe = subscribe
        self._publish = publish
        self._replies: dict[bytes, asyncio.Future[bytes]] = {}
        self._topics: set[str] = set()
        self._subscribing = asyncio.Lock()

    async def ask(
        self, topic: str, payload: bytes, *, reply_topic: str, timeout_s: float, qos: int
    ) -> bytes:
        """See `Session.request`."""
        check_topic(topic)
        correlation = secrets.token_bytes(8)
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._replies[correlation] = reply
        request = Outbound(
            topic=topic,
            payload=payload,
            qos=qos,
            expiry_s=max(1, round(timeout_s)),
            response_topic=reply_topic,
            correlation=correlation,
        )
        try:
            async with asyncio.timeout(timeout_s):
                # Nobody asks before the broker has granted the subscription, also not the second.
                async with self._subscribing:
                    if reply_topic not in self._topics:
                        await self._subscribe(reply_topic, self._take, qos=qos)
                        self._topics.add(reply_topic)
                await self._publish(request, timeout_s)
                return await reply
        except TimeoutError as exc:
            raise AnswerTimeoutError(
                f"{topic}: no reply within {timeout_s:g} s", timeout_s=timeout_s
            ) from exc
        finally:
            del self._replies[correlation]

    async def _take(self, inbound: Inbound) -> None:
        reply = self._replies.get(inbound.correlation or b"")
        if reply is not None and not reply.done():
            reply.set_result(inbound.payload)
