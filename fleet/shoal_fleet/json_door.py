"""The JSON door: other MQTT clients command nodes in JSON and are told what became of it. Off by default.

Who asks stands in the topic, where the broker's access rules have proved it; what they may stands in the
configuration. Rules and JSON are `json_door_rules`, the way back is `json_door_answers`, and what nodes say
by themselves is `json_door_mirror`.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from shoal_broker.bus_errors import BusError
from shoal_broker.session import Inbound, Redeliver, Session
from shoal_contract.errors import ContractError
from shoal_contract.topics import Channel, DoorTopic, Topics
from shoal_fleet.clock import now_ms
from shoal_fleet.commands import Commands
from shoal_fleet.config import DoorTable
from shoal_fleet.database import Database
from shoal_fleet.errors import DoorRefusedError, RequestError, StateError
from shoal_fleet.json_door_answers import Asked, DoorAnswers
from shoal_fleet.json_door_mirror import DoorMirror
from shoal_fleet.json_door_rules import (
    MAX_CORRELATION_BYTES,
    DoorCommand,
    DoorUser,
    answer,
    command_id,
    parse_command,
)
from shoal_fleet.orders import Order, Orders
from shoal_fleet.plain import plain
from shoal_fleet.registry import Registry

log = structlog.get_logger(__name__)

RETRY_S: Final = 2.0


@dataclass(slots=True)
class DoorStats:
    """Counters since the process started; `refused` by reason."""

    received: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Parts:
    registry: Registry
    orders: Orders
    commands: Commands
    answers: DoorAnswers


class JsonDoor:
    """The door of one controller. It exists before the connection, its parts after it (`open`)."""

    def __init__(self, topics: Topics, tables: tuple[DoorTable, ...]) -> None:
        self.stats = DoorStats()
        self.answers: DoorAnswers
        self.mirror: DoorMirror
        self._topics = topics
        self._users = {table.user: DoorUser.of(table) for table in tables}
        self._parts: asyncio.Future[_Parts] = asyncio.get_running_loop().create_future()

    @property
    def subscriptions(self) -> Mapping[str, Callable[[Inbound], Awaitable[None]]]:
        """Filter -> subscriber; none without a user."""
        return {self._topics.every_door(Channel.COMMANDS): self.receive} if self._users else {}

    async def open(
        self,
        database: Database,
        session: Session,
        *,
        registry: Registry,
        orders: Orders,
        commands: Commands,
    ) -> None:
        """The parts are there: messages flow.

        Raises:
            StateError: the database cannot be read.
        """
        self.answers = DoorAnswers(database, session, self._topics, commands=commands)
        self.mirror = DoorMirror(
            database, session, self._topics, registry=registry, users=self._users.values()
        )
        await self.mirror.load()
        if self._users:
            await self.answers.load()
        self._parts.set_result(_Parts(registry, orders, commands, self.answers))

    async def receive(self, inbound: Inbound) -> None:
        """One message of one client."""
        parts = await asyncio.shield(self._parts)
        self.stats.received += 1
        try:
            address = self._topics.parse(inbound.topic)
        except ContractError as exc:
            self.stats.refused["topic"] += 1
            log.warning("malformed message", topic=inbound.topic, reason=str(exc))
            return
        if not isinstance(address, DoorTopic) or not inbound.payload:
            # An empty payload is what clears a retained message.
            return
        try:
            await self._obey(parts, address, inbound)
        except DoorRefusedError as exc:
            await self._refuse(parts, address, inbound, exc)
        except StateError as exc:
            # Not kept, so not acknowledged: the broker keeps it until the disk takes it.
            log.error("message cannot be kept", topic=inbound.topic, reason=str(exc))  # noqa: TRY400 - the message says it all
            await asyncio.sleep(RETRY_S)
            raise Redeliver from exc

    async def _refuse(
        self, parts: _Parts, address: DoorTopic, inbound: Inbound, error: DoorRefusedError
    ) -> None:
        self.stats.refused[error.why] += 1
        # Not the message: it may quote what came.
        log.info("door refused", user=address.user, node=address.node, why=error.why)
        payload = answer(
            node=address.node,
            at_ms=now_ms(),
            state="refused",
            request=error.request,
            reason=str(error),
        )
        is_short = len(inbound.correlation or b"") <= MAX_CORRELATION_BYTES
        correlation = inbound.correlation if is_short else None
        await parts.answers.say(address.user, address.node, payload, correlation)

    async def _obey(self, parts: _Parts, address: DoorTopic, inbound: Inbound) -> None:
        """Send the command, or raise DoorRefusedError."""
        user = self._users.get(address.user)
        if user is None:
            raise DoorRefusedError("the door is not open to this user", why="user")
        if inbound.retain:
            raise DoorRefusedError(
                "a retained command would run again at every restart: send it without retain",
                why="retained",
            )
        if len(inbound.correlation or b"") > MAX_CORRELATION_BYTES:
            raise DoorRefusedError(
                f"correlation data of more than {MAX_CORRELATION_BYTES} bytes", why="size"
            )
        command = parse_command(inbound.payload)
        if not user.may(command.op):
            raise DoorRefusedError(
                f"{command.op} is not among the operations of {user.name}",
                why="op",
                request=command.id,
            )
        if not user.sees(parts.registry.nodes.get(address.node)):
            raise DoorRefusedError(
                f"{address.node} is not among the nodes of {user.name}",
                why="node",
                request=command.id,
            )
        number = command_id(user.name, address.node, command.id, inbound.correlation)
        asked = None if number is None else parts.answers.find(number)
        if asked is None:
            parts.answers.make_room(user.name, request=command.id)
            asked = Asked(
                number or os.urandom(8),
                user.name,
                address.node,
                command.op,
                command.id,
                inbound.correlation,
            )
        async with asked.telling:
            await self._send(parts, asked, command, _lasts_s(command, inbound))

    async def _send(
        self, parts: _Parts, asked: Asked, command: DoorCommand, expires_s: float
    ) -> None:
        is_new = parts.answers.find(asked.command) is None
        order = Order(command.op, command.args, expires_s=expires_s, priority=command.priority)
        try:
            await parts.answers.remember(asked)
            await parts.orders.send(asked.node, order, command_id=asked.command)
            view = await parts.commands.get(asked.command)
        except RequestError as exc:
            if is_new:
                await parts.answers.forget(asked)
            raise DoorRefusedError(str(exc), why="command", request=command.id) from exc
        except BusError as exc:
            # Recorded, not sent: when it comes again under its id, it is.
            raise DoorRefusedError(str(exc), why="bus", request=command.id) from exc
        except StateError:
            if is_new:
                # It comes again, perhaps under another id.
                parts.answers.leave(asked)
            raise
        if (view["op"], view["args"]) != (command.op, plain(command.args)):
            if is_new:
                parts.answers.leave(asked)
            raise DoorRefusedError(
                "this id was given to another command", why="id", request=command.id
            )
        await parts.answers.tell(asked, view)


def _lasts_s(command: DoorCommand, inbound: Inbound) -> float:
    """A message that the broker would have dropped by then is no longer valid either."""
    left_s = inbound.message_expiry_s
    return command.expires_s if left_s is None else min(command.expires_s, float(max(1, left_s)))
