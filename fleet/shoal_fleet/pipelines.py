"""The pipelines that the fleet wants: the book of them by node and group, a node's part, and its document.

What is nearest to a node holds: its own before its groups', a group of more labels before one of fewer. Whether
tables fit what runs where is `pipeline_check`'s business, signing and sending them that of `wanted`.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_contract import messages
from shoal_contract.messages import Pipelines as Document
from shoal_contract.messages import PipelineWanted
from shoal_contract.pipelines import MAX_PIPELINES
from shoal_contract.topics import EVERYBODY
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.errors import NotFoundError, RequestError
from shoal_fleet.registry import Node
from shoal_fleet.selection import belongs, parse_group
from shoal_fleet.tables import PipelineRow

MAX_DOCUMENT_BYTES: Final = 32 * 1024
"""Beside it a wanted state holds the digests of chunks."""

Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A node, or the nodes that have these labels now and later."""

    node: str | None = None
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, *, node: str | None, group: str | None) -> Self:
        """What a person named.

        Raises:
            RequestError: both, neither, or no group.
        """
        if (node is None) == (group is None):
            raise RequestError("a pipeline is for a node or for a group")
        if node is not None:
            return cls(node=node)
        return cls(labels=tuple(sorted(parse_group(group or "").items())))

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `text` once was."""
        kind, _, rest = text.partition(" ")
        return cls.of(node=rest, group=None) if kind == "node" else cls.of(node=None, group=rest)

    @property
    def text(self) -> str:
        """`node press-4`, `group site=oslo`, `group all`."""
        if self.node is not None:
            return f"node {self.node}"
        return "group " + (",".join(f"{key}={value}" for key, value in self.labels) or EVERYBODY)

    def has(self, node: Node) -> bool:
        """Whether the node is meant."""
        if self.node is not None:
            return node.name == self.node
        return belongs(node.labels, dict(self.labels))

    @property
    def nearness(self) -> tuple[bool, int, str]:
        """Of two targets that mean a node, the larger one holds."""
        return self.node is not None, len(self.labels), self.text


@dataclass(frozen=True, slots=True)
class Entry:
    """A pipeline in the book; a table of None was taken away."""

    target: Target
    stream: str
    table: Table | None
    changed_ms: int


class Pipelines:
    """The book. Build it with `await Pipelines.load(...)`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._entries: dict[tuple[Target, str], Entry] = {}
        self._version = 0

    @classmethod
    async def load(cls, database: Database) -> "Pipelines":
        """The book as an earlier process left it."""
        book = cls(database)
        async with database.read() as session:
            for row in await session.scalars(select(PipelineRow)):
                target = Target.parse(row.target)
                entry = Entry(target, row.stream, row.content, row.changed_ms)
                book._entries[target, row.stream] = entry
        return book

    def is_empty(self) -> bool:
        """Whether nothing was ever said: nodes need not be told."""
        return not self._entries

    def entries(self) -> list[Entry]:
        """What is wanted, by target and name."""
        found = [entry for entry in self._entries.values() if entry.table is not None]
        return sorted(found, key=lambda entry: (entry.target.text, entry.stream))

    def of(self, node: Node) -> dict[str, Table]:
        """What the node is to run, by name."""
        return self._part(node, self._entries)

    def with_tables(
        self, node: Node, target: Target, tables: Mapping[str, Table]
    ) -> dict[str, Table]:
        """The same, if these tables were set.

        Raises:
            RequestError: that would be more than a node can be told.
        """
        now = now_ms()
        new = {(target, name): Entry(target, name, table, now) for name, table in tables.items()}
        part = self._part(node, self._entries | new)
        if len(part) > MAX_PIPELINES:
            raise RequestError(
                f"{node.name} would have {len(part)} pipelines; {MAX_PIPELINES} may be"
            )
        size_bytes = len(messages.encode(_document(part, 1 << 53, now)))
        if size_bytes > MAX_DOCUMENT_BYTES:
            raise RequestError(
                f"the pipelines of {node.name} would take {size_bytes} bytes; {MAX_DOCUMENT_BYTES} may be"
            )
        return part

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[AsyncSession]:
        """A transaction in which `set` and `remove` may be called; what fails leaves the book as it was."""
        before = dict(self._entries)
        try:
            async with self._database.write() as session:
                yield session
        except BaseException:
            self._entries = before
            raise

    async def set(self, change: AsyncSession, target: Target, tables: Mapping[str, Table]) -> None:
        """Within `changing`: these tables by name, beside the target's others."""
        for name, table in tables.items():
            await self._write(change, target, name, table)

    async def remove(self, change: AsyncSession, target: Target, stream: str) -> None:
        """Within `changing`: this one no more.

        Raises:
            NotFoundError: there is none.
        """
        held = self._entries.get((target, stream))
        if held is None or held.table is None:
            raise NotFoundError(f"{target.text} has no pipeline {stream!r}")
        await self._write(change, target, stream, None)

    def document(self, node: Node) -> bytes:
        """What the wanted state says of pipelines; empty: nothing was ever said.

        Raises:
            EncodeError: it is more than may travel.
        """
        if self.is_empty():
            return b""
        # The time of day: a controller that lost its database is still believed.
        self._version = max(now_ms(), self._version + 1)
        return messages.encode(_document(self.of(node), self._version, now_ms()))

    def _part(self, node: Node, entries: Mapping[tuple[Target, str], Entry]) -> dict[str, Table]:
        near = sorted(
            (
                entry
                for entry in entries.values()
                if entry.table is not None and entry.target.has(node)
            ),
            key=lambda entry: entry.target.nearness,
        )
        return {entry.stream: entry.table for entry in near if entry.table is not None}

    async def _write(
        self, change: AsyncSession, target: Target, stream: str, table: Table | None
    ) -> None:
        entry = Entry(target, stream, table, now_ms())
        await change.merge(
            PipelineRow(
                target=target.text, stream=stream, content=table, changed_ms=entry.changed_ms
            )
        )
        # Before the commit: from then on nodes are told, and of the new ones.
        self._entries[target, stream] = entry


def _document(part: Mapping[str, Table], version: int, at_ms: int) -> Document:
    wanted = [PipelineWanted(stream, table) for stream, table in sorted(part.items())]
    return Document(version, at_ms, wanted)
