"""Which node has which certificate, and who was revoked: the book of it. It signs and decides nothing.

The database is the truth; what is in memory is a copy that is replaced after each commit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_contract.enrolment import sha256_text
from shoal_fleet.database import Database
from shoal_fleet.identity.authority import Revoked
from shoal_fleet.identity.tables import CertificateRow, RevocationRow

LAPSED_S: Final = 90 * 86400
"""So long after its end a certificate's key still speaks for its node."""

_SECOND_MS: Final = 1000
_AT_ONCE: Final = 500
# A row without the certificate itself.
_FACTS: Final = (
    CertificateRow.node,
    CertificateRow.serial,
    CertificateRow.key,
    CertificateRow.how,
    CertificateRow.issued_ms,
    CertificateRow.not_after_ms,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The newest certificate of a node."""

    node: str
    serial: str
    key: bytes
    how: str
    issued_ms: int
    not_after_ms: int

    def expires_soon(self, now_ms: int) -> bool:
        """Less than a third of its life is left: it should have been renewed twice as long ago."""
        return self.not_after_ms - now_ms < (self.not_after_ms - self.issued_ms) / 3


@dataclass(frozen=True, slots=True)
class Revocation:
    """When a node was revoked, and what was said about it."""

    at_ms: int
    reason: str


class Inventory:
    """The book. Build it with `await Inventory.load(...)`.

    Attributes:
        newest: the newest certificate of every node that has one.
        revoked: nodes that were revoked.
    """

    def __init__(self, database: Database) -> None:
        self.newest: dict[str, Identity] = {}
        self.revoked: dict[str, Revocation] = {}
        self._database = database

    @classmethod
    async def load(cls, database: Database) -> "Inventory":
        """The book as an earlier process left it."""
        book = cls(database)
        async with database.read() as session:
            rows = await session.execute(select(*_FACTS).order_by(CertificateRow.issued_ms))
            for row in rows:
                book.newest[row.node] = Identity(**row._mapping)  # noqa: SLF001 - its public name
            for revoked in await session.scalars(select(RevocationRow)):
                book.revoked[revoked.node] = Revocation(revoked.revoked_ms, revoked.reason)
        return book

    def is_revoked(self, node: str) -> bool:
        """Whether nothing of this node counts."""
        return node in self.revoked

    def view(self, node: str) -> dict[str, Any] | None:
        """A node's identity as the API shows it; None: it never had one."""
        identity, revoked = self.newest.get(node), self.revoked.get(node)
        if identity is None and revoked is None:
            return None
        return {
            "key": None if identity is None else sha256_text(identity.key),
            "serial": None if identity is None else identity.serial,
            "how": None if identity is None else identity.how,
            "issued_ms": None if identity is None else identity.issued_ms,
            "not_after_ms": None if identity is None else identity.not_after_ms,
            "revoked_ms": None if revoked is None else revoked.at_ms,
            "reason": "" if revoked is None else revoked.reason,
        }

    def expiring(self, now_ms: int) -> Iterator[Identity]:
        """Certificates in force that should have been renewed long ago, those that ran out included."""
        for node, identity in self.newest.items():
            if node not in self.revoked and identity.expires_soon(now_ms):
                yield identity

    async def revoked_certificates(self, now_ms: int) -> list[Revoked]:
        """Those that must stand in the list: a connection may have outlived its certificate."""
        since_ms = now_ms - LAPSED_S * _SECOND_MS
        async with self._database.read() as session:
            rows = await session.scalars(
                select(CertificateRow).where(
                    CertificateRow.revoked_ms.is_not(None), CertificateRow.not_after_ms > since_ms
                )
            )
            return [Revoked(int(row.serial, 16), row.revoked_ms or 0) for row in rows]

    async def prune(self, now_ms: int) -> None:
        """Forget certificates whose key does not count any more; the newest of each node stays.

        Raises:
            StateError: the disk does not take it.
        """
        newest = {identity.serial for identity in self.newest.values()}
        async with self._database.write() as change:
            old = await change.scalars(
                select(CertificateRow.serial).where(
                    CertificateRow.not_after_ms < now_ms - LAPSED_S * _SECOND_MS
                )
            )
            gone = [serial for serial in old if serial not in newest]
            for start in range(0, len(gone), _AT_ONCE):
                await change.execute(
                    delete(CertificateRow).where(
                        CertificateRow.serial.in_(gone[start : start + _AT_ONCE])
                    )
                )

    # ------------------------------------------------------------------ within a caller's transaction
    async def with_key(self, change: AsyncSession, node: str, key: bytes) -> CertificateRow | None:
        """The newest certificate of this node for this key."""
        return await change.scalar(
            select(CertificateRow)
            .where(CertificateRow.node == node, CertificateRow.key == key)
            .order_by(CertificateRow.issued_ms.desc())
            .limit(1)
        )

    async def is_known(self, change: AsyncSession, node: str) -> bool:
        """Whether this node ever had a certificate, or was revoked."""
        if await change.get(RevocationRow, node) is not None:
            return True
        return await self.issued_since(change, node, 0) > 0

    async def issued_since(self, change: AsyncSession, node: str, since_ms: int) -> int:
        """How many certificates this node got since then."""
        found = await change.scalar(
            select(func.count())
            .select_from(CertificateRow)
            .where(CertificateRow.node == node, CertificateRow.issued_ms >= since_ms)
        )
        return found or 0

    async def retire_before(self, change: AsyncSession, proven: CertificateRow, at_ms: int) -> None:
        """A key has proved itself: earlier keys of its node do not count any more."""
        await change.execute(
            update(CertificateRow)
            .where(
                CertificateRow.node == proven.node,
                CertificateRow.key != proven.key,
                CertificateRow.issued_ms < proven.issued_ms,
                CertificateRow.retired_ms.is_(None),
            )
            .values(retired_ms=at_ms)
        )

    async def revoke_all(self, change: AsyncSession, node: str, at_ms: int) -> int:
        """All certificates of a node are revoked; how many were not yet."""
        revoked = await change.scalars(
            update(CertificateRow)
            .where(CertificateRow.node == node, CertificateRow.revoked_ms.is_(None))
            .values(revoked_ms=at_ms)
            .returning(CertificateRow.serial)
        )
        return len(revoked.all())

    # ------------------------------------------------------------------ behind a commit
    def issued(self, row: CertificateRow) -> None:
        """A certificate was issued."""
        self.newest[row.node] = _identity(row)


def _identity(row: CertificateRow) -> Identity:
    return Identity(
        node=row.node,
        serial=row.serial,
        key=row.key,
        how=row.how,
        issued_ms=row.issued_ms,
        not_after_ms=row.not_after_ms,
    )
