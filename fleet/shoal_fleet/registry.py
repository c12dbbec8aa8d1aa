"""The registry of nodes: who is there, what they report, what people call them.

The database is the truth; what is in memory is a copy that is replaced after each commit. `last seen`
changes with every message and is written behind (`flush`).
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
from sqlalchemy import delete, select, update

from shoal_contract import messages
from shoal_contract.errors import ContractError
from shoal_contract.messages import ModelState, Presence, Reported
from shoal_fleet.aliases import Aliases
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.errors import NotFoundError, RequestError
from shoal_fleet.node_csv import Row
from shoal_fleet.selection import MAX_LABELS, check_label
from shoal_fleet.tables import AliasRow, NodeRow

log = structlog.get_logger(__name__)

MAX_NODES: Final = 100_000
"""A broker that lets anybody in must not fill our disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What is known of one node. `first_seen_ms` 0: it stood on a list, and was never here."""

    name: str
    first_seen_ms: int
    online: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    reported: Reported | None = None

    @property
    def kind(self) -> str:
        """The class of hardware: boards that are likely to fail together."""
        if self.reported is None:
            return ""
        return f"{self.reported.hardware.machine} {self.reported.hardware.model}"

    @property
    def strata(self) -> tuple[str, str, str]:
        """What may make boards fail together, what matters most first: hardware, site, link."""
        return (self.kind, self.labels.get("site", ""), self.labels.get("link", ""))

    def model(self, name: str) -> ModelState | None:
        """Where the node stands with a model."""
        if self.reported is None:
            return None
        return next((state for state in self.reported.models if state.model == name), None)


class Registry:
    """All nodes. Build it with `await Registry.load(database)`.

    Attributes:
        on_labels: told of a node whose labels were changed, when that is committed.
        on_new: told of a node that was never here before, when that is committed.
    """

    def __init__(self, database: Database) -> None:
        self.nodes: dict[str, Node] = {}
        self.last_seen_ms: dict[str, int] = {}
        self.on_labels: Callable[[Node], None] = lambda _: None
        self.on_new: Callable[[Node], None] = lambda _: None
        self.aliases = Aliases({})
        self._database = database
        self._unwritten: set[str] = set()
        # Monotonic seconds at which a node's presence was last told.
        self._told_s: dict[str, float] = {}
        # Presence and state of a new node come side by side.
        self._adding = asyncio.Lock()
        self._labelling = asyncio.Lock()

    @classmethod
    async def load(cls, database: Database) -> "Registry":
        """The registry as an earlier process left it. Presence is told anew by the broker.

        Until then nobody counts as online: who went while nobody listened may never say so.
        """
        registry = cls(database)
        async with database.read() as session:
            for row in await session.scalars(select(NodeRow)):
                registry.nodes[row.name] = Node(
                    name=row.name,
                    first_seen_ms=row.first_seen_ms,
                    labels=row.labels,
                    reported=_reported(row),
                )
                registry.last_seen_ms[row.name] = row.last_seen_ms
            aliases = await session.scalars(select(AliasRow))
            registry.aliases = Aliases({row.alias: row.node for row in aliases})
        return registry

    def get(self, name: str) -> Node:
        """The node of this name or alias.

        Raises:
            NotFoundError: nobody of that name was ever here.
        """
        node = self.nodes.get(name) or self.nodes.get(self.aliases.node(name) or "")
        if node is None:
            raise NotFoundError(f"there is no node {name!r} (shoal nodes lists them)")
        return node

    def labels(self, name: str) -> Mapping[str, str]:
        """The labels of a node.

        Raises:
            NotFoundError: no such node.
        """
        return self.get(name).labels

    async def heard(self, name: str, *, retained: bool) -> bool:
        """A message of this node came; False when there is no room for another node.

        A retained message tells that the node exists, not that it is there now.
        """
        if name in self.nodes:
            if not retained:
                if not self.nodes[name].first_seen_ms:
                    await self._first_seen(name)
                self.last_seen_ms[name] = now_ms()
                self._unwritten.add(name)
            return True
        async with self._adding:
            return name in self.nodes or await self._add(name)

    async def presence(self, name: str, presence: Presence) -> None:
        """The node came or went."""
        self._told_s[name] = time.monotonic()
        if self.nodes[name].online == presence.online:
            return
        async with self._database.write() as session:
            await session.execute(
                update(NodeRow).where(NodeRow.name == name).values(online=presence.online)
            )
        self.nodes[name] = replace(self.nodes[name], online=presence.online)
        log.info("node is online" if presence.online else "node is offline", node=name)

    async def forget_presence(self, since_s: float) -> list[str]:
        """Nobody is online whose presence was last told before `since_s`; returns their names.

        For a broker that forgot everything: it sends no last will for nodes that never come back.
        """
        gone = [
            name
            for name, node in self.nodes.items()
            if node.online and self._told_s.get(name, since_s) < since_s
        ]
        if gone:
            async with self._database.write() as session:
                await session.execute(
                    update(NodeRow), [{"name": name, "online": False} for name in gone]
                )
            for name in gone:
                if self._told_s[name] < since_s:
                    self.nodes[name] = replace(self.nodes[name], online=False)
            log.info("presence is not known", nodes=len(gone))
        return gone

    async def reported(self, name: str, reported: Reported) -> None:
        """The node says what it is and runs."""
        async with self._database.write() as session:
            await session.execute(
                update(NodeRow)
                .where(NodeRow.name == name)
                .values(reported=messages.encode(reported))
            )
        self.nodes[name] = replace(self.nodes[name], reported=reported)

    async def label(self, name: str, changes: Mapping[str, str | None]) -> Node:
        """Set labels, or take away those whose value is None.

        Raises:
            NotFoundError: no such node.
            RequestError: no label, or too many.
        """
        async with self._labelling:
            name = self.get(name).name
            labels = dict(self.nodes[name].labels)
            for key, value in changes.items():
                if value is None:
                    labels.pop(key, None)
                else:
                    check_label(key, value)
                    labels[key] = value
            if len(labels) > MAX_LABELS:
                raise RequestError(f"a node has at most {MAX_LABELS} labels")
            async with self._database.write() as session:
                await session.execute(
                    update(NodeRow).where(NodeRow.name == name).values(labels=labels)
                )
            self.nodes[name] = replace(self.nodes[name], labels=labels)
            self.on_labels(self.nodes[name])
            return self.nodes[name]

    async def alias(
        self, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()
    ) -> Node:
        """Give a node other names, or take some away.

        Raises:
            NotFoundError: no such node, or it has no such other name.
            RequestError: it cannot be a name, or is one of another node.
        """
        node = self.get(name)
        async with self._labelling:
            for alias in add:
                self.aliases.check_free(alias, node.name, self.nodes)
            for alias in remove:
                if self.aliases.node(alias) != node.name:
                    raise NotFoundError(f"{alias!r} is no other name of {node.name}")
            async with self._database.write() as session:
                await session.execute(delete(AliasRow).where(AliasRow.alias.in_(remove)))
                for alias in add:
                    await session.merge(AliasRow(alias=alias, node=node.name))
            for alias in remove:
                self.aliases.remove(alias)
            for alias in add:
                self.aliases.add(alias, node.name)
        return node

    async def take_in(self, rows: Sequence[Row]) -> tuple[list[Node], list[Node]]:
        """Make nodes of a list known, and name and label those that are: all of it or nothing.

        Returns those that were never here, and those whose labels changed. The new ones were not seen yet.

        Raises:
            RequestError: a row cannot be; names its line.
        """
        async with self._adding, self._labelling:
            fresh, changed = self._planned(rows)
            async with self._database.write() as session:
                session.add_all(
                    NodeRow(
                        name=node.name, first_seen_ms=0, last_seen_ms=0, labels=dict(node.labels)
                    )
                    for node in fresh
                )
                await session.flush()
                if changed:
                    await session.execute(
                        update(NodeRow),
                        [{"name": node.name, "labels": dict(node.labels)} for node in changed],
                    )
                for row in rows:
                    if row.alias:
                        await session.merge(AliasRow(alias=row.alias, node=row.node))
            for node in (*fresh, *changed):
                self.nodes[node.name] = node
            for node in fresh:
                self.last_seen_ms[node.name] = 0
            for row in rows:
                if row.alias:
                    self.aliases.add(row.alias, row.node)
        for node in fresh:
            self.on_new(node)
        for node in changed:
            self.on_labels(node)
        log.info("list of nodes taken in", new=len(fresh), changed=len(changed))
        return fresh, changed

    def _planned(self, rows: Sequence[Row]) -> tuple[list[Node], list[Node]]:
        """Nodes as they will be. Raises RequestError."""
        fresh, changed = [], []
        listed = {row.node for row in rows}
        for row in rows:
            try:
                if row.alias:
                    self.aliases.check_free(
                        row.alias, row.node, {**dict.fromkeys(listed), **self.nodes}
                    )
            except RequestError as exc:
                raise RequestError(f"line {row.line}, column alias: {exc}") from exc
            node = self.nodes.get(row.node)
            labels = {**({} if node is None else node.labels), **row.labels}
            if len(labels) > MAX_LABELS:
                raise RequestError(f"line {row.line}: a node has at most {MAX_LABELS} labels")
            if node is None:
                fresh.append(Node(name=row.node, first_seen_ms=0, labels=labels))
            elif labels != node.labels:
                changed.append(replace(node, labels=labels))
        if len(self.nodes) + len(fresh) > MAX_NODES:
            raise RequestError(f"the list would make it more than {MAX_NODES} nodes")
        return fresh, changed

    async def replaced(self, name: str) -> Node:
        """Another board bears this name from now on: what the old one said of itself is forgotten.

        Labels, aliases and what the node is to run stay.

        Raises:
            NotFoundError: no such node.
        """
        node = self.get(name)
        async with self._database.write() as session:
            await session.execute(
                update(NodeRow)
                .where(NodeRow.name == node.name)
                .values(reported=None, online=False, published_revision=0)
            )
        self.nodes[node.name] = replace(node, reported=None, online=False)
        log.info("node is to be replaced", node=node.name)
        return self.nodes[node.name]

    async def flush(self) -> None:
        """Write the times at which nodes were last seen."""
        names, self._unwritten = self._unwritten, set()
        if not names:
            return
        async with self._database.write() as session:
            await session.execute(
                update(NodeRow),
                [{"name": name, "last_seen_ms": self.last_seen_ms[name]} for name in names],
            )

    async def _first_seen(self, name: str) -> None:
        """It was on a list, and now it is here."""
        now = now_ms()
        self.nodes[name] = replace(self.nodes[name], first_seen_ms=now)
        async with self._database.write() as session:
            await session.execute(
                update(NodeRow).where(NodeRow.name == name).values(first_seen_ms=now)
            )
        log.info("new node", node=name)

    async def _add(self, name: str) -> bool:
        if len(self.nodes) >= MAX_NODES:
            log.error("no room for another node", node=name, nodes=len(self.nodes))
            return False
        now = now_ms()
        async with self._database.write() as session:
            session.add(
                NodeRow(name=name, first_seen_ms=now, last_seen_ms=now, online=False, labels={})
            )
        self.nodes[name] = Node(name=name, first_seen_ms=now)
        self.last_seen_ms[name] = now
        log.info("new node", node=name)
        self.on_new(self.nodes[name])
        return True


def _reported(row: NodeRow) -> Reported | None:
    if row.reported is None:
        return None
    try:
        return messages.decode_as(row.reported, Reported)
    except ContractError as exc:
        log.warning("stored state cannot be read", node=row.name, reason=str(exc))
        return None
