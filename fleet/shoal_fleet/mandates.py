"""Whom the controller lets command nodes, and what may run on them at all: the book of it, and a node's part.

How a node learns of it is the business of `policies`; what it means there that of `shoal_contract.mandates`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import select

from shoal_contract import envelope, mandates
from shoal_contract.errors import KeyTextError, TopicError
from shoal_contract.messages import Mandate, Policy
from shoal_contract.topics import EVERYBODY, check_leaf
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.errors import ConflictError, NotFoundError, RequestError
from shoal_fleet.issuer import Issuer
from shoal_fleet.tables import MandateRow, SurfaceRow

MAX_MANDATES: Final = 64
MAX_REVOKED: Final = 256
MAX_PATTERNS: Final = 64

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_PATTERN = re.compile(r"\*|[a-z0-9_-]+(\.[a-z0-9_-]+)*(\.\*)?")


@dataclass(frozen=True, slots=True)
class Given:
    """A mandate as the controller keeps it."""

    mandate: Mandate
    made_ms: int
    revoked_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Surface:
    """What may run on the nodes of a group; `approved` None: everything that is not denied."""

    approved: tuple[str, ...] | None = None
    denied: tuple[str, ...] = ()


class Mandates:
    """The book. Build it with `await Mandates.load(...)`.

    Attributes:
        given: every mandate there ever was, by name.
        surfaces: by group; "*" stands for every node.
        on_change: told when something changed, after that is committed.
    """

    def __init__(self, database: Database, issuer: Issuer) -> None:
        self.given: dict[str, Given] = {}
        self.surfaces: dict[str, Surface] = {}
        self.on_change: Callable[[], None] = lambda: None
        self._database = database
        self._issuer = issuer

    @classmethod
    async def load(cls, database: Database, issuer: Issuer) -> "Mandates":
        """The book as an earlier process left it."""
        book = cls(database, issuer)
        async with database.read() as session:
            for row in await session.scalars(select(MandateRow)):
                mandate = Mandate(
                    row.key, row.name, row.ops, row.groups, row.may_delegate, row.until_ms
                )
                book.given[row.name] = Given(mandate, row.made_ms, row.revoked_ms)
            for surface in await session.scalars(select(SurfaceRow)):
                approved = None if surface.approved is None else tuple(surface.approved)
                book.surfaces[surface.group] = Surface(approved, tuple(surface.denied))
        return book

    async def grant(self, mandate: Mandate) -> Given:
        """Let the holder of a key command nodes; a mandate of this name and key is replaced.

        Raises:
            RequestError: it says nothing that nodes would understand, or there are too many.
            ConflictError: the name has another key, the key another name, or it was revoked.
        """
        self._check_signing()
        _check_mandate(mandate)
        held = self.given.get(mandate.name)
        if held is not None and held.revoked_ms is not None:
            raise ConflictError(f"{mandate.name} was revoked: give a new key another name")
        if held is not None and held.mandate.key != mandate.key:
            raise ConflictError(f"{mandate.name} has another key: revoke it, and take another name")
        for other in self.given.values():
            if other.mandate.key == mandate.key and other.mandate.name != mandate.name:
                raise ConflictError(f"{other.mandate.name} has this key already")
        if held is None and len(self._valid()) >= MAX_MANDATES:
            raise RequestError(f"there are {MAX_MANDATES} mandates already: revoke some")
        given = Given(mandate, now_ms())
        await self._store(given)
        return given

    async def revoke(self, name: str) -> Given:
        """Take a mandate away, and everything that its holder gave.

        Raises:
            NotFoundError: nobody has it.
            RequestError: so many were revoked that nodes cannot be told of another.
        """
        held = self.given.get(name)
        if held is None:
            raise NotFoundError(f"nobody has a mandate of the name {name!r}")
        if held.revoked_ms is not None:
            return held
        revoked = sum(given.revoked_ms is not None for given in self.given.values())
        if revoked >= MAX_REVOKED:
            raise RequestError(f"{MAX_REVOKED} keys are revoked already: give nodes a new root key")
        given = replace(held, revoked_ms=now_ms())
        await self._store(given)
        return given

    async def set_surface(self, group: str, surface: Surface) -> None:
        """Say what may run on the nodes of a group ("*": on all) at all, whoever asks.

        Raises:
            RequestError: no group, or no operations.
        """
        self._check_signing()
        _check_groups([group])
        _check_patterns([*(surface.approved or ()), *surface.denied])
        async with self._database.write() as session:
            await session.merge(
                SurfaceRow(
                    group=group,
                    approved=None if surface.approved is None else list(surface.approved),
                    denied=list(surface.denied),
                )
            )
        self.surfaces[group] = surface
        self.on_change()

    def is_empty(self) -> bool:
        """Whether nothing was ever said: nodes need not be told."""
        return not self.given and not self.surfaces

    def policy(self, groups: Iterable[str]) -> Policy:
        """What a node of these groups is to be told, as version 1 of the year 0."""
        own = frozenset(groups)
        found = [
            self.surfaces[name] for name in sorted({*own, mandates.ANY} & self.surfaces.keys())
        ]
        approved = [set(one.approved) for one in found if one.approved is not None]
        return Policy(
            1,
            0,
            [m for m in self._valid() if mandates.reaches(m.groups, own | {EVERYBODY})],
            sorted(g.mandate.key for g in self.given.values() if g.revoked_ms is not None),
            _common(approved),
            sorted({op for one in found for op in one.denied}),
        )

    def _valid(self) -> list[Mandate]:
        return [
            given.mandate for _, given in sorted(self.given.items()) if given.revoked_ms is None
        ]

    def _check_signing(self) -> None:
        if self._issuer.public_key is None:
            raise RequestError("mandates need signatures: set sign_commands = true")

    async def _store(self, given: Given) -> None:
        mandate = given.mandate
        async with self._database.write() as session:
            await session.merge(
                MandateRow(
                    name=mandate.name,
                    key=mandate.key,
                    ops=mandate.ops,
                    groups=mandate.groups,
                    may_delegate=mandate.may_delegate,
                    until_ms=mandate.until_ms,
                    made_ms=given.made_ms,
                    revoked_ms=given.revoked_ms,
                )
            )
        self.given[mandate.name] = given
        self.on_change()


def parse_key(text: str) -> bytes:
    """A public key as people write it.

    Raises:
        RequestError: it is none.
    """
    try:
        return envelope.parse_key(text)
    except KeyTextError as exc:
        raise RequestError(str(exc)) from exc


def _common(approved: Sequence[set[str]]) -> list[str]:
    """What every one of several lists approves, as far as patterns can say it."""
    if not approved:
        return [mandates.ANY]
    first, *others = approved
    both = {op for op in first if all(_covers(other, op) for other in others)}
    for other in others:
        both |= {
            op for op in other if all(_covers(one, op) for one in approved if one is not other)
        }
    return sorted(both)


def _covers(patterns: Iterable[str], pattern: str) -> bool:
    return any(
        outer in (mandates.ANY, pattern)
        or (outer.endswith(".*") and pattern.startswith(outer[:-1]))
        for outer in patterns
    )


def _check_mandate(mandate: Mandate) -> None:
    if not _NAME.fullmatch(mandate.name):
        raise RequestError(f"{mandate.name!r} is no name: 1 to 64 of letters, digits and '_.@-'")
    if not mandate.ops or not mandate.groups:
        raise RequestError(f"{mandate.name}: a mandate needs operations and groups")
    _check_patterns(mandate.ops)
    _check_groups(mandate.groups)
    if mandate.until_ms and mandate.until_ms <= now_ms():
        raise RequestError(f"{mandate.name}: that mandate would have ended already")


def _check_patterns(patterns: Sequence[str]) -> None:
    if len(patterns) > MAX_PATTERNS:
        raise RequestError(f"more than {MAX_PATTERNS} operations: use a pattern such as device.*")
    for pattern in patterns:
        if len(pattern) > MAX_PATTERNS or not _PATTERN.fullmatch(pattern):
            raise RequestError(f"{pattern!r} is no operation: a name, name.*, or *")


def _check_groups(groups: Sequence[str]) -> None:
    if len(groups) > MAX_PATTERNS:
        raise RequestError(f"more than {MAX_PATTERNS} groups")
    for group in groups:
        if group != mandates.ANY:
            try:
                check_leaf(group)
            except TopicError as exc:
                raise RequestError(f"group: {exc}") from exc
