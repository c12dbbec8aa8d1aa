"""What the nodes say: decoded, counted and handed to the part that it is for. It decides nothing.

Subscribers return when the part has committed, and only then is the message acknowledged. They exist
before the connection, the parts after it: a message that found no subscriber would be lost.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from shoal_broker.session import Inbound, Redeliver, Session, SideBySide
from shoal_contract import messages
from shoal_contract.errors import ContractError, DecodeError, UnknownKindError
from shoal_contract.messages import (
    Cancelled,
    ChunksMissing,
    CommandUpdate,
    Message,
    Presence,
    Reading,
    Reported,
)
from shoal_contract.topics import Channel, NodeTopic, Topics
from shoal_fleet.commands import Commands
from shoal_fleet.errors import StateError
from shoal_fleet.json_door_mirror import DoorMirror
from shoal_fleet.orders import Orders
from shoal_fleet.policies import Policies
from shoal_fleet.publisher import Publisher
from shoal_fleet.readings import Readings
from shoal_fleet.receipts import Receipts
from shoal_fleet.registry import Registry
from shoal_fleet.rollouts import Rollouts
from shoal_fleet.trust.distribution import Distribution
from shoal_fleet.wanted import WantedStates

log = structlog.get_logger(__name__)

RETRY_S = 2.0
CHANNELS = (Channel.PRESENCE, Channel.STATE, Channel.RESULTS, Channel.TELEMETRY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Whom messages are handed to."""

    registry: Registry
    orders: Orders
    commands: Commands
    readings: Readings
    receipts: Receipts
    rollouts: Rollouts
    publisher: Publisher
    wanted: WantedStates
    mirror: DoorMirror
    policies: Policies
    distribution: Distribution


class Inbox:
    """The subscribers of the controller's session.

    Attributes:
        received: messages by channel.
        malformed: messages that break the contract, by channel.
        unknown_kinds: well-formed messages of a newer version.
        of_revoked: messages of nodes that were revoked; they do not count.
        is_revoked: says whether a node was.
    """

    def __init__(self, topics: Topics) -> None:
        self.received: Counter[str] = Counter()
        self.malformed: Counter[str] = Counter()
        self.unknown_kinds = 0
        self.of_revoked = 0
        self.is_revoked: Callable[[str], bool] = lambda _: False
        self._topics = topics
        self._parts: asyncio.Future[Parts] = asyncio.get_running_loop().create_future()

    @property
    def subscriptions(self) -> Mapping[str, Callable[[Inbound], Awaitable[None]]]:
        """Filter -> subscriber."""
        filters = {self._topics.every(channel): self.receive for channel in CHANNELS}
        # Where they come in crowds they share a commit. Readings have no order among them; updates of
        # commands are lined up in the order in which they came.
        crowds = (Channel.TELEMETRY, Channel.RESULTS)
        return filters | {
            self._topics.every(channel): SideBySide(self.receive) for channel in crowds
        }

    def open(self, parts: Parts) -> None:
        """The parts are there: messages flow."""
        self._parts.set_result(parts)

    async def connected(self, session: Session, session_present: bool) -> None:  # noqa: FBT001 - the session's signature
        """A broker that does not know us may not know what it retained for us either."""
        parts = await asyncio.shield(self._parts)
        parts.publisher.look()
        if not session_present:
            parts.publisher.forget()
            parts.wanted.forget()
            parts.distribution.forget()
            if session.linked_s is not None:
                parts.mirror.presence_unknown(
                    await parts.registry.forget_presence(session.linked_s)
                )

    async def receive(self, inbound: Inbound) -> None:
        """One message of one node."""
        parts = await asyncio.shield(self._parts)
        try:
            address = self._topics.parse(inbound.topic)
        except ContractError as exc:
            self._complain("topic", inbound, exc)
            return
        if not isinstance(address, NodeTopic) or (inbound.retain and not inbound.payload):
            return
        if self.is_revoked(address.node):
            self.of_revoked += 1
            return
        channel = address.channel
        self.received[channel.name.lower()] += 1
        try:
            message = messages.decode(inbound.payload)
            if not await parts.registry.heard(address.node, retained=inbound.retain):
                return
            await _hand_over(parts, address.node, channel, message)
            parts.mirror.take(address, message)
        except UnknownKindError as exc:
            self.unknown_kinds += 1
            log.info("message of an unknown kind", topic=inbound.topic, kind=exc.kind)
        except ContractError as exc:
            self._complain(channel.name.lower(), inbound, exc)
        except StateError as exc:
            # Not kept, so not acknowledged: the broker keeps it until the disk takes it.
            log.error("message cannot be kept", topic=inbound.topic, reason=str(exc))  # noqa: TRY400 - the message says it all
            await asyncio.sleep(RETRY_S)
            raise Redeliver from exc
        if channel is Channel.TELEMETRY:
            # For what was not understood as well: it would not be understood the next time.
            parts.receipts.give(address.node, inbound.topic, inbound.payload)

    def _complain(self, channel: str, inbound: Inbound, exc: ContractError) -> None:
        self.malformed[channel] += 1
        log.warning("malformed message", topic=inbound.topic, reason=str(exc))


async def _hand_over(parts: Parts, node: str, channel: Channel, message: Message) -> None:
    match channel, message:
        case Channel.PRESENCE, Presence():
            await parts.registry.presence(node, message)
            if message.online:
                await parts.orders.hurry(node)
                parts.policies.wake()
            await parts.rollouts.observe(node)
        case Channel.STATE, Reported():
            await parts.registry.reported(node, message)
            await parts.rollouts.observe(node)
        case Channel.RESULTS, CommandUpdate():
            await parts.commands.update(node, message)
        case Channel.RESULTS, Cancelled():
            await parts.commands.cancelled(node, message)
        case Channel.RESULTS, ChunksMissing():
            await parts.publisher.ask(message.blob, message.indexes)
        case Channel.TELEMETRY, Reading():
            await parts.readings.add(node, message)
        case _:
            raise DecodeError(f"a {type(message).__name__} does not belong on this topic")
