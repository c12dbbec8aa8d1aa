"""Revoking a node: marked in the inventory, its certificates in the list, its connection ended, nothing wanted of it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

import structlog
from sqlalchemy import update

from shoal_contract.errors import ContractError
from shoal_contract.topics import check_node_id
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.errors import AuthorityError, NotFoundError, RequestError
from shoal_fleet.identity import pending
from shoal_fleet.identity.authority import Authority
from shoal_fleet.identity.disconnect import Disconnect
from shoal_fleet.identity.inventory import Inventory, Revocation
from shoal_fleet.identity.tables import RevocationRow, TokenRow
from shoal_fleet.upsert import insert_into

log = structlog.get_logger(__name__)

WRITE_EVERY_S: Final = 86_400.0
RETRY_S: Final = 10.0
MAX_REASON: Final = 200


class Revocations:
    """Takes nodes out of the fleet.

    Attributes:
        list_failures: times that the list could not be written.
    """

    def __init__(
        self,
        database: Database,
        authority: Authority,
        inventory: Inventory,
        *,
        disconnect: Disconnect,
        forsake: Callable[[str], Awaitable[None]],
        is_node: Callable[[str], bool],
    ) -> None:
        self.list_failures = 0
        self._database = database
        self._authority = authority
        self._inventory = inventory
        self._disconnect = disconnect
        self._forsake = forsake
        self._is_node = is_node
        self._writing = asyncio.Lock()
        self._due = asyncio.Event()

    async def revoke(self, node: str, reason: str) -> dict[str, Any]:
        """The node is out: at once here, and at the broker when this returns.

        Raises:
            NotFoundError: no such node is known.
            RequestError: it is no id, or the reason too long.
            AuthorityError: the list could not be written; it is tried again.
        """
        try:
            check_node_id(node)
        except ContractError as exc:
            raise RequestError(str(exc)) from exc
        if len(reason) > MAX_REASON or not reason.isprintable():
            raise RequestError(f"a reason has at most {MAX_REASON} printable characters")
        at_ms = now_ms()
        async with self._database.write() as change:
            known = await self._inventory.is_known(change, node)
            if not known and not self._is_node(node):
                raise NotFoundError(f"there is no node {node!r} (shoal nodes lists them)")
            await change.execute(
                insert_into(change, RevocationRow)
                .values(node=node, revoked_ms=at_ms, reason=reason)
                .on_conflict_do_update(index_elements=["node"], set_={"reason": reason})
            )
            count = await self._inventory.revoke_all(change, node, at_ms)
            await pending.forget(change, node)
            await change.execute(
                update(TokenRow)
                .where(TokenRow.node == node, TokenRow.used_ms.is_(None))
                .values(revoked_ms=at_ms)
            )
        self._inventory.revoked.setdefault(node, Revocation(at_ms, reason))
        log.warning("node revoked", node=node, reason=reason, certificates=count)
        try:
            await self.write_list()
        finally:
            try:
                await self._forsake(node)
            finally:
                await self._disconnect(node)
        return {"node": node, "revoked_ms": at_ms, "certificates": count, "reason": reason}

    async def retire(self, node: str) -> int:
        """The board that bears this name is gone, the name stays: no certificate of the board is good any more.

        Returns how many were.

        Raises:
            AuthorityError: the list could not be written; it is tried again.
        """
        at_ms = now_ms()
        async with self._database.write() as change:
            count = await self._inventory.revoke_all(change, node, at_ms)
        log.warning("board retired", node=node, certificates=count)
        try:
            await self.write_list()
        finally:
            await self._disconnect(node)
        return count

    async def write_list(self) -> None:
        """Write the list of revoked certificates anew.

        Raises:
            AuthorityError: the disk does not take it; it is tried again.
        """
        async with self._writing:
            at_ms = now_ms()
            revoked = await self._inventory.revoked_certificates(at_ms)
            try:
                await asyncio.to_thread(self._authority.write_crl, revoked, now_ms=at_ms)
            except AuthorityError:
                self.list_failures += 1
                self._due.set()
                raise

    async def run(self) -> NoReturn:
        """Keep the list young and the book small for ever, and write the list again where that failed."""
        while True:
            self._due.clear()
            try:
                await self._inventory.prune(now_ms())
                await self.write_list()
            except AuthorityError as exc:
                log.error("list of revoked certificates cannot be written", reason=str(exc))  # noqa: TRY400 - the message says it all
                await asyncio.sleep(RETRY_S)
                continue
            try:
                async with asyncio.timeout(WRITE_EVERY_S):
                    await self._due.wait()
            except TimeoutError:
                continue
