"""Brings to every node the policy that the book of mandates makes for it, and keeps at it until it holds.

A policy is a command like others, with a document that is signed by itself for that node. Its version is the
time of day: a controller that lost its database is still believed.
"""

import asyncio
import hashlib
import time
from typing import Any, Final, NoReturn

import structlog
from msgspec.structs import replace
from sqlalchemy import select

from shoal_contract import messages
from shoal_contract.messages import Policy, State
from shoal_contract.topics import Topics
from shoal_fleet.clock import now_ms
from shoal_fleet.command_views import SENT
from shoal_fleet.database import Database
from shoal_fleet.issuer import Issuer
from shoal_fleet.mandates import Mandates
from shoal_fleet.orders import Order, Orders
from shoal_fleet.registry import Registry
from shoal_fleet.selection import GROUP_LABEL
from shoal_fleet.tables import CommandRow, PolicyRow

log = structlog.get_logger(__name__)

POLICY_OP: Final = "trust.policy"
EXPIRES_S: Final = 30 * 86400.0
LOOK_EVERY_S: Final = 60.0
RETRY_S: Final = 600.0
"""A node that did not take its policy is asked again no sooner."""
PRIORITY: Final = 9

_WITH_COMMAND: Final = select(PolicyRow, CommandRow).outerjoin(
    CommandRow, (CommandRow.id == PolicyRow.command) & (CommandRow.node == PolicyRow.node)
)


class Policies:
    """What nodes were told, and telling them."""

    def __init__(
        self,
        database: Database,
        topics: Topics,
        *,
        book: Mandates,
        registry: Registry,
        orders: Orders,
        issuer: Issuer,
    ) -> None:
        self._database = database
        self._topics = topics
        self._book = book
        self._registry = registry
        self._orders = orders
        self._issuer = issuer
        self._changed = asyncio.Event()
        self._tried_s: dict[str, float] = {}

    def wake(self) -> None:
        """The book, a node's groups or the set of nodes changed."""
        self._changed.set()

    async def run(self) -> NoReturn:
        """Tell whoever has to be told, for ever."""
        while True:
            self._changed.clear()
            if not self._book.is_empty():
                await self._look()
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def states(self) -> dict[str, dict[str, Any]]:
        """Of each node that was told: the version, whether it holds, and if not why."""
        async with self._database.read() as session:
            rows = await session.execute(_WITH_COMMAND)
            return {
                policy.node: {
                    "version": policy.version,
                    "state": _state_of(command),
                    # None where the command is not kept any more, whatever the types say of an outer join.
                    "reason": getattr(command, "reason", ""),
                }
                for policy, command in rows
            }

    async def _look(self) -> None:
        """Each node beside what it was told: in one query, for there may be ten thousand."""
        told = {row.node: (row, state) for row, state in await self._told()}
        # Nodes of a group are all told the same.
        made: dict[str | None, tuple[Policy, bytes]] = {}
        for node in list(self._registry.nodes.values()):
            group = node.labels.get(GROUP_LABEL)
            if group not in made:
                policy = self._book.policy([] if group is None else [group])
                made[group] = policy, hashlib.sha256(messages.encode(policy)).digest()
            policy, content = made[group]
            row, state = told.get(node.name, (None, "held"))
            if row is None:
                await self._tell(node.name, policy, content, 0)
            elif row.content != content or (
                state == "refused" and node.online and self._may_retry(node.name)
            ):
                await self._tell(node.name, policy, content, row.version)

    async def _told(self) -> list[tuple[PolicyRow, str]]:
        async with self._database.read() as session:
            rows = await session.execute(_WITH_COMMAND)
            return [(row, _state_of(command)) for row, command in rows]

    def _may_retry(self, node: str) -> bool:
        return time.monotonic() - self._tried_s.get(node, -RETRY_S) >= RETRY_S

    async def _tell(self, node: str, policy: Policy, content: bytes, held: int) -> None:
        now = now_ms()
        newer = replace(policy, version=max(now, held + 1), issued_ms=now)
        topic = self._topics.commands(node)
        document = self._issuer.sealed(messages.encode(newer), topic=topic)
        order = Order(POLICY_OP, {"document": document}, EXPIRES_S, PRIORITY)
        sent = await self._orders.send(node, order)
        self._tried_s[node] = time.monotonic()
        async with self._database.write() as session:
            await session.merge(
                PolicyRow(node=node, version=newer.version, content=content, command=sent.id)
            )
        log.info("policy sent", node=node, version=newer.version, mandates=len(newer.mandates))


def _state_of(command: CommandRow | None) -> str:
    """What became of a policy: "held", "waiting", or "refused", which is every other end."""
    if command is None or command.state == State.SUCCEEDED.value:
        # A command that is not kept any more ended long ago.
        return "held"
    if command.state == SENT or not State(command.state).is_final:
        return "waiting" if command.expires_ms > now_ms() else "refused"
    return "refused"
