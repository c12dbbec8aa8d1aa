"""One-time tokens: 32 random bytes of which only the sha256 is kept, good once and for a while."""

import secrets
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_contract.enrolment import TOKEN_BYTES, token_digest
from shoal_contract.errors import ContractError
from shoal_contract.topics import check_node_id
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.errors import EnrolmentRefusedError, NotFoundError, RequestError
from shoal_fleet.identity.tables import TokenRow
from shoal_fleet.selection import MAX_LABELS, check_label

MAX_COUNT: Final = 1000
MAX_OPEN: Final = 20_000
KEPT_MS: Final = 90 * 86_400_000
"""So long the list shows what became of a token."""
ID_DIGITS: Final = 12


class Tokens:
    """All tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        *,
        node: str | None,
        labels: Mapping[str, str],
        ttl_s: float,
        count: int,
        at_ms: int | None = None,
    ) -> list[dict[str, Any]]:
        """New tokens with their texts, which are told this once.

        Args:
            node: the only id that may use it; None: any new one.
            labels: the node gets them.
            ttl_s: good for so long.
            count: how many.
            at_ms: the time now; None: the clock's.

        Raises:
            RequestError: no id, no labels, or too many tokens.
        """
        if node is not None:
            try:
                check_node_id(node)
            except ContractError as exc:
                raise RequestError(str(exc)) from exc
            if count != 1:
                raise RequestError("a token for one node is one token")
        if len(labels) > MAX_LABELS:
            raise RequestError(f"a node has at most {MAX_LABELS} labels")
        for key, value in labels.items():
            check_label(key, value)
        made_ms = now_ms() if at_ms is None else at_ms
        expires_ms = made_ms + round(ttl_s * 1000)
        texts = [secrets.token_urlsafe(TOKEN_BYTES) for _ in range(count)]
        async with self._database.write() as change:
            await change.execute(delete(TokenRow).where(TokenRow.expires_ms < made_ms - KEPT_MS))
            if await _open_tokens(change, made_ms) + count > MAX_OPEN:
                raise RequestError(f"more than {MAX_OPEN} tokens would be open: revoke some")
            rows = [
                TokenRow(
                    digest=token_digest(text),
                    node=node,
                    labels=dict(labels),
                    made_ms=made_ms,
                    expires_ms=expires_ms,
                    admitted=False,
                )
                for text in texts
            ]
            change.add_all(rows)
        return [
            {**view(row, made_ms), "token": text} for row, text in zip(rows, texts, strict=True)
        ]

    async def list_all(self) -> list[dict[str, Any]]:
        """Every token that is remembered, the newest first, without its text."""
        at_ms = now_ms()
        async with self._database.read() as session:
            rows = await session.scalars(
                select(TokenRow).order_by(TokenRow.made_ms.desc(), TokenRow.digest)
            )
            return [view(row, at_ms) for row in rows]

    async def revoke(self, name: str) -> dict[str, Any]:
        """Make a token worthless, named by its id.

        Raises:
            NotFoundError: there is none.
            RequestError: it was used.
        """
        at_ms = now_ms()
        async with self._database.write() as change:
            rows = (await change.scalars(select(TokenRow))).all()
            found = next((row for row in rows if _id(row) == name), None)
            if found is None:
                raise NotFoundError(f"there is no token {name[:40]!r} (shoal token list)")
            if found.used_ms is not None:
                raise RequestError(f"{found.used_by} has used this token: revoke the node")
            if found.revoked_ms is None:
                found.revoked_ms = at_ms
        return view(found, at_ms)

    async def admitted(self, digest: bytes) -> None:
        """What a used token gives its node besides the certificate has been given."""
        async with self._database.write() as change:
            await change.execute(
                update(TokenRow).where(TokenRow.digest == digest).values(admitted=True)
            )

    async def unadmitted(self) -> list[TokenRow]:
        """Used tokens of which a kill may have kept that."""
        async with self._database.read() as session:
            rows = await session.scalars(
                select(TokenRow).where(TokenRow.used_ms.is_not(None), TokenRow.admitted.is_(False))
            )
            return list(rows)


async def burn(change: AsyncSession, digest: bytes, *, node: str, at_ms: int) -> TokenRow:
    """Within the caller's transaction: use a token for a node; of all who try, one succeeds.

    Raises:
        EnrolmentRefusedError: it is not good, or not good for this node.
    """
    burnt = await change.scalars(
        update(TokenRow)
        .where(
            TokenRow.digest == digest,
            TokenRow.used_ms.is_(None),
            TokenRow.revoked_ms.is_(None),
            TokenRow.expires_ms > at_ms,
            or_(TokenRow.node.is_(None), TokenRow.node == node),
        )
        .values(used_ms=at_ms, used_by=node)
        .returning(TokenRow)
    )
    row = burnt.one_or_none()
    if row is None:
        raise EnrolmentRefusedError(
            _why_not(await change.get(TokenRow, digest), node, at_ms), why="token"
        )
    return row


def view(row: TokenRow, at_ms: int) -> dict[str, Any]:
    """A token as the API shows it."""
    state = "open"
    if row.used_ms is not None:
        state = "used"
    elif row.revoked_ms is not None:
        state = "revoked"
    elif row.expires_ms <= at_ms:
        state = "expired"
    return {
        "id": _id(row),
        "state": state,
        "node": row.node,
        "labels": row.labels,
        "made_ms": row.made_ms,
        "expires_ms": row.expires_ms,
        "used_ms": row.used_ms,
        "used_by": row.used_by,
    }


def _id(row: TokenRow) -> str:
    return row.digest.hex()[:ID_DIGITS]


def _why_not(row: TokenRow | None, node: str, at_ms: int) -> str:
    if row is None:
        return "the token is not known here"
    if row.revoked_ms is not None:
        return "the token was revoked"
    if row.used_ms is not None:
        return "the token was used already"
    if row.expires_ms <= at_ms:
        return "the token has expired"
    return f"the token is for another node than {node}"


async def _open_tokens(change: AsyncSession, at_ms: int) -> int:
    found = await change.scalar(
        select(func.count())
        .select_from(TokenRow)
        .where(
            TokenRow.used_ms.is_(None), TokenRow.revoked_ms.is_(None), TokenRow.expires_ms > at_ms
        )
    )
    return found or 0
