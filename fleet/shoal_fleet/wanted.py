"""What every node is to run: the table, and the retained, signed message that tells the node.

A change and its revision are one transaction; the message is sent until the revision that was handed to
the bus is the newest one, so a kill between the two loses nothing. A node takes no older revision than it
has: they follow the time of day, so that a controller that lost its database is still believed.
"""

import asyncio
from collections.abc import Iterable
from typing import Final, NoReturn

import msgspec
import structlog
from sqlalchemy import BigInteger, ColumnElement, case, delete, literal, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_broker.bus_errors import BusError
from shoal_broker.link import Outbound
from shoal_broker.session import Session
from shoal_contract import messages
from shoal_contract.errors import ContractError, EncodeError
from shoal_contract.messages import DeltaOffer, ModelWanted, Phase, Wanted
from shoal_contract.topics import Topics
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.deltas import Deltas
from shoal_fleet.errors import NotFoundError, StateError
from shoal_fleet.issuer import Issuer
from shoal_fleet.pipelines import Pipelines
from shoal_fleet.registry import Node, Registry
from shoal_fleet.releases import Releases
from shoal_fleet.selection import GROUP_LABEL
from shoal_fleet.tables import NodeRow, WantedRow
from shoal_fleet.upsert import insert_into

log = structlog.get_logger(__name__)

RETRY_S: Final = 5.0
MAX_OFFERS: Final = 8
"""Deltas that a wanted state names for one model."""


