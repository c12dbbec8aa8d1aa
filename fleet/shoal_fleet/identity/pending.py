"""Boards without a token: they wait here until a person accepts or rejects them. A bounded list.

Anybody can claim any id. What a person accepts is a key, named by its sha256, which the board shows as well.
"""

from typing import Any, Final

from sqlalchemy import ColumnElement, and_, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_contract.enrolment import sha256_text
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.errors import ConflictError, EnrolmentRefusedError, NotFoundError, RequestError
from shoal_fleet.identity.inventory import Inventory
from shoal_fleet.identity.tables import PendingRow

MAX_PENDING: Final = 1024
MAX_OF_ADDRESS: Final = 128
MAX_OF_NODE: Final = 4
EXPIRES_MS: Final = 24 * 3_600_000
"""Who has not asked for so long is forgotten."""
ACCEPTED_EXPIRES_MS: Final = 14 * 24 * 3_600_000
RETRY_S: Final = 30.0
TOUCH_MS: Final = 60_000
MIN_DIGITS: Final = 16


class Pending:
    """The list, for people."""

    def __init__(self, database: Database, inventory: Inventory) -> None:
        self._database = database
        self._inventory = inventory

    async def list_all(self) -> list[dict[str, Any]]:
        """Who waits, the oldest first."""
        at_ms = now_ms()
        async with self._database.read() as session:
            rows = await session.scalars(
                select(PendingRow).where(~_is_stale(at_ms)).order_by(PendingRow.first_ms)
            )
            return [self._view(row) for row in rows]

    async def accept(self, node: str, fingerprint: str | None) -> dict[str, Any]:
        """The key that claims this id gets its certificate when it asks again.

        Args:
            node: the id.
            fingerprint: the beginning of the key's sha256; needed where several keys claim the id.

        Raises:
            NotFoundError: nobody waits under this name, or not with this key.
            ConflictError: several do, or the id is another board's and no key was named.
        """
        async with self._database.write() as change:
            row = await _one(change, node, fingerprint)
            if fingerprint is None and await self._inventory.is_known(change, node):
                raise ConflictError(
                    f"{node} has, or had, another key: to let {sha256_text(row.key)} take its place,"
                    " name it with --fingerprint"
                )
            row.accepted_ms, row.rejected_ms = now_ms(), None
        return self._view(row)

    async def reject(self, node: str, fingerprint: str | None) -> list[dict[str, Any]]:
        """Those keys, or all that claim this id, are told that they are not wanted.

        Raises:
            NotFoundError: nobody waits under this name, or not with this key.
        """
        async with self._database.write() as change:
            rows = await _claims(change, node, fingerprint)
            for row in rows:
                row.accepted_ms, row.rejected_ms = None, now_ms()
        return [self._view(row) for row in rows]

    def _view(self, row: PendingRow) -> dict[str, Any]:
        state = "waiting"
        if row.accepted_ms is not None:
            state = "accepted"
        elif row.rejected_ms is not None:
            state = "rejected"
        return {
            "node": row.node,
            "state": state,
            "fingerprint": sha256_text(row.key),
            "known_node": row.node in self._inventory.newest or row.node in self._inventory.revoked,
            "address": row.address,
            "hardware": row.hardware,
            "first_ms": row.first_ms,
            "last_ms": row.last_ms,
        }


async def ask(
    change: AsyncSession, *, node: str, key: bytes, address: str, hardware: str, at_ms: int
) -> bool:
    """Within the caller's transaction: whether this key was accepted for this id; else it waits.

    Raises:
        EnrolmentRefusedError: it was rejected, or the list is full.
    """
    row = await change.get(PendingRow, (node, key))
    if row is not None and _has_gone_stale(row, at_ms):
        await change.delete(row)
        await change.flush()
        row = None
    if row is None:
        await _check_room(change, node, address, at_ms)
        change.add(
            PendingRow(
                node=node,
                key=key,
                address=address,
                hardware=hardware,
                first_ms=at_ms,
                last_ms=at_ms,
            )
        )
        return False
    if row.rejected_ms is not None:
        raise EnrolmentRefusedError(
            f"{node} was rejected with this key", why="rejected", retry_s=10 * RETRY_S
        )
    if row.accepted_ms is not None:
        return True
    if at_ms - row.last_ms >= TOUCH_MS:
        row.last_ms, row.address, row.hardware = at_ms, address, hardware
    return False


async def forget(change: AsyncSession, node: str) -> None:
    """Within the caller's transaction: nobody waits under this name any more."""
    await change.execute(delete(PendingRow).where(PendingRow.node == node))


async def _check_room(change: AsyncSession, node: str, address: str, at_ms: int) -> None:
    await change.execute(delete(PendingRow).where(_is_stale(at_ms)))
    for limit, what in (
        (MAX_PENDING, None),
        (MAX_OF_ADDRESS, PendingRow.address == address),
        (MAX_OF_NODE, PendingRow.node == node),
    ):
        counted = select(func.count()).select_from(PendingRow)
        found = await change.scalar(counted if what is None else counted.where(what)) or 0
        if found >= limit:
            raise EnrolmentRefusedError(
                "too many boards wait already: use a token, or ask again later",
                why="full",
                retry_s=10 * RETRY_S,
            )


async def _claims(change: AsyncSession, node: str, fingerprint: str | None) -> list[PendingRow]:
    start = _digits(fingerprint)
    rows = await change.scalars(
        select(PendingRow).where(PendingRow.node == node, ~_is_stale(now_ms()))
    )
    found = [row for row in rows if row.key.hex().startswith(start)]
    if not found:
        with_key = "" if fingerprint is None else f" with a key {fingerprint}"
        raise NotFoundError(f"nobody waits as {node!r}{with_key} (shoal nodes pending)")
    return found


async def _one(change: AsyncSession, node: str, fingerprint: str | None) -> PendingRow:
    found = await _claims(change, node, fingerprint)
    if len(found) > 1:
        raise ConflictError(
            f"{len(found)} keys claim to be {node}: name one with --fingerprint (shoal nodes pending)"
        )
    return found[0]


def _digits(fingerprint: str | None) -> str:
    if fingerprint is None:
        return ""
    digits = fingerprint.strip().lower().removeprefix("sha256:").replace(":", "")
    if len(digits) < MIN_DIGITS or not set(digits) <= set("0123456789abcdef"):
        raise RequestError(
            f"{fingerprint[:80]!r} is no fingerprint: at least its first {MIN_DIGITS} hexadecimal digits"
        )
    return digits


def _is_stale(at_ms: int) -> ColumnElement[bool]:
    return or_(
        and_(PendingRow.accepted_ms.is_(None), PendingRow.last_ms < at_ms - EXPIRES_MS),
        # With NULL the whole would be NULL, and so would its opposite.
        and_(
            PendingRow.accepted_ms.is_not(None),
            PendingRow.accepted_ms < at_ms - ACCEPTED_EXPIRES_MS,
        ),
    )


def _has_gone_stale(row: PendingRow, at_ms: int) -> bool:
    if row.accepted_ms is not None:
        return row.accepted_ms < at_ms - ACCEPTED_EXPIRES_MS
    return row.last_ms < at_ms - EXPIRES_MS
