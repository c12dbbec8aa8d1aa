"""One bridge: a session upstream, a session inside, and what goes from one to the other.

A message is acknowledged to the broker that it comes from once the other one has it, or, with a
queue file, once it is on the disk. Order is kept: what is taken in order is handed on in order.
What is in doubt when a connection breaks goes again: at least once, as QoS 1 says.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Self

import structlog

from shoal_broker import codec_transport
from shoal_broker.bus_errors import (
    BrokerTableError,
    BusError,
    LinkError,
    MessageTooLargeError,
    NotConnectedError,
    Redeliver,
    RefusedByBrokerError,
    StoreError,
)
from shoal_broker.dispatch import SideBySide
from shoal_broker.errors import BridgeError, ConfigError
from shoal_broker.link import Connect, Inbound, Link, SessionConfig, Will
from shoal_broker.outbox import Outbox
from shoal_broker.pump import PASSING_PAUSE_S, PASSING_REASONS
from shoal_broker.server.bridge import hops
from shoal_broker.server.bridge.ages import Ages
from shoal_broker.server.bridge.routes import Route, inward, outward, reply_topic
from shoal_broker.server.bridge.table import BridgeTable
from shoal_broker.server.bridge.turns import Turns
from shoal_broker.server.log_budget import Budget, LogBudget
from shoal_broker.server.reserved import inside_client_id, queued_topic, state_topic
from shoal_broker.session import Session
from shoal_broker.store import Store

DEFAULT_QUEUED_MESSAGES = 100_000
DEFAULT_QUEUED_BYTES = 64 << 20

AT_ONCE = 64
"""Messages of either side under way to the other; as many as a session takes before it acknowledges."""
SPARE_SLOTS = 8
"""For what the bridge says itself, so that no message has to wait for its turn out of order."""
GOODBYE_TIMEOUT_S = 1.0
INSIDE_TIMEOUT_S = 30.0
"""For our own core to answer; long, because what it remembers may be large."""
LOOK_INTERVAL_S = 1.0
LONG_S = 365 * 86_400.0
UP, DOWN = b"1", b"0"
NOT_CROSSED = "message did not cross"
MAX_LOGGED_CHARACTERS = 200

log = structlog.get_logger("shoal_broker")


class Lost(StrEnum):
    """Why a message did not cross."""

    LOOP = "loop"
    """It has been there before."""
    OFFLINE_QOS0 = "offline_qos0"
    REFUSED = "refused"
    """The other broker said no."""
    TOO_LARGE = "too_large"
    EXPIRED = "expired"
    """Of its own expiry, or of the bridge's max_age_s."""
    QUEUE_FULL = "queue_full"