class WantedStates:
    """The wanted state of every node."""

    def __init__(
        self,
        database: Database,
        session: Session,
        topics: Topics,
        *,
        registry: Registry,
        releases: Releases,
        deltas: Deltas,
        pipelines: Pipelines,
        issuer: Issuer,
    ) -> None:
        self._database = database
        self._session = session
        self._topics = topics
        self._registry = registry
        self._releases = releases
        self._deltas = deltas
        self._pipelines = pipelines
        self._issuer = issuer
        self._due = asyncio.Event()
        self._due.set()
        self._forgotten = False

    async def want(
        self, change: AsyncSession, node: str, model: str, release: bytes, *, rollout: int | None
    ) -> None:
        """Within the caller's transaction: the node is to run this release."""
        row = await change.get(WantedRow, (node, model))
        if row is not None and row.release == release:
            return
        previous = None if row is None else row.release
        await change.execute(
            insert_into(change, WantedRow)
            .values(node=node, model=model, release=release, previous=previous, rollout=rollout)
            .on_conflict_do_update(
                index_elements=["node", "model"],
                set_={"release": release, "previous": previous, "rollout": rollout},
            )
        )
        await _next_revision(change, node)

    async def want_none(self, change: AsyncSession, node: str, model: str) -> None:
        """Within the caller's transaction: the node is not to run this model."""
        await change.execute(
            delete(WantedRow).where(WantedRow.node == node, WantedRow.model == model)
        )
        await _next_revision(change, node)

    async def recall(self, change: AsyncSession, node: str, model: str, release: bytes) -> None:
        """Within the caller's transaction: back to what was wanted before this release."""
        row = await change.get(WantedRow, (node, model))
        if row is None or row.release != release:
            return
        if row.previous is None:
            await self.want_none(change, node, model)
        else:
            await change.execute(
                update(WantedRow)
                .where(WantedRow.node == node, WantedRow.model == model)
                .values(release=row.previous, previous=None, rollout=None)
            )
            await _next_revision(change, node)

    async def regroup(self, node: str) -> None:
        """The node's groups changed: it is to hear of it."""
        async with self._database.write() as session:
            await _next_revision(session, node)
        self.changed()

    async def say_anew(self, change: AsyncSession, nodes: Iterable[str]) -> None:
        """Within the caller's transaction: what these nodes are told beside models has changed."""
        for node in nodes:
            await _next_revision(change, node)

    async def say_all_anew(self, change: AsyncSession) -> None:
        """Within the caller's transaction: what everybody is told has changed, not what is wanted."""
        await change.execute(
            update(NodeRow)
            .where(NodeRow.name.in_(select(WantedRow.node)))
            .values(wanted_revision=_next())
        )

    def changed(self) -> None:
        """A change was committed: send what is due."""
        self._due.set()

    async def of(self, node: str) -> dict[str, bytes]:
        """Model -> release that the node is to run."""
        async with self._database.read() as session:
            rows = await session.scalars(select(WantedRow).where(WantedRow.node == node))
            return {row.model: row.release for row in rows}

    async def everything(self) -> list[tuple[str, str, bytes]]:
        """(node, model, release) for all that is wanted."""
        async with self._database.read() as session:
            rows = await session.execute(select(WantedRow.node, WantedRow.model, WantedRow.release))
            return [(node, model, release) for node, model, release in rows]

    async def pending(self) -> set[tuple[str, bytes]]:
        """(node, release) for every release that a node neither serves nor has given up."""
        async with self._database.read() as session:
            rows = (await session.scalars(select(WantedRow))).all()
        return {
            (row.node, row.release)
            for row in rows
            if not self._is_settled(row.node, row.model, row.release)
        }

    async def run(self) -> NoReturn:
        """Send what is due, for ever."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self.publish_due()
            except (BusError, StateError) as exc:
                log.warning("wanted states wait", reason=str(exc))
                self._due.set()
                await asyncio.sleep(RETRY_S)

    async def publish_due(self) -> None:
        """Hand every wanted state that is newer than its last message to the bus.

        Raises:
            BusError: the outbox does not take it.
            StateError: what is wanted of a node cannot be read; the others were told.
        """
        if self._forgotten:
            await self.say_all_again()
            self._forgotten = False
        await self._greet_newcomers()
        async with self._database.read() as session:
            rows = await session.execute(
                select(NodeRow.name, NodeRow.wanted_revision).where(
                    NodeRow.wanted_revision > NodeRow.published_revision
                )
            )
            due = rows.all()
        failure: StateError | None = None
        for node, revision in due:
            try:
                payload = await self._say(node, revision)
            except StateError as exc:
                failure = exc
                continue
            except (NotFoundError, ContractError) as exc:
                log.error("wanted state cannot be said", node=node, reason=str(exc))  # noqa: TRY400 - the message says it all
                continue
            await self._session.publish(
                self._topics.wanted(node), payload, retain=True, coalesce_key=f"wanted {node}"
            )
            async with self._database.write() as session:
                await session.execute(
                    update(NodeRow).where(NodeRow.name == node).values(published_revision=revision)
                )
        if failure is not None:
            raise failure

    async def _greet_newcomers(self) -> None:
        """Nodes that were never told anything may be in a group that has pipelines."""
        if self._pipelines.is_empty():
            return
        async with self._database.read() as session:
            new = await session.scalars(select(NodeRow.name).where(NodeRow.wanted_revision == 0))
            known = [self._registry.nodes.get(name) for name in new]
        named = [node.name for node in known if node is not None and self._pipelines.of(node)]
        if named:
            async with self._database.write() as session:
                await self.say_anew(session, named)

    async def say_all_again(self) -> None:
        """Every wanted state is due once more: what went out is lost, or signed by a key of yesterday."""
        async with self._database.write() as session:
            await session.execute(
                update(NodeRow).where(NodeRow.wanted_revision > 0).values(published_revision=0)
            )

    def forget(self) -> None:
        """The broker may have forgotten what it retained: say it all once more."""
        self._forgotten = True
        self._due.set()

    def _is_settled(self, node: str, model: str, release: bytes) -> bool:
        known = self._registry.nodes.get(node)
        state = None if known is None else known.model(model)
        if state is None:
            return False
        serves = state.release == release and state.phase is Phase.SERVING
        return serves or (state.target == release and state.phase is Phase.FAILED)

    async def _say(self, node: str, revision: int) -> bytes:
        """The message, with every delta that fits: all, else those from what the node has, else none."""
        wanted = await self._compose(node, revision)
        here = _model_files(self._registry.nodes.get(node))
        for bases in (here, set[bytes]()):
            try:
                return self._encode(node, wanted)
            except EncodeError:
                replace = msgspec.structs.replace
                models = [
                    replace(entry, deltas=[offer for offer in entry.deltas if offer.base in bases])
                    for entry in wanted.models
                ]
                wanted = replace(wanted, models=models)
        return self._encode(node, wanted)

    def _encode(self, node: str, wanted: Wanted) -> bytes:
        topic = self._topics.wanted(node)
        payload = self._issuer.sealed(messages.encode(wanted), topic=topic)
        greeting = self._session.greeting
        limit_bytes = None if greeting is None else greeting.maximum_packet_bytes
        packet = Outbound(topic=topic, payload=payload, retain=True)
        if limit_bytes is not None and packet.packet_bytes > limit_bytes:
            raise EncodeError(
                f"a wanted state of {packet.packet_bytes} bytes; the broker takes {limit_bytes}"
            )
        return payload

    async def _compose(self, node: str, revision: int) -> Wanted:
        known = self._registry.nodes.get(node)
        here = _model_files(known)
        models = []
        for model, release in sorted((await self.of(node)).items()):
            item = await self._releases.get(release)
            models.append(
                ModelWanted(
                    model=model,
                    release=release,
                    manifest=await self._releases.blob(release),
                    files=await self._releases.blobs(item),
                    deltas=_few(await self._deltas.offers(item.model_file), here),
                )
            )
        group = None if known is None else known.labels.get(GROUP_LABEL)
        return Wanted(
            revision=revision,
            issued_ms=now_ms(),
            models=models,
            groups=[] if group is None else [group],
            fleet_nodes=len(self._registry.nodes),
            pipelines=b"" if known is None else self._pipelines.document(known),
        )


def _model_files(node: Node | None) -> set[bytes]:
    """What the node says that it has."""
    reported = None if node is None else node.reported
    return {state.model_file for state in reported.models} if reported else set()


def _few(offers: list[DeltaOffer], here: set[bytes]) -> list[DeltaOffer]:
    """At most `MAX_OFFERS`: from what the node has first, then the smallest, smallest first."""
    chosen = sorted(offers, key=lambda offer: offer.base not in here)[:MAX_OFFERS]
    return [offer for offer in offers if offer in chosen]


async def _next_revision(change: AsyncSession, node: str) -> None:
    await change.execute(
        update(NodeRow).where(NodeRow.name == node).values(wanted_revision=_next())
    )


def _next() -> ColumnElement[int]:
    """The revision after a node's last one: the time, unless that was later."""
    now = literal(now_ms(), BigInteger)
    return case((NodeRow.wanted_revision < now, now), else_=NodeRow.wanted_revision + 1)
