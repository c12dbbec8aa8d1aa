"""What the bus brings to a node: decoded, checked and handed to the part it is for. It decides nothing."""

import asyncio
from dataclasses import dataclass

import structlog

from shoal_agent.belonging import Belonging
from shoal_agent.commands import Commands
from shoal_agent.inference.router import Router
from shoal_agent.patience import until_stored
from shoal_agent.pipelines.fleet import FleetPipelines
from shoal_agent.pipelines.roster import Roster
from shoal_agent.trust import Asker, Trust
from shoal_agent.update import Updater
from shoal_agent.wanted import WantedState
from shoal_broker.bus_errors import BusError
from shoal_broker.outbox import Outbox
from shoal_broker.session import Inbound, Session
from shoal_contract import messages, receipts
from shoal_contract.errors import ContractError, TopicError, UnknownKindError
from shoal_contract.messages import Cancel, Command, InferRequest, Receipt
from shoal_contract.topics import GroupTopic, NodeTopic, Topics

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Parts:
    """What the inbox delivers to."""

    commands: Commands
    outbox: Outbox
    belonging: Belonging
    wanted: WantedState
    updater: Updater
    router: Router
    session: Session
    pipelines: FleetPipelines
    roster: Roster


@dataclass(slots=True)
class InboxStats:
    """Counters since the start."""

    malformed: int = 0
    unknown_kind: int = 0


class Inbox:
    """What the session delivers to, from its first moment; it waits until the parts are there.

    A message that came to a session without its subscriber would be acknowledged and lost, so the
    subscribers exist before the connection and the parts after it.
    """

    def __init__(self, topics: Topics, node: str, trust: Trust) -> None:
        self.stats = InboxStats()
        self._trust = trust
        self._topics = topics
        self._node = node
        self._parts: asyncio.Future[Parts] = asyncio.get_running_loop().create_future()

    def open(self, parts: Parts) -> None:
        """The parts are there: messages flow."""
        self._parts.set_result(parts)

    async def command(self, message: Inbound) -> None:
        """A message of a commands topic, ours or a group's; returns when it is durable or refused."""
        parts = await asyncio.shield(self._parts)
        opened = self._trust.open(message.payload, topic=message.topic)
        if opened is None:
            return
        payload, key = opened
        try:
            match messages.decode(payload):
                case Command() as command:
                    await parts.commands.accept(command, self._asker(key, message.topic, parts))
                case Cancel() as cancel:
                    await parts.commands.cancel(cancel, self._asker(key, message.topic, parts))
                # Who keeps the fleet's readings is in the configuration, not in a mandate.
                case Receipt(names) if self._trust.is_root(key):
                    parts.outbox.received(receipts.split(names))
                case other:
                    self.stats.malformed += 1
                    log.warning("no command", kind=type(other).__name__)
        except UnknownKindError as exc:
            self.stats.unknown_kind += 1
            log.info("message of an unknown kind", kind=exc.kind)
        except ContractError as exc:
            self.stats.malformed += 1
            size_bytes = len(message.payload)
            log.warning("malformed command", reason=str(exc), size_bytes=size_bytes)

    def _asker(self, key: bytes, topic: str, parts: Parts) -> Asker:
        match self._topics.parse(topic):
            case GroupTopic(group):
                return Asker(key, frozenset({group}))
        return Asker(key, parts.belonging.groups)

    async def wanted(self, message: Inbound) -> None:
        """The wanted state; returns when it is durable, or refused."""
        parts = await asyncio.shield(self._parts)
        if not message.payload:
            return
        try:
            wanted = await until_stored(
                lambda: parts.wanted.take(message.payload), what="wanted state"
            )
        except ContractError as exc:
            self.stats.malformed += 1
            log.warning("malformed wanted state", reason=str(exc))
            return
        if wanted is None:
            return
        parts.updater.wake()
        await parts.belonging.follow(wanted)
        if parts.pipelines.follow(wanted.pipelines):
            await parts.roster.follow_fleet(parts.pipelines.wanted)
            good = parts.roster.running_of_fleet()
            await until_stored(lambda: parts.pipelines.hold(good), what="pipelines")

    async def inference(self, message: Inbound) -> None:
        """A request of any MQTT 5 client; the answer goes to its response topic."""
        parts = await asyncio.shield(self._parts)
        if message.response_topic is None:
            log.warning("inference request without a response topic")
            return
        try:
            request = messages.decode_as(message.payload, InferRequest)
            address = self._topics.parse(message.topic)
        except (ContractError, TopicError) as exc:
            self.stats.malformed += 1
            log.warning("malformed inference request", reason=str(exc))
            return
        if not isinstance(address, NodeTopic) or address.leaf != request.model:
            log.warning("inference request on another model's topic", model=request.model)
            return
        reply = await parts.router.answer(request)
        try:
            await parts.session.publish(
                message.response_topic,
                messages.encode(reply),
                correlation=message.correlation,
                durable=False,
            )
        except BusError as exc:
            log.warning("inference reply not sent", reason=str(exc))
