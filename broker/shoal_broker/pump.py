"""The outbox onto one link: several in flight, order kept, and the outbox hears of each PUBACK.

Lives as long as the link. What was in flight when it ended is next again on the following one:
at least once, in the old order. The window is shared with publishes that bypass the outbox.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from shoal_broker.bus_errors import MessageTooLargeError, RefusedByBrokerError, StoreError
from shoal_broker.link import Greeting, Link, Outbound
from shoal_broker.outbox import Outbox, OutboxMessage, OutboxRow
from shoal_broker.slots import Slots

log = structlog.get_logger(__name__)

# PUBACK reasons that pass: unspecified, implementation specific, packet id in use, quota exceeded.
PASSING_REASONS = frozenset({0x80, 0x83, 0x91, 0x97})
PASSING_PAUSE_S = 1.0
STORE_PAUSE_S = 5.0
# Deletions wait this long for company: one fsync for many rows.
DELETION_DELAY_S = 0.25
QUESTION_EXPIRY_S = 60
# Topic, response topic and correlation data are 64 KiB each at most.
MOST_OTHER_BYTES = 4 * 65_536
RETAIN_NOT_SUPPORTED = 0x9A


class SendWindow:
    """How much may be in flight on a link, and when the broker last took some of it."""

    def __init__(self, link: Link, *, messages: int) -> None:
        self.published = 0
        self._link = link
        self._greeting = link.greeting
        self._slots = Slots(max(1, min(messages, link.greeting.receive_maximum)))
        self._in_flight = 0
        self._moved_s = time.monotonic()

    def try_reserve(self) -> bool:
        """Take a slot if one is free; `publish` gives it back."""
        return self._slots.try_take()

    async def reserve(self) -> None:
        """Wait for a slot; `publish` gives it back."""
        await self._slots.take()

    async def publish(self, message: Outbound) -> bool:
        """Send within a reserved slot; returns and raises what `Link.publish` and `check` do."""
        try:
            check(self._greeting, message)
            if not self._in_flight:
                self._moved_s = time.monotonic()
            self._in_flight += 1
            try:
                had_subscribers = await self._link.publish(message)
            finally:
                self._in_flight -= 1
            self.published += 1
            self._moved_s = time.monotonic()
            return had_subscribers
        finally:
            self._slots.give()

    @property
    def session_present(self) -> bool:
        """Whether the broker remembered us when the link was made."""
        return self._greeting.session_present

    @property
    def stuck_s(self) -> float:
        """For how long the broker has left everything in flight unanswered."""
        return time.monotonic() - self._moved_s if self._in_flight else 0.0


def check(greeting: Greeting, message: Outbound) -> None:
    """Refuse here what would make the broker close the connection over and over.

    Raises MessageTooLargeError, RefusedByBrokerError.
    """
    limit_bytes = greeting.maximum_packet_bytes
    if (
        limit_bytes is not None
        # Most are far below it, whatever else the packet holds; user properties have no bound.
        and (message.properties or len(message.payload) + MOST_OTHER_BYTES > limit_bytes)
        and message.packet_bytes > limit_bytes
    ):
        raise MessageTooLargeError(
            f"{message.topic}: {message.packet_bytes} bytes, the broker takes {limit_bytes}",
            size_bytes=message.packet_bytes,
            limit_bytes=limit_bytes,
        )
    if message.retain and not greeting.retain_available:
        raise RefusedByBrokerError(
            f"{message.topic}: the broker keeps no retained messages",
            reason_code=RETAIN_NOT_SUPPORTED,
        )


class Pump:
    """Sends the rows of `outbox` over one link."""

    def __init__(
        self, outbox: Outbox, window: SendWindow, *, messages: int, size_bytes: int
    ) -> None:
        self._outbox = outbox
        self._window = window
        self._max_messages = messages
        self._max_bytes = size_bytes
        self._messages = 0
        self._bytes = 0
        self._space = asyncio.Event()
        self._resume_s = 0.0

    async def run(self) -> None:
        """Send until the link is lost (an exception group of LinkError) or cancelled."""
        self._outbox.link_opened(session_present=self._window.session_present)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep(), name="session.sweep")
            while True:
                await self._outbox.wait()
                await self._wait_for_space()
                try:
                    rows = await self._outbox.take(
                        max_rows=self._max_messages - self._messages,
                        max_bytes=max(1, self._max_bytes - self._bytes),
                    )
                except StoreError as exc:
                    log.error("outbox cannot be read", error=str(exc))  # noqa: TRY400 - the message says it all
                    await asyncio.sleep(STORE_PAUSE_S)
                    continue
                for row in rows:
                    self._messages += 1
                    self._bytes += row.message.size_bytes
                for row in rows:
                    await self._window.reserve()
                    tasks.create_task(self._send(row), name="session.send")

    async def _wait_for_space(self) -> None:
        await asyncio.sleep(max(0.0, self._resume_s - time.monotonic()))
        while self._messages >= self._max_messages or self._bytes >= self._max_bytes:
            self._space.clear()
            await self._space.wait()

    async def _send(self, row: OutboxRow) -> None:
        try:
            anybody = await self._window.publish(_outbound(row.message, self._outbox.clock_ms()))
        except RefusedByBrokerError as exc:
            if exc.reason_code in PASSING_REASONS:
                log.warning("message put back", topic=row.message.topic, error=str(exc))
                self._resume_s = time.monotonic() + PASSING_PAUSE_S
                self._outbox.put_back([row.id])
            else:
                log.error("message refused", topic=row.message.topic, error=str(exc))  # noqa: TRY400 - the broker's fault, not a stack's
                self._outbox.refuse(row.id)
        except MessageTooLargeError as exc:
            log.error("message refused", topic=row.message.topic, error=str(exc))  # noqa: TRY400 - the message says it all
            self._outbox.refuse(row.id)
        else:
            self._outbox.sent(row.id, row.message.topic, anybody=anybody)
        finally:
            self._messages -= 1
            self._bytes -= row.message.size_bytes
            self._space.set()

    async def _sweep(self) -> None:
        while True:
            await self._outbox.wait_deletions()
            await asyncio.sleep(DELETION_DELAY_S)
            try:
                await self._outbox.flush_deletions()
            except StoreError as exc:
                log.error("outbox cannot be written", error=str(exc))  # noqa: TRY400 - the message says it all
                await asyncio.sleep(STORE_PAUSE_S)


def _outbound(message: OutboxMessage, now_ms: int) -> Outbound:
    expiry_s = None
    if message.expires_at_ms is not None:
        expiry_s = -(-(message.expires_at_ms - now_ms) // 1000)
        if expiry_s <= 0:
            # Its time is over, its receipt is not here: it goes as a question, not as an order.
            expiry_s = QUESTION_EXPIRY_S
    return Outbound(
        topic=message.topic,
        payload=message.payload,
        qos=message.qos,
        retain=message.retain,
        expiry_s=expiry_s,
        response_topic=message.response_topic,
        correlation=message.correlation,
        properties=message.properties,
    )
