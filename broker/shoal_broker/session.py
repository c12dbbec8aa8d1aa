"""The one MQTT session that everybody in Shoal uses: it loses nothing and reconnects for ever.

A message is acknowledged after its subscriber returned; a durable publish is on disk before
`publish` returns. Where things stand: inbound in `dispatch`, outbound in `pump` and `outbox`, the
wire in a `Link` (from `transports`). This module decides when to connect, when a connection is
dead, and what happens on a fresh one. It knows no MQTT library and no message of Shoal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn, Self

import structlog

from shoal_broker import transports
from shoal_broker.alarms import Alarms
from shoal_broker.backoff import Backoff
from shoal_broker.bus_errors import (
    AnswerTimeoutError,
    BusError,
    LinkError,
    NotConnectedError,
    Redeliver,
    RefusedByBrokerError,
    TrustError,
)
from shoal_broker.clock_jump import ClockJump
from shoal_broker.dispatch import Dispatcher, SideBySide, Subscriber, Subscription
from shoal_broker.link import (
    Connect,
    Greeting,
    Inbound,
    Link,
    Outbound,
    Properties,
    SessionConfig,
    Will,
)
from shoal_broker.liveness import Watch
from shoal_broker.loopback import check_encrypted
from shoal_broker.outbox import Lane, Outbox, OutboxMessage
from shoal_broker.pump import Pump, SendWindow, check
from shoal_broker.requests import Requests
from shoal_broker.topic_filter import check_topic

__all__ = [
    "Inbound",
    "Lane",
    "OnConnected",
    "Redeliver",
    "Session",
    "SessionConfig",
    "SessionStats",
    "SideBySide",
    "Subscriber",
    "Will",
]

log = structlog.get_logger(__name__)

# A connection that lived this long was a good one: the backoff starts anew.
STABLE_S = 10.0


@dataclass(frozen=True, slots=True)
class SessionStats:
    """Counters since the session opened; `outbox_*` since the process started."""

    connects: int
    reconnects: int
    identity_refused: int
    broker_not_trusted: int
    tls_files_unusable: int
    published: int
    received: int
    handled: int
    failed: int
    redeliver_asked: int
    recognised: int
    unroutable: int
    outbox_waiting: int
    outbox_dropped: int
    outbox_expired: int


class Session:
    """One MQTT 5 session with a stable client id. Build it with `Session.open`."""

    def __init__(
        self,
        config: SessionConfig,
        *,
        connect: Connect,
        tasks: asyncio.TaskGroup,
        outbox: Outbox | None,
        will: Will | None,
        on_connected: OnConnected | None,
    ) -> None:
        self.config = config
        self.outbox = outbox
        self.last_error: str | None = None
        self.backoff = Backoff(initial_s=config.backoff_initial_s, longest_s=config.backoff_max_s)
        self._connect = connect
        self._will = will
        self._on_connected = on_connected
        self._dispatcher = Dispatcher(tasks, window=config.receive_maximum)
        self._link: Link | None = None
        self._linked_s: float | None = None
        self._window: SendWindow | None = None
        self._is_ready = False
        self._wait_ready: list[asyncio.Future[None]] = []
        self._requests: Requests | None = None
        self._connects = 0
        self._alarms = Alarms()
        self._published = 0
        self._leaving = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: SessionConfig,
        *,
        outbox: Outbox | None = None,
        will: Will | None = None,
        subscriptions: Mapping[str, Subscriber] | None = None,
        on_connected: OnConnected | None = None,
        connect: Connect | None = None,
    ) -> AsyncIterator[Self]:
        """Return at once, connected or not: a board works with the uplink cut.

        `on_connected(session, session_present)` runs after the subscriptions on every connection.
        Leaving waits at most `close_timeout_s` for the outbox, then sends a normal DISCONNECT: the
        will is not published, so publish an offline presence before if one is wanted.

        Raises TopicError for a filter that is none, TransportMissingError, PlaintextError.
        """
        check_encrypted(
            config.host,
            has_tls=config.tls is not None,
            plaintext=config.plaintext,
            say="set [broker] ca_file (TLS), or plaintext = true",
        )
        if connect is None:
            connect = transports.connect_with(config.transport)
        failure: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            session = cls(
                config,
                connect=connect,
                tasks=tasks,
                outbox=outbox,
                will=will,
                on_connected=on_connected,
            )
            live: asyncio.Task[None] | None = None
            try:
                for topic_filter, subscriber in (subscriptions or {}).items():
                    session._dispatcher.add(topic_filter, subscriber, qos=1)
                live = tasks.create_task(session._live(), name="session.live")
                yield session
            except Exception as exc:  # noqa: BLE001 - raised below, outside the group that would wrap it
                failure = exc
            finally:
                try:
                    await session._leave()
                finally:
                    # Said before the cancel: a task group that ends with an error at the same time
                    # takes the cancel with it.
                    session._leaving = True
                    if live is not None:
                        live.cancel()
                    session._dispatcher.stop()
        if failure is not None:
            raise failure

    @property
    def connected(self) -> bool:
        """Connected, with every subscription in place."""
        return self._is_ready

    @property
    def linked_s(self) -> float | None:
        """`time.monotonic()` when the newest connection was made, before its first message came."""
        return self._linked_s

    @property
    def greeting(self) -> Greeting | None:
        """What the broker granted on the connection that stands; None without one."""
        return None if self._link is None else self._link.greeting

    @property
    def last_inbound_s(self) -> float | None:
        """`time.monotonic()` when bytes last came in on the connection that stands; None without one."""
        return None if self._link is None else self._link.last_inbound_s

    @property
    def stats(self) -> SessionStats:
        """What has happened so far."""
        inbound = self._dispatcher.stats
        published = self._published + (0 if self._window is None else self._window.published)
        return SessionStats(
            connects=self._connects,
            reconnects=max(0, self._connects - 1),
            identity_refused=self._alarms.identity_refused,
            broker_not_trusted=self._alarms.broker_not_trusted,
            tls_files_unusable=self._alarms.tls_files_unusable,
            published=published,
            received=inbound.received,
            handled=inbound.handled,
            failed=inbound.failed,
            redeliver_asked=inbound.redeliver_asked,
            recognised=inbound.recognised,
            unroutable=inbound.unroutable,
            outbox_waiting=0 if self.outbox is None else len(self.outbox),
            outbox_dropped=0 if self.outbox is None else self.outbox.stats.dropped,
            outbox_expired=0 if self.outbox is None else self.outbox.stats.expired,
        )

    async def wait_connected(self, timeout_s: float) -> None:
        """Return once `connected`. Raises NotConnectedError after `timeout_s`."""
        while not self._is_ready:
            ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._wait_ready.append(ready)
            try:
                async with asyncio.timeout(timeout_s):
                    await ready
            except TimeoutError as exc:
                raise self._not_connected() from exc
            finally:
                if ready in self._wait_ready:
                    self._wait_ready.remove(ready)

    async def reconnect(self) -> None:
        """Say goodbye and connect anew, with TLS files as they are now; nothing without a connection.

        The broker keeps the session, and publishes no will.
        """
        if (link := self._link) is None:
            return
        try:
            async with asyncio.timeout(self.config.close_timeout_s):
                await link.disconnect()
        except (TimeoutError, LinkError):
            pass
        link.abort(LinkError("left on purpose, to connect anew"))

    async def subscribe(self, topic_filter: str, subscriber: Subscriber, *, qos: int = 1) -> None:
        """Remember the subscription; when connected, return once the broker has granted it.

        Raises TopicError, RefusedByBrokerError (then it is forgotten), AnswerTimeoutError.
        """
        subscription = self._dispatcher.add(topic_filter, subscriber, qos=qos)
        link = self._link
        if link is None:
            return
        try:
            await self._bounded(self._grant(link, subscription), self.config.connect_timeout_s)
        except RefusedByBrokerError:
            self._dispatcher.remove(topic_filter)
            raise
        except LinkError:
            # Remembered: the next connection asks for it.
            return

    async def ask_again(self, topic_filter: str) -> None:
        """Have the broker send what it retains for a subscription once more; nothing when not connected."""
        subscription = self._dispatcher.subscriptions.get(topic_filter)
        if subscription is not None and (link := self._link) is not None:
            await self._bounded(self._grant(link, subscription), self.config.connect_timeout_s)

    async def unsubscribe(self, topic_filter: str) -> None:
        """Forget the subscription; what has come in already still reaches its subscriber.

        The broker is told of one that this process never made, too: an earlier one may have left it.
        """
        self._dispatcher.remove(topic_filter)
        if (link := self._link) is not None:
            try:
                await self._bounded(link.unsubscribe(topic_filter), self.config.connect_timeout_s)
            except LinkError:
                # The broker goes on sending; `dispatch` acknowledges and counts.
                return

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        expiry_s: float | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        properties: Properties | None = None,
        lane: int = Lane.NORMAL,
        durable: bool = True,
        droppable: bool = False,
        coalesce_key: str | None = None,
        receipt: bytes | None = None,
        hold: bool = False,
        not_before_s: float = 0.0,
        keep_s: float | None = None,
        stream_bytes: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Publish through the outbox (`durable`) or directly.

        Durable: returns once the message is safe, connected or not; it is sent until the broker
        has it, or, with a `receipt`, until `Outbox.received` has said so (see `Outbox.put` for
        `hold`, `not_before_s` and `stream_bytes`; `keep_s` is how long it waits at most, which nobody
        is told, unlike `expiry_s`). Direct: returns at PUBACK (QoS 1) or when
        written (QoS 0), within `timeout_s`, without one for as long as the connection lives; what
        concerns the outbox has no meaning.

        Raises TopicError, MessageTooLargeError; durable: OutboxFullError, StoreError; direct:
        NotConnectedError, LinkError, AnswerTimeoutError, RefusedByBrokerError.
        """
        check_topic(topic)
        outbound = Outbound(
            topic=topic,
            payload=payload,
            qos=qos,
            retain=retain,
            expiry_s=None if expiry_s is None else max(1, round(expiry_s)),
            response_topic=response_topic,
            correlation=correlation,
            properties=properties,
        )
        if not durable:
            window = self._window
            if timeout_s is None and window is not None and self._is_ready and window.try_reserve():
                # What happens nearly always, without a coroutine more.
                await window.publish(outbound)
                return
            await self._publish_now(outbound, timeout_s)
            return
        if self.outbox is None:
            raise BusError(f"{topic}: a durable publish needs a session with an outbox")
        if self._link is not None:
            check(self._link.greeting, outbound)
        now_ms = self.outbox.clock_ms()
        await self.outbox.put(
            OutboxMessage(
                topic=topic,
                payload=payload,
                qos=qos,
                retain=retain,
                lane=lane,
                expires_at_ms=None if expiry_s is None else now_ms + round(expiry_s * 1000),
                keep_until_ms=None if keep_s is None else now_ms + round(keep_s * 1000),
                response_topic=response_topic,
                correlation=correlation,
                properties=properties,
                coalesce_key=coalesce_key,
                droppable=droppable,
                receipt=receipt,
            ),
            hold=hold,
            not_before_s=not_before_s,
            stream_bytes=stream_bytes,
        )

    def outbox_changed(self) -> None:
        """Say that rows were added to the outbox by `outbox.insert` and are committed."""
        if self.outbox is not None:
            self.outbox.changed()

    async def request(
        self,
        topic: str,
        payload: bytes,
        *,
        reply_topic: str,
        timeout_s: float,
        qos: int = 1,
    ) -> bytes:
        """Publish a request and return the payload of its reply.

        `reply_topic` is one of the caller's own topics; it stays subscribed for the next request.

        Raises what a direct publish raises, and AnswerTimeoutError without a reply.
        """
        if self._requests is None:
            self._requests = Requests(self.subscribe, self._publish_now)
        return await self._requests.ask(
            topic, payload, reply_topic=reply_topic, timeout_s=timeout_s, qos=qos
        )

    # --- the connection

    async def _live(self) -> None:
        """Connect, serve, wait, until we leave."""
        while True:
            clock_jump, is_refused = ClockJump(), False
            try:
                await self._one_connection()
            except LinkError as exc:
                is_refused = isinstance(exc, TrustError)
                delay_s = self.backoff.after_failure(exc)
            else:
                delay_s = self.backoff.after_success()
            if self._leaving:
                return
            if is_refused:
                await clock_jump.sleep(delay_s)
            else:
                await asyncio.sleep(delay_s)

    async def _one_connection(self) -> None:
        """Return when a good connection ended. Raises LinkError when there was none."""
        where = f"{self.config.host}:{self.config.port}"
        started_s: float | None = None
        try:
            async with self._connect(self.config, self._will) as link:
                started_s = time.monotonic()
                self._connects += 1
                await self._serve(link)
        except TrustError as exc:
            self.last_error = str(exc)
            self._alarms.sound(exc, broker=where)
            raise
        except LinkError as exc:
            self.last_error = str(exc)
            if self._leaving:
                return
            if started_s is None:
                log.info("broker not reached", broker=where, error=str(exc))
                raise
            lived_s = time.monotonic() - started_s
            log.warning("connection lost", broker=where, error=str(exc), lived_s=round(lived_s, 1))
            if lived_s < STABLE_S:
                raise

    async def _serve(self, link: Link) -> None:
        """Raise LinkError when the link is lost."""
        self._dispatcher.link_opened(link)
        self._link = link
        self._linked_s = time.monotonic()
        self._window = window = SendWindow(link, messages=self.config.in_flight_messages)
        lost: LinkError | None = None
        try:
            with Watch(link, window, self.config):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._welcome(link), name="session.welcome")
                    if self.outbox is not None:
                        pump = Pump(
                            self.outbox,
                            window,
                            messages=self.config.in_flight_messages,
                            size_bytes=self.config.in_flight_bytes,
                        )
                        tasks.create_task(pump.run(), name="session.pump")
                    await self._read(link)
        except* LinkError as group:
            lost = _first(group)
        finally:
            self._is_ready = False
            self._link = None
            self._window = None
            self._published += window.published
            self._dispatcher.link_lost()
        if lost is not None:
            raise lost

    async def _read(self, link: Link) -> NoReturn:
        while True:
            arrival = await link.receive()
            while not self._dispatcher.deliver(link, arrival):
                await self._dispatcher.wait_for_room()

    async def _welcome(self, link: Link) -> None:
        for subscription in list(self._dispatcher.subscriptions.values()):
            if subscription.is_granted:
                continue
            try:
                await self._grant(link, subscription)
            except RefusedByBrokerError as exc:
                # Remembered: the next connection may be one after the ACL was mended.
                log.error("subscription refused", error=str(exc))  # noqa: TRY400 - the message says it all
        self._is_ready = True
        for ready in self._wait_ready:
            if not ready.done():
                ready.set_result(None)
        self.last_error = None
        log.info(
            "connected",
            broker=f"{self.config.host}:{self.config.port}",
            session_present=link.greeting.session_present,
        )
        if self._on_connected is not None:
            try:
                await self._on_connected(self, link.greeting.session_present)
            except LinkError:
                raise
            except Exception:
                log.exception("on_connected failed")

    async def _grant(self, link: Link, subscription: Subscription) -> None:
        await link.subscribe(
            subscription.topic_filter, qos=subscription.qos, subscription_id=subscription.id
        )
        subscription.is_granted = True

    async def _leave(self) -> None:
        """Give the outbox a moment, then say goodbye; never longer than `close_timeout_s`."""
        try:
            async with asyncio.timeout(self.config.close_timeout_s):
                if self.outbox is not None:
                    if self.connected:
                        await self.outbox.wait_sent()
                    await self.outbox.flush()
        except TimeoutError:
            log.warning(
                "messages left in the outbox", rows=0 if not self.outbox else self.outbox.unsent
            )
        except BusError as exc:
            log.error("outbox cannot be written", error=str(exc))  # noqa: TRY400 - the message says it all
        self._leaving = True
        if (link := self._link) is not None:
            try:
                async with asyncio.timeout(self.config.close_timeout_s):
                    await link.disconnect()
            except (TimeoutError, LinkError):
                link.abort()

    # --- direct publishes

    async def _publish_now(self, message: Outbound, timeout_s: float | None) -> None:
        window = self._window
        if window is None or not self.connected:
            raise self._not_connected()
        if timeout_s is None:
            # A broker that acknowledges nothing ends the connection, and that this wait.
            if not window.try_reserve():
                await window.reserve()
            await window.publish(message)
            return
        try:
            async with asyncio.timeout(timeout_s):
                await window.reserve()
                await window.publish(message)
        except TimeoutError as exc:
            raise _no_answer(timeout_s) from exc

    async def _bounded(self, wanted: Awaitable[None], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await wanted
        except TimeoutError as exc:
            raise _no_answer(timeout_s) from exc

    def _not_connected(self) -> NotConnectedError:
        why = f": {self.last_error}" if self.last_error else ""
        return NotConnectedError(f"not connected to {self.config.host}:{self.config.port}{why}")


OnConnected = Callable[[Session, bool], Awaitable[None]]


def _no_answer(timeout_s: float) -> AnswerTimeoutError:
    return AnswerTimeoutError(
        f"the broker did not answer within {timeout_s:g} s", timeout_s=timeout_s
    )


def _first(group: BaseExceptionGroup[LinkError]) -> LinkError:
    """Any one of the reasons for which the link is lost: they are all the same loss."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, LinkError) else LinkError(str(error))
