"""Commands on their way out: recorded, handed to the bus, and asked about until their last word is here.

A row of the outbox lives until the node's final word on the command is committed, and keeps its place
in the order of that node's commands until then. What becomes of them is the business of `commands`.
"""

import asyncio
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy import select

from shoal_broker.outbox import Outbox
from shoal_broker.session import Lane, Session
from shoal_contract import cbor, envelope, messages
from shoal_contract.errors import ContractError
from shoal_contract.messages import MAX_MESSAGE_BYTES, Command, State
from shoal_contract.topics import EVERYBODY, Topics
from shoal_fleet.audience import Audience
from shoal_fleet.clock import now_ms
from shoal_fleet.command_views import SENT
from shoal_fleet.database import Database
from shoal_fleet.errors import RequestError
from shoal_fleet.issuer import Issuer
from shoal_fleet.selection import topic_group
from shoal_fleet.tables import CommandHistoryRow, CommandRow

log = structlog.get_logger(__name__)

URGENT_FROM: Final = 7
"""Commands of this priority overtake the others on their way."""
GROUP_GRACE_S: Final = 5.0
"""So long a member may take to answer what was said to its group, before it is told itself."""
RETURN_GRACE_S: Final = 2.0
"""What the broker kept for a node that is back comes first."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done, by whomever."""

    op: str
    args: dict[str, Any]
    expires_s: float
    priority: int = 4


@dataclass(frozen=True, slots=True)
class Ordered:
    """A command that is recorded: whoever publishes `payload` to `topic` sends it."""

    id: bytes
    topic: str
    payload: bytes


