"""Whether a board gets a certificate, and its issue: one transaction from the question to the row.

In this order: the same key gets the same certificate again while it is young, so that an answer that was lost costs
nothing; a known key speaks for its node (`renewals`); a token admits (`tokens`); else the board waits (`pending`).
Every name in a request is ignored but the id it is asked for, and that must be free or proved.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_contract.enrolment import EnrolAnswer, EnrolRequest, proof, sha256_text, token_digest
from shoal_contract.errors import DecodeError
from shoal_contract.topics import check_leaf, check_node_id
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.errors import AuthorityError, EnrolmentRefusedError
from shoal_fleet.identity import csr, pending, tokens
from shoal_fleet.identity.authority import Authority
from shoal_fleet.identity.inventory import Inventory
from shoal_fleet.identity.renewals import verdict
from shoal_fleet.identity.tables import CertificateRow, RevocationRow, TokenRow

log = structlog.get_logger(__name__)

LIFE_S: Final = 30 * 86400.0
TOO_OFTEN: Final = 20
"""Certificates of one node within an hour."""
TOO_OFTEN_RETRY_S: Final = 600.0
_HOUR_MS: Final = 3_600_000


@dataclass(slots=True)
class EnrolmentStats:
    """Counters since the start: certificates by how they were earned, refusals by why."""

    issued: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Earned:
    """Why there is to be a certificate. `supersedes`: this key takes the place of all earlier ones."""

    how: str
    token: TokenRow | None = None
    supersedes: bool = False


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request, taken apart."""

    node: str
    key: csr.AskingKey
    request: EnrolRequest
    address: str
    at_ms: int


