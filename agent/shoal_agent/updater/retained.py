"""Reads one retained message: what stands at a topic now, or that nothing does. It keeps no subscription."""

import asyncio
import time
from typing import Final

from shoal_broker.session import Inbound, Session

ABSENT_S: Final = 1.0
"""A broker sends what it retains right behind its SUBACK; after so long a silence there is nothing."""


async def retained(session: Session, topic: str, *, timeout_s: float) -> bytes | None:
    """The message that the broker retains at this topic; None: there is none.

    Bytes that come in, of whatever, count as patience: on a slow line the message may wait behind others.

    Raises:
        BusError: without a connection, or refused.
        TopicError: it is no topic.
    """
    ends_s = time.monotonic() + timeout_s
    arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def receive(message: Inbound) -> None:
        if message.payload and not arrived.done():
            arrived.set_result(message.payload)

    await session.wait_connected(timeout_s)
    try:
        await session.subscribe(topic, receive)
        quiet_since_s = time.monotonic()
        while (now_s := time.monotonic()) < min(quiet_since_s + ABSENT_S, ends_s):
            wait_s = min(quiet_since_s + ABSENT_S, ends_s) - now_s
            await asyncio.wait([arrived], timeout=wait_s)
            if arrived.done():
                return arrived.result()
            quiet_since_s = max(quiet_since_s, session.last_inbound_s or 0.0)
        return None
    finally:
        await session.unsubscribe(topic)