@dataclass(slots=True)
class BridgeCounters:
    """Since the bridge started."""

    messages_out: int = 0
    """Handed to the upstream broker, or to the queue file."""
    messages_in: int = 0
    lost: Counter[Lost] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is to go out and has not; `oldest_s` is known with a queue file only."""

    messages: int
    size_bytes: int
    oldest_s: float | None


class Bridge:
    """A bridge that stands for as long as its context; connected or not."""

    def __init__(self, table: BridgeTable, broker_id: str, held: Callable[[], Waiting]) -> None:
        self.table = table
        self.name = table.name
        self.counters = BridgeCounters()
        self.is_connected = False
        self.upstream: Session
        self._inside: Session
        self._broker_id = broker_id
        self._upstream_id = hops.upstream_id((), table.host, table.port)
        self._held = held
        self._outbox: Outbox | None = None
        self._ages: Ages | None = None
        self._out = outward(table.topic)
        self._in = inward(table.topic)
        self._turns = Turns()
        self._changed = asyncio.Event()
        self._is_leaving = False
        self._log_budget = LogBudget({NOT_CROSSED: Budget(20, 0.2)}, time.monotonic())

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        table: BridgeTable,
        *,
        broker_id: str,
        inside: Connect,
        held: Callable[[], Waiting],
        tasks: asyncio.TaskGroup,
    ) -> AsyncIterator[Self]:
        """Return once it takes what our clients say, connected to the upstream or not.

        `broker_id` is ours, for what goes round; `inside` leads to our own core; `held` tells what
        waits there for this bridge. Raises ConfigError, BridgeError.
        """
        bridge = cls(table, broker_id, held)
        async with AsyncExitStack() as stack:
            outbox = await bridge._load_queue(stack)
            bridge.upstream = await stack.enter_async_context(bridge._upstream(outbox))
            bridge._inside = await stack.enter_async_context(bridge._inside_session(inside))
            for route in bridge._in:
                await bridge.upstream.subscribe(
                    route.source_filter,
                    SideBySide(partial(bridge._bring_in, route), AT_ONCE),
                    qos=route.qos,
                )
            for route in bridge._out:
                await bridge._inside.subscribe(
                    route.source_filter,
                    SideBySide(partial(bridge._take_out, route), AT_ONCE),
                    qos=route.qos,
                )
            await bridge._wait_inside()
            telling = tasks.create_task(bridge._tell_forever(), name=f"bridge.{table.name}")
            try:
                yield bridge
            finally:
                bridge._is_leaving = True
                telling.cancel()
                await bridge._say_goodbye()

    @property
    def waiting(self) -> Waiting:
        """What is to go out and has not."""
        outbox = self._outbox
        if outbox is None or self._ages is None:
            return self._held()
        oldest_s = self._ages.oldest_s(
            put=outbox.stats.put, waiting=len(outbox), now_s=time.monotonic()
        )
        return Waiting(len(outbox), outbox.size_bytes, oldest_s)

    @property
    def lost(self) -> dict[Lost, int]:
        """Messages that did not cross, by reason."""
        lost = Counter(self.counters.lost)
        if self._outbox is not None:
            lost[Lost.REFUSED] += self._outbox.stats.refused
            lost[Lost.QUEUE_FULL] += self._outbox.stats.dropped - self._outbox.stats.refused
            lost[Lost.EXPIRED] += self._outbox.stats.expired
        return {reason: lost[reason] for reason in Lost}

    # --- beginning and end

    async def _load_queue(self, stack: AsyncExitStack) -> Outbox | None:
        table = self.table
        if table.queue_file is None:
            return None
        try:
            store = await stack.enter_async_context(Store.open(Path(table.queue_file)))
            outbox = await Outbox.load(
                store,
                max_rows=table.max_queued_messages or DEFAULT_QUEUED_MESSAGES,
                max_bytes=table.max_queued_bytes or DEFAULT_QUEUED_BYTES,
            )
        except StoreError as exc:
            raise BridgeError(f"bridge {self.name}: {exc}", name=self.name) from exc
        self._outbox = outbox
        self._ages = Ages(waiting=len(outbox), now_s=time.monotonic())
        return outbox

    async def _wait_inside(self) -> None:
        try:
            await self._inside.wait_connected(INSIDE_TIMEOUT_S)
        except NotConnectedError as exc:
            raise BridgeError(f"bridge {self.name}: {exc}", name=self.name) from exc

    @asynccontextmanager
    async def _upstream(self, outbox: Outbox | None) -> AsyncIterator[Session]:
        table = self.table
        try:
            config = table.session(table.upstream_id)
        except BrokerTableError as exc:
            raise ConfigError(str(exc)) from exc
        config = replace(config, is_bridge=True, in_flight_messages=AT_ONCE + SPARE_SLOTS)
        will = Will(state_topic(table.upstream_id), DOWN) if table.announce_upstream else None
        async with Session.open(
            config,
            outbox=outbox,
            will=will,
            on_connected=self._upstream_connected,
            connect=self._connect_upstream,
        ) as session:
            yield session

    @asynccontextmanager
    async def _connect_upstream(
        self, config: SessionConfig, will: Will | None
    ) -> AsyncIterator[Link]:
        async with codec_transport.connect(config, will) as link:
            # Before its first message: nobody may take it for one of another broker.
            said = link.greeting.user_properties
            self._upstream_id = hops.upstream_id(said, config.host, config.port)
            try:
                yield link
            finally:
                self.is_connected = False
                self._changed.set()

    @asynccontextmanager
    async def _inside_session(self, inside: Connect) -> AsyncIterator[Session]:
        config = SessionConfig(
            host=f"bridge {self.name}, inside",
            port=0,
            client_id=inside_client_id(self.name),
            receive_maximum=AT_ONCE,
            in_flight_messages=AT_ONCE + SPARE_SLOTS,
            backoff_initial_s=0.05,
            backoff_max_s=1.0,
            transport="codec",
            # It never leaves this process.
            plaintext=True,
            is_bridge=True,
        )
        async with Session.open(
            config, on_connected=self._inside_connected, connect=inside
        ) as session:
            yield session

    async def _upstream_connected(self, session: Session, session_present: bool) -> None:  # noqa: FBT001 - as OnConnected
        self.is_connected = True
        self._changed.set()
        if self.table.announce_upstream:
            await self._announce(session, state_topic(self.table.upstream_id), UP)
        if not session_present and session.stats.reconnects:
            # It has forgotten us, and perhaps what it retained for us.
            for route in self._out:
                with suppress(BusError):
                    await self._inside.ask_again(route.source_filter)

    async def _inside_connected(self, _session: Session, _session_present: bool) -> None:  # noqa: FBT001 - as OnConnected
        self._changed.set()

    async def _tell_forever(self) -> None:
        """Have our own clients know how things stand; look at the queue now and then."""
        told: bytes | None = None
        told_queued = -1
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._changed.wait()
            self._changed.clear()
            for event, count in self._log_budget.left_out(time.monotonic()):
                log.warning("log lines left out", bridge=self.name, left_out=event, count=count)
            if self._outbox is not None and self._ages is not None:
                self._ages.look(
                    put=self._outbox.stats.put,
                    waiting=len(self._outbox),
                    now_s=time.monotonic(),
                )
            state = UP if self.is_connected else DOWN
            if state != told and self._inside.connected:
                await self._announce(self._inside, state_topic(self.name), state)
                told = state
            queued = self.waiting.messages
            if queued != told_queued and self._inside.connected:
                await self._announce(self._inside, queued_topic(self.name), b"%d" % queued)
                told_queued = queued

    async def _announce(self, session: Session, topic: str, what: bytes) -> None:
        try:
            await session.publish(
                topic, what, retain=True, durable=False, timeout_s=GOODBYE_TIMEOUT_S
            )
        except BusError as exc:
            log.info("bridge state not told", bridge=self.name, topic=topic, error=str(exc))

    async def _say_goodbye(self) -> None:
        if self._inside.connected:
            await self._announce(self._inside, state_topic(self.name), DOWN)
        if self.upstream.connected and self.table.announce_upstream:
            await self._announce(self.upstream, state_topic(self.table.upstream_id), DOWN)

    # --- crossing

    async def _take_out(self, route: Route, inbound: Inbound) -> None:
        """A message of ours, to the upstream broker. Nothing is awaited before it is handed on."""
        if not hops.may_cross(inbound.properties, self._broker_id, self._upstream_id):
            self.counters.lost[Lost.LOOP] += 1
            return
        expires_s = None
        if inbound.message_expiry_s is not None:
            expires_s = time.monotonic() + inbound.message_expiry_s
        try:
            if not inbound.qos:
                await self._send_out(route, inbound, expires_s)
            elif self._outbox is not None:
                await self._queue(route, inbound)
            else:
                await self._send_out_until_taken(route, inbound, expires_s)
        except LinkError:
            self.counters.lost[Lost.OFFLINE_QOS0] += 1
        except BusError as exc:
            self._note_refusal(exc, inbound.topic)

    async def _queue(self, route: Route, inbound: Inbound) -> None:
        try:
            await self.upstream.publish(
                route.target(inbound.topic),
                inbound.payload,
                qos=inbound.qos,
                retain=inbound.retain,
                expiry_s=inbound.message_expiry_s,
                response_topic=reply_topic(inbound.response_topic, self._in),
                correlation=inbound.correlation,
                properties=hops.leaving(inbound.properties, self._broker_id),
                keep_s=self.table.max_age_s,
                droppable=True,
            )
            self.counters.messages_out += 1
        except StoreError as exc:
            # Not acknowledged, it comes again: the broker inside keeps it meanwhile.
            log.error("bridge cannot write its queue", bridge=self.name, error=str(exc))  # noqa: TRY400 - the message says it all
            await asyncio.sleep(PASSING_PAUSE_S)
            raise Redeliver from exc

    async def _send_out_until_taken(
        self, route: Route, inbound: Inbound, expires_s: float | None
    ) -> None:
        turn = self._turns.come()
        try:
            await self._send_out_in_turn(turn, route, inbound, expires_s)
        finally:
            self._turns.gone(turn)

    async def _send_out_in_turn(
        self, turn: int, route: Route, inbound: Inbound, expires_s: float | None
    ) -> None:
        while True:
            try:
                await self.upstream.wait_connected(LONG_S)
                if not await self._turns.wait(turn, self.upstream.linked_s):
                    continue
                await self._send_out(route, inbound, expires_s)
            except LinkError:
                # The session may not have noticed yet.
                await asyncio.sleep(0)
            except RefusedByBrokerError as exc:
                if exc.reason_code not in PASSING_REASONS:
                    raise
                await asyncio.sleep(PASSING_PAUSE_S)
            else:
                return

    async def _send_out(self, route: Route, inbound: Inbound, expires_s: float | None) -> None:
        left_s = None
        if expires_s is not None:
            left_s = expires_s - time.monotonic()
            if left_s <= 0:
                self.counters.lost[Lost.EXPIRED] += 1
                return
        await self.upstream.publish(
            route.target(inbound.topic),
            inbound.payload,
            qos=inbound.qos,
            retain=inbound.retain,
            expiry_s=left_s,
            response_topic=reply_topic(inbound.response_topic, self._in),
            correlation=inbound.correlation,
            properties=hops.leaving(inbound.properties, self._broker_id),
            durable=False,
        )
        self.counters.messages_out += 1

    async def _bring_in(self, route: Route, inbound: Inbound) -> None:
        """A message of the upstream broker, to ours."""
        if not hops.may_cross(inbound.properties, self._upstream_id, self._broker_id):
            self.counters.lost[Lost.LOOP] += 1
            return
        try:
            await self._inside.publish(
                route.target(inbound.topic),
                inbound.payload,
                qos=inbound.qos,
                retain=inbound.retain,
                expiry_s=inbound.message_expiry_s,
                response_topic=reply_topic(inbound.response_topic, self._out),
                correlation=inbound.correlation,
                properties=hops.leaving(inbound.properties, self._upstream_id),
                durable=False,
            )
        except LinkError as exc:
            if self._is_leaving:
                # Not acknowledged: it comes again when we do.
                await asyncio.sleep(LONG_S)
            raise Redeliver from exc
        except BusError as exc:
            self._note_refusal(exc, inbound.topic)
        else:
            self.counters.messages_in += 1

    def _note_refusal(self, exc: BusError, topic: str) -> None:
        is_too_large = isinstance(exc, MessageTooLargeError)
        reason = Lost.TOO_LARGE if is_too_large else Lost.REFUSED
        self.counters.lost[reason] += 1
        if self._log_budget.may_log(NOT_CROSSED, time.monotonic()):
            why = str(exc)[:MAX_LOGGED_CHARACTERS]
            log.warning(
                NOT_CROSSED, bridge=self.name, topic=topic[:MAX_LOGGED_CHARACTERS], error=why
            )
