"""What nodes say, once more as JSON, for the users of the JSON door who asked for it.

Readings go out at most once (QoS 0) and are dropped when the line does not take them: nobody waits for
the mirror. Presence and state are retained; the database knows which, so that they are taken away from
a user whose scope has become smaller.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NoReturn

import structlog
from sqlalchemy import delete, select

from shoal_broker.bus_errors import BusError, MessageTooLargeError, RefusedByBrokerError
from shoal_broker.session import Session
from shoal_contract.messages import MAX_MESSAGE_BYTES, Message, Presence, Reading, Reported
from shoal_contract.topics import Channel, NodeTopic, Topics
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.json_door_rules import DoorUser, as_json
from shoal_fleet.named import named_fields
from shoal_fleet.registry import Node, Registry
from shoal_fleet.tables import DoorMirrorRow

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 1000
"""Readings that wait to be mirrored; beyond it the oldest is dropped."""

RETAINED: Final = (Channel.PRESENCE, Channel.STATE)
NOTHING: Final = b""


@dataclass(slots=True)
class MirrorStats:
    """Counters since the process started: messages mirrored by channel, and those that were dropped."""

    mirrored: dict[str, int] = field(default_factory=dict)
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    """A retained message: whose, of which node, which channel."""

    user: str
    node: str
    channel: Channel


class DoorMirror:
    """Mirrors for these users; with none of them it does nothing but take away what it left behind."""

    def __init__(
        self,
        database: Database,
        session: Session,
        topics: Topics,
        *,
        registry: Registry,
        users: Iterable[DoorUser],
    ) -> None:
        self.stats = MirrorStats()
        self._database = database
        self._session = session
        self._topics = topics
        self._registry = registry
        self._users = {user.name: user for user in users if user.telemetry}
        # The newest payload of each place; an empty one takes the message away.
        self._retained: dict[_Place, bytes] = {}
        self._readings: deque[tuple[str, bytes]] = deque()
        self._presence: dict[str, bytes] = {}
        # Which of RETAINED the broker may have of a user and node.
        self._mirrored: dict[tuple[str, str], set[Channel]] = {}
        # Those of them that are rows.
        self._noted: set[tuple[str, str]] = set()
        self._wake = asyncio.Event()

    async def load(self) -> None:
        """Find what an earlier process left, and take away what is out of scope now."""
        async with self._database.read() as session:
            for row in await session.scalars(select(DoorMirrorRow)):
                self._mirrored[row.user, row.node] = set(RETAINED)
        self._noted = set(self._mirrored)
        for user, node in self._mirrored:
            if not self._is_seen(user, node):
                self._take_away(user, node)
        if self._users:
            self._registry.on_labels = self._labelled

    def take(self, address: NodeTopic, message: Message) -> None:
        """A node's message that the controller has committed. Returns at once."""
        if not self._users:
            return
        match message:
            case Presence():
                payload = self._presence[address.node] = as_json(named_fields(message))
                self._retain(address.node, Channel.PRESENCE, payload)
            case Reported():
                if any(self._is_seen(user, address.node) for user in self._users):
                    payload = as_json(named_fields(message))
                    self._retain(address.node, Channel.STATE, payload)
            case Reading() if address.leaf is not None:
                self._pass_on(address.node, address.leaf, message)
            case _:
                return

    def presence_unknown(self, nodes: Iterable[str]) -> None:
        """The broker has forgotten these nodes' last wills: nobody knows whether they are there."""
        for node in nodes if self._users else ():
            if self._registry.nodes[node].online:
                continue
            words = {"online": False, "boot": None, "since_ms": now_ms()}
            payload = self._presence[node] = as_json(words)
            self._retain(node, Channel.PRESENCE, payload)

    async def run(self) -> NoReturn:
        """For ever: send what waits.

        Raises:
            StateError, BusError: the disk does not take it; what waits goes on waiting.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while self._readings or self._retained:
                    await self._send_readings()
                    await self._send_retained()
            except BaseException:
                self._wake.set()
                raise

    def _labelled(self, node: Node) -> None:
        """Labels decide who sees a node."""
        for user in self._users.values():
            is_mirrored = (user.name, node.name) in self._mirrored
            if user.sees(node) and not is_mirrored:
                if (presence := self._presence.get(node.name)) is not None:
                    self._put(_Place(user.name, node.name, Channel.PRESENCE), presence)
                if node.reported is not None:
                    state = as_json(named_fields(node.reported))
                    self._put(_Place(user.name, node.name, Channel.STATE), state)
            elif not user.sees(node):
                self._take_away(user.name, node.name)

    def _is_seen(self, user: str, node: str) -> bool:
        known = self._users.get(user)
        return known is not None and known.sees(self._registry.nodes.get(node))

    def _retain(self, node: str, channel: Channel, payload: bytes) -> None:
        for user in self._users:
            if self._is_seen(user, node):
                self._put(_Place(user, node, channel), payload)

    def _take_away(self, user: str, node: str) -> None:
        for channel in RETAINED:
            place = _Place(user, node, channel)
            self._retained.pop(place, None)
            if channel in self._mirrored.get((user, node), ()):
                self._put(place, NOTHING)

    def _pass_on(self, node: str, stream: str, reading: Reading) -> None:
        users = [user for user in self._users if self._is_seen(user, node)]
        if not users:
            return
        payload = as_json(named_fields(reading))
        for user in users:
            if len(self._readings) >= MAX_WAITING:
                self._readings.popleft()
                self.stats.dropped += 1
            topic = self._topics.door(user, node, Channel.TELEMETRY, stream)
            self._readings.append((topic, payload))
        self._wake.set()

    def _put(self, place: _Place, payload: bytes) -> None:
        if len(payload) > MAX_MESSAGE_BYTES:
            self.stats.dropped += 1
            return
        # To the end: where it stands in the line is when it was said.
        self._retained.pop(place, None)
        self._retained[place] = payload
        self._wake.set()

    async def _send_readings(self) -> None:
        while self._readings:
            topic, payload = self._readings.popleft()
            try:
                await self._session.publish(topic, payload, qos=0, durable=False)
            except BusError:
                self.stats.dropped += 1
            else:
                self._count(Channel.TELEMETRY)

    async def _send_retained(self) -> None:
        while self._retained and not self._readings:
            place = next(iter(self._retained))
            if self._retained[place]:
                await self._note(place)
            # It may have changed, or gone, meanwhile.
            payload = self._retained.get(place)
            if payload is None:
                continue
            topic = self._topics.door(place.user, place.node, place.channel)
            try:
                await self._session.publish(topic, payload, retain=True, coalesce_key=topic)
            except (MessageTooLargeError, RefusedByBrokerError) as exc:
                self.stats.dropped += 1
                log.warning("not mirrored", topic=topic, reason=str(exc))
            else:
                self._count(place.channel)
            if not payload:
                await self._forget(place)
            if self._retained.get(place) is payload:
                del self._retained[place]

    async def _note(self, place: _Place) -> None:
        """On the disk before the broker has it: what is not known cannot be taken away."""
        key = (place.user, place.node)
        self._mirrored.setdefault(key, set()).add(place.channel)
        if key not in self._noted:
            async with self._database.write() as session:
                session.add(DoorMirrorRow(user=place.user, node=place.node))
            self._noted.add(key)

    async def _forget(self, place: _Place) -> None:
        key = (place.user, place.node)
        left = self._mirrored.get(key, set())
        left.discard(place.channel)
        if not left:
            async with self._database.write() as session:
                await session.execute(
                    delete(DoorMirrorRow).where(
                        DoorMirrorRow.user == place.user, DoorMirrorRow.node == place.node
                    )
                )
            self._noted.discard(key)
            if not left:
                self._mirrored.pop(key, None)

    def _count(self, channel: Channel) -> None:
        name = channel.name.lower()
        self.stats.mirrored[name] = self.stats.mirrored.get(name, 0) + 1