class Enrolment:
    """The one who decides.

    Args:
        database: with the tables of `tables`.
        authority: signs.
        inventory: the book.
        reserved: ids that are no node's, because a broker gives those names other rights.
        groups_of: the groups that a node is in, for its certificate.
        admit: told of a node with its certificate and the labels of its token.
        superseded: told when certificates of a node were revoked in favour of a new one.
        life_s: of a certificate.
        clock_ms: the time.
    """

    def __init__(
        self,
        database: Database,
        authority: Authority,
        inventory: Inventory,
        *,
        reserved: Callable[[], Collection[str]] = tuple,
        groups_of: Callable[[str], Sequence[str]] = lambda _: (),
        admit: Callable[[str, Mapping[str, str]], Awaitable[None]],
        superseded: Callable[[], Awaitable[None]],
        life_s: float = LIFE_S,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self.stats = EnrolmentStats()
        self._database = database
        self._authority = authority
        self._inventory = inventory
        self._tokens = tokens.Tokens(database)
        self._reserved = reserved
        self._groups_of = groups_of
        self._admit = admit
        self._superseded = superseded
        self._life_s = life_s
        self._clock_ms = clock_ms

    async def ask(self, request: EnrolRequest, *, address: str) -> EnrolAnswer:
        """A certificate, or word that a person must decide.

        Raises:
            DecodeError: the request is none.
            TopicError: it asks for what is no id.
            EnrolmentRefusedError: there is none for this board.
            StateError: the disk does not take it.
        """
        node = check_node_id(request.node)
        asked = _Asked(node, csr.read(request.csr), request, address, self._clock_ms())
        try:
            return await self._answer(asked)
        except EnrolmentRefusedError as exc:
            self.stats.refused[exc.why] += 1
            log.warning(
                "enrolment refused", node=node, why=exc.why, reason=str(exc), address=address,
                key=sha256_text(asked.key.digest),
            )  # fmt: skip
            raise

    async def recover(self) -> None:
        """Give nodes what a kill may have kept from them: a place in the registry, their token's labels."""
        for row in await self._tokens.unadmitted():
            if row.used_by is not None:
                await self._admit(row.used_by, row.labels)
            await self._tokens.admitted(row.digest)

    async def _answer(self, asked: _Asked) -> EnrolAnswer:
        if asked.node in self._reserved():
            raise EnrolmentRefusedError(
                f"{asked.node} is the name of no node here: choose another", why="reserved"
            )
        row: CertificateRow | None
        earned: _Earned | None = None
        async with self._database.write() as change:
            row = await self._again(change, asked)
            if row is None:
                earned = await self._earn(change, asked)
                if earned is not None:
                    row = await self._issue(change, asked, earned)
        if row is None:
            self.stats.waiting += 1
            return EnrolAnswer(state="pending", at_ms=asked.at_ms, retry_s=pending.RETRY_S)
        if earned is not None:
            await self._settle(row, earned)
        return EnrolAnswer(
            state="issued",
            at_ms=asked.at_ms,
            certificate=_pem(row.certificate),
            ca=self._authority.pem.decode("ascii"),
        )

    async def _again(self, change: AsyncSession, asked: _Asked) -> CertificateRow | None:
        """The certificate that this very key has, while more than half of its life is left."""
        found = await self._inventory.with_key(change, asked.node, asked.key.digest)
        if found is None or verdict(found, now_ms=asked.at_ms):
            return None
        half_ms = (found.not_after_ms - found.issued_ms) / 2
        return found if asked.at_ms - found.issued_ms < half_ms else None

    async def _earn(self, change: AsyncSession, asked: _Asked) -> _Earned | None:
        """Why this board gets a certificate; None: it waits."""
        node, at_ms = asked.node, asked.at_ms
        proven, why_not = await self._proven(change, asked)
        if proven is not None:
            await self._inventory.retire_before(change, proven, at_ms)
            return _Earned("renewed" if proven.not_after_ms >= at_ms else "lapsed")
        if asked.request.token:
            return await self._by_token(change, asked)
        if self._inventory.is_revoked(node) or why_not == "revoked":
            raise EnrolmentRefusedError(
                f"{node} was revoked: a token for this id lets it in again", why="revoked"
            )
        if why_not in {"retired", "signature"}:
            # A copy of a board, or somebody who would like to be one.
            log.error(
                "known key misused", node=node, why=why_not, address=asked.address,
                key=sha256_text(asked.request.known_key or asked.key.digest),
            )  # fmt: skip
        accepted = await pending.ask(
            change,
            node=node,
            key=asked.key.digest,
            address=asked.address,
            hardware=_printable(asked.request.hardware),
            at_ms=at_ms,
        )
        return _Earned("accepted", supersedes=True) if accepted else None

    async def _proven(
        self, change: AsyncSession, asked: _Asked
    ) -> tuple[CertificateRow | None, str]:
        """The certificate whose key speaks for the node: that of the request itself, or one that signed it."""
        own = await self._inventory.with_key(change, asked.node, asked.key.digest)
        if own is not None and not (why := verdict(own, now_ms=asked.at_ms)):
            return own, ""
        if own is not None and why == "revoked":
            return None, "revoked"
        if not asked.request.known_key:
            return None, "unknown" if own is None else why
        known = await self._inventory.with_key(change, asked.node, asked.request.known_key)
        if why := verdict(known, now_ms=asked.at_ms):
            return None, why
        message = proof(asked.node, asked.request.csr)
        if known is None or not csr.has_signed(known.public_key, asked.request.signature, message):
            return None, "signature"
        return known, ""

    async def _by_token(self, change: AsyncSession, asked: _Asked) -> _Earned:
        try:
            digest = token_digest(asked.request.token)
        except DecodeError as exc:
            raise EnrolmentRefusedError(str(exc), why="token") from exc
        row = await tokens.burn(change, digest, node=asked.node, at_ms=asked.at_ms)
        if row.node is None and await self._inventory.is_known(change, asked.node):
            # Raised within the transaction: the token is as good as before.
            raise EnrolmentRefusedError(
                f"{asked.node} has a certificate already: this takes a token for that id",
                why="taken",
            )
        return _Earned(f"token {row.digest.hex()[: tokens.ID_DIGITS]}", row, supersedes=True)

    async def _issue(self, change: AsyncSession, asked: _Asked, earned: _Earned) -> CertificateRow:
        node, at_ms = asked.node, asked.at_ms
        if await self._inventory.issued_since(change, node, at_ms - _HOUR_MS) >= TOO_OFTEN:
            raise EnrolmentRefusedError(
                f"{node} got {TOO_OFTEN} certificates within an hour",
                why="too_often",
                retry_s=TOO_OFTEN_RETRY_S,
            )
        if earned.supersedes:
            await self._inventory.revoke_all(change, node, at_ms)
            if (revoked := await change.get(RevocationRow, node)) is not None:
                await change.delete(revoked)
        await pending.forget(change, node)
        groups = set(self._groups_of(node))
        if earned.token is not None and "group" in earned.token.labels:
            groups = {earned.token.labels["group"]}
        certificate = self._authority.certify(
            asked.key.public,
            name=node,
            hosts=[node],
            uris=[f"shoal:node:{node}", *(f"shoal:group:{check_leaf(g)}" for g in sorted(groups))],
            now_ms=at_ms,
            life_s=self._life_s,
        )
        row = CertificateRow(
            serial=f"{certificate.serial_number:x}",
            node=node,
            key=asked.key.digest,
            public_key=asked.key.spki,
            certificate=certificate.public_bytes(serialization.Encoding.DER),
            how=earned.how,
            issued_ms=at_ms,
            not_after_ms=round(certificate.not_valid_after_utc.timestamp() * 1000),
        )
        change.add(row)
        return row

    async def _settle(self, row: CertificateRow, earned: _Earned) -> None:
        """What follows when the issue is committed."""
        self.stats.issued[earned.how.partition(" ")[0]] += 1
        self._inventory.issued(row)
        log.info("certificate issued", node=row.node, how=earned.how, serial=row.serial)
        if earned.supersedes:
            self._inventory.revoked.pop(row.node, None)
            try:
                await self._superseded()
            except AuthorityError as exc:
                # It is written again until it can be; this board has done nothing wrong.
                log.error("list of revoked certificates not written", reason=str(exc))  # noqa: TRY400 - the message says it all
        await self._admit(row.node, {} if earned.token is None else earned.token.labels)
        if earned.token is not None:
            await self._tokens.admitted(earned.token.digest)


def _pem(der: bytes) -> str:
    certificate = x509.load_der_x509_certificate(der)
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())[:200]