class Orders:
    """The way of commands to the nodes. `sent` counts since the process started."""

    def __init__(
        self,
        database: Database,
        session: Session,
        outbox: Outbox,
        topics: Topics,
        *,
        issuer: Issuer,
    ) -> None:
        self.sent = 0
        self._database = database
        self._session = session
        self._outbox = outbox
        self._topics = topics
        self._issuer = issuer

    async def send(
        self, node: str, order: Order, *, publish: bool = True, command_id: bytes | None = None
    ) -> Ordered:
        """Record the command and, unless somebody else is to `publish` it, hand it to the bus.

        Returns once both are on the disk. With a `command_id` that this node was given before nothing
        is recorded, whatever the order says, and the command of then is returned.

        Raises:
            RequestError: it cannot be said in a message.
        """
        command, payload = _command(order, command_id)
        if command_id is not None and (known := await self._known(command_id, node)) is not None:
            return known
        await self._record(command, [node], group="", by_hand=not publish)
        if publish:
            await self._say(command, payload, node)
        self.sent += 1
        log.info("command sent", command=command.id.hex(), node=node, op=order.op)
        return self._ordered(command.id, payload, node)

    async def send_to_many(self, audience: Audience, nodes: Sequence[str], order: Order) -> bytes:
        """The same for every one of these nodes, who are meant by `audience` now.

        Where a group has a topic the command is published once. A member that does not answer is
        told itself, and does what it is told once, however often it hears of it. Returns the id.

        Raises:
            RequestError: it cannot be said in a message.
        """
        command, payload = _command(order)
        group = audience.where or audience.group or EVERYBODY
        topic = None if audience.is_settled else topic_group(dict(audience.labels))
        await self._record(command, nodes, group=group)
        if topic is not None:
            address = self._topics.group_commands(topic)
            await self._session.publish(
                address,
                self._issuer.sealed(payload, topic=address),
                expiry_s=order.expires_s,
                lane=_lane(command),
            )
        wait_s = 0.0 if topic is None else GROUP_GRACE_S
        await asyncio.gather(
            *(self._say(command, payload, node, not_before_s=wait_s) for node in nodes)
        )
        self.sent += len(nodes)
        log.info(
            "command sent", command=command.id.hex(), group=group, nodes=len(nodes), op=order.op
        )
        return command.id

    async def recover(self) -> None:
        """Hand over what a crash kept from the outbox. To be awaited once, before anything is sent."""
        async with self._database.read() as session:
            rows = await session.scalars(
                select(CommandRow).where(
                    CommandRow.state == SENT,
                    CommandRow.expires_ms > now_ms(),
                    CommandRow.by_hand.is_(False),
                )
            )
            lost = [(_of(row), row.node) for row in rows]
        for command, node in lost:
            await self._say(command, messages.encode(command), node)

    async def hurry(self, node: str) -> None:
        """The node is back: what it has not answered comes soon."""
        if not self._outbox:
            return
        async with self._database.read() as session:
            ids = await session.scalars(
                select(CommandRow.id).where(
                    CommandRow.node == node,
                    (CommandRow.state <= State.RUNNING.value) | CommandRow.presumed,
                )
            )
            self._outbox.hurry([receipt(found, node) for found in ids], in_s=RETURN_GRACE_S)

    async def _known(self, command_id: bytes, node: str) -> Ordered | None:
        async with self._database.read() as session:
            row = await session.get(CommandRow, (command_id, node))
        if row is None:
            return None
        command = _of(row)
        payload = messages.encode(command)
        if row.state == SENT and row.expires_ms > now_ms():
            # The outbox may have been full then; if not, it knows the receipt.
            await self._say(command, payload, node)
        return self._ordered(command_id, payload, node)

    def _ordered(self, command_id: bytes, payload: bytes, node: str) -> Ordered:
        topic = self._topics.commands(node)
        return Ordered(command_id, topic, self._issuer.sealed(payload, topic=topic))

    async def _record(
        self, command: Command, nodes: Iterable[str], *, group: str, by_hand: bool = False
    ) -> None:
        async with self._database.write() as session:
            for node in nodes:
                session.add(
                    CommandRow(
                        id=command.id,
                        node=node,
                        group=group,
                        op=command.op,
                        args=cbor.encode(command.args),
                        issued_ms=command.issued_ms,
                        expires_ms=command.expires_ms,
                        priority=command.priority,
                        state=SENT,
                        presumed=False,
                        progress=0,
                        reason="",
                        by_hand=by_hand,
                    )
                )
            await session.flush()
            for node in nodes:
                session.add(
                    CommandHistoryRow(
                        command=command.id, node=node, state=SENT, at_ms=command.issued_ms
                    )
                )

    async def _say(
        self, command: Command, payload: bytes, node: str, *, not_before_s: float = 0.0
    ) -> None:
        # Signed for each node's own topic, a group's command too: nowhere else would it be good.
        topic = self._topics.commands(node)
        await self._session.publish(
            topic,
            self._issuer.sealed(payload, topic=topic),
            expiry_s=max(1.0, (command.expires_ms - now_ms()) / 1000),
            lane=_lane(command),
            receipt=receipt(command.id, node),
            not_before_s=not_before_s,
        )


def _command(order: Order, command_id: bytes | None = None) -> tuple[Command, bytes]:
    """The command and its bytes. Raises RequestError."""
    issued_ms = now_ms()
    command = Command(
        id=command_id or os.urandom(8),
        op=order.op,
        args=order.args,
        issued_ms=issued_ms,
        expires_ms=issued_ms + round(order.expires_s * 1000),
        priority=order.priority,
    )
    try:
        payload = messages.encode(command)
        # What a node would refuse is refused here, where the person is.
        messages.decode_as(payload, Command)
    except ContractError as exc:
        raise RequestError(f"{order.op}: {exc}") from exc
    most_bytes = MAX_MESSAGE_BYTES - envelope.MOST_BYTES
    if len(payload) > most_bytes:
        raise RequestError(f"{order.op}: {len(payload)} bytes; a command has at most {most_bytes}")
    return command, payload


def _of(row: CommandRow) -> Command:
    args: Any = cbor.decode(row.args, max_bytes=MAX_MESSAGE_BYTES)
    return Command(
        id=row.id,
        op=row.op,
        args=args,
        issued_ms=row.issued_ms,
        expires_ms=row.expires_ms,
        priority=row.priority,
    )


def receipt(command_id: bytes, node: str) -> bytes:
    """A command is through at a node when the node's final word on it is committed here."""
    return command_id + node.encode()


def _lane(command: Command) -> Lane:
    return Lane.URGENT if command.priority >= URGENT_FROM else Lane.NORMAL
