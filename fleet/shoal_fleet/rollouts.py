"""The rollouts that there are: feeds the engine with what nodes report, keeps its state, does what it says.

Deciding is `rollout` (pure). A decision, its reason, and the wanted states that it changes are one
transaction, and only then is anything sent: a restart at any moment continues.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import msgspec
import structlog
from sqlalchemy import select, update

from shoal_contract.messages import Phase
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database, DecisionRow, RolloutRow
from shoal_fleet.deltas import Deltas
from shoal_fleet.errors import ConflictError, NotFoundError, RequestError
from shoal_fleet.registry import Node, Registry
from shoal_fleet.releases import Release, Releases
from shoal_fleet.rollout import step
from shoal_fleet.rollout_state import (
    Event,
    Fails,
    Joined,
    Member,
    Note,
    Offer,
    Options,
    Prepared,
    Ready,
    Recall,
    Resume,
    Rollout,
    Serves,
    Standing,
    Status,
    Stop,
    Tick,
)
from shoal_fleet.selection import belongs, parse_group, stratify
from shoal_fleet.wanted import WantedStates

log = structlog.get_logger(__name__)

TICK_S: Final = 1.0
OTHER_BASES: Final = 4
MAX_LISTED: Final = 200


@dataclass(slots=True)
class _Open:
    """A rollout that is not at its end."""

    id: int
    release: Release
    group: dict[str, str]
    state: Rollout


class Rollouts:
    """All rollouts. Build it with `await Rollouts.load(...)`."""

    def __init__(
        self,
        database: Database,
        *,
        registry: Registry,
        releases: Releases,
        deltas: Deltas,
        wanted: WantedStates,
        blobs_wanted: asyncio.Event,
    ) -> None:
        self._database = database
        self._registry = registry
        self._releases = releases
        self._deltas = deltas
        self._wanted = wanted
        self._blobs_wanted = blobs_wanted
        self._open: dict[int, _Open] = {}
        self._turn = asyncio.Lock()
        self._to_prepare = asyncio.Event()
        self._to_prepare.set()

    async def load(self) -> None:
        """Take up the open rollouts that an earlier process left."""
        async with self._database.read() as session:
            rows = (
                await session.scalars(
                    select(RolloutRow).where(
                        RolloutRow.status.in_([status for status in Status if status.is_open])
                    )
                )
            ).all()
        for row in rows:
            self._open[row.id] = _Open(
                row.id,
                await self._releases.get(row.release),
                parse_group(row.group),
                _state(row),
            )

    async def start(self, release: Release, group: str, options: Options) -> dict[str, Any]:
        """Begin a rollout to the nodes that are in the group now and that join it later.

        Raises:
            RequestError: nobody is in the group, or the group is none.
            ConflictError: another rollout of this model is open.
        """
        wanted = parse_group(group)
        nodes = [node for node in self._registry.nodes.values() if belongs(node.labels, wanted)]
        if not nodes:
            raise RequestError(f"no node is in the group {group!r}" if group else "no nodes yet")
        async with self._turn:
            for other in self._open.values():
                if other.release.name == release.name:
                    raise ConflictError(
                        f"rollout {other.id} of {other.release.title} is open: stop it first"
                    )
            failed = await self._failed_before(release.id)
            order = stratify(
                ((node.name, node.stratum) for node in nodes), seed=f"{release.id.hex()} {now_ms()}"
            )
            state = Rollout(
                options=options, members={name: failed.get(name, Member()) for name in order}
            )
            row = RolloutRow(
                release=release.id,
                group=group,
                status=state.status.value,
                state=msgspec.json.encode(state),
                created_ms=now_ms(),
                updated_ms=now_ms(),
            )
            async with self._database.write() as session:
                session.add(row)
                await session.flush()
                session.add(
                    DecisionRow(
                        rollout=row.id,
                        at_ms=now_ms(),
                        text=f"started: {release.title} to {len(order)} nodes",
                    )
                )
            self._open[row.id] = _Open(row.id, release, wanted, state)
        log.info("rollout started", rollout=row.id, release=release.title, nodes=len(order))
        self._to_prepare.set()
        return await self.get(row.id)

    async def resume(self, rollout_id: int) -> dict[str, Any]:
        """Go on after a hold.

        Raises:
            NotFoundError: no such rollout.
            ConflictError: it is not held.
        """
        opened = await self._opened(rollout_id)
        if opened.state.status is not Status.HELD:
            raise ConflictError(f"rollout {rollout_id} is {opened.state.status}, not held")
        await self._feed(opened, Resume())
        return await self.get(rollout_id)

    async def stop(self, rollout_id: int, *, back: bool) -> dict[str, Any]:
        """End it: nodes that are not through go back to what they had; with `back` the others, too.

        Raises:
            NotFoundError: no such rollout.
            ConflictError: it has ended.
        """
        opened = await self._opened(rollout_id)
        await self._feed(opened, Stop("by an operator", back=back))
        return await self.get(rollout_id)

    async def observe(self, name: str) -> None:
        """The node's presence or report has changed."""
        node = self._registry.nodes[name]
        for opened in list(self._open.values()):
            if not belongs(node.labels, opened.group) and name not in opened.state.members:
                continue
            await self._observe(opened, node)
        # A direct wish may be fulfilled by this report: its blobs can go.
        self._blobs_wanted.set()

    def claims(self, node: str, model: str) -> int | None:
        """The rollout that has offered the node a release of this model and waits for it."""
        for opened in self._open.values():
            member = opened.state.members.get(node)
            if (
                opened.release.name == model
                and member is not None
                and member.standing is Standing.OFFERED
            ):
                return opened.id
        return None

    async def expecting(self) -> set[tuple[str, bytes]]:
        """(node, release) for members that are still to get the release of an open rollout."""
        return {
            (node, opened.release.id)
            for opened in self._open.values()
            if opened.state.status is not Status.PREPARING
            for node, member in opened.state.members.items()
            if member.standing in {Standing.WAITING, Standing.OFFERED}
        }

    async def run(self) -> NoReturn:
        """For ever: time passes, nodes join, leases are claimed."""
        while True:
            for opened in list(self._open.values()):
                await self._tick(opened)
            await asyncio.sleep(TICK_S)

    async def prepare(self) -> NoReturn:
        """For ever: build the deltas of rollouts that wait for them."""
        while True:
            await self._to_prepare.wait()
            self._to_prepare.clear()
            for opened in list(self._open.values()):
                if opened.state.status is Status.PREPARING:
                    await self._prepare(opened)

    async def list_all(self) -> list[dict[str, Any]]:
        """Every rollout, newest first, without its members."""
        async with self._database.read() as session:
            rows = (
                await session.scalars(
                    select(RolloutRow).order_by(RolloutRow.id.desc()).limit(MAX_LISTED)
                )
            ).all()
        return [await self._view(row) for row in rows]

    async def get(self, rollout_id: int) -> dict[str, Any]:
        """One rollout with its members, decisions and deltas.

        Raises:
            NotFoundError: no such rollout.
        """
        async with self._database.read() as session:
            row = await session.get(RolloutRow, rollout_id)
            if row is None:
                raise NotFoundError(f"there is no rollout {rollout_id}")
            decisions = (
                await session.scalars(
                    select(DecisionRow)
                    .where(DecisionRow.rollout == rollout_id)
                    .order_by(DecisionRow.id)
                )
            ).all()
        release = await self._releases.get(row.release)
        full = await self._releases.blob(release.model_file)
        return {
            **await self._view(row),
            "nodes": [
                {
                    "node": node,
                    "standing": member.standing.value,
                    "wave": member.wave,
                    "offered_ms": member.offered_ms,
                    "resolved_ms": member.resolved_ms,
                    "reason": member.reason,
                    "phase": self._phase(node, release),
                }
                for node, member in _state(row).members.items()
            ],
            "decisions": [{"at_ms": entry.at_ms, "text": entry.text} for entry in decisions],
            "full_bytes": full.size_bytes,
            "deltas": [
                {"base": offer.base.hex(), "size_bytes": offer.blob.size_bytes}
                for offer in await self._deltas.offers(release.model_file)
            ],
        }

    # --- the engine's turn

    async def _tick(self, opened: _Open) -> None:
        nodes = self._registry.nodes
        joined = tuple(
            name
            for name, node in nodes.items()
            if name not in opened.state.members and belongs(node.labels, opened.group)
        )
        if joined:
            await self._feed(opened, Joined(joined))
            for name in joined:
                await self._observe(opened, nodes[name])
        await self._feed(opened, Tick())
        await self._offer(opened)

    async def _observe(self, opened: _Open, node: Node) -> None:
        state = node.model(opened.release.name)
        if state is not None:
            if state.release == opened.release.id and state.phase is Phase.SERVING:
                await self._feed(opened, Serves(node.name))
            elif state.target == opened.release.id and state.phase is Phase.FAILED:
                await self._feed(opened, Fails(node.name, state.reason or "no reason given"))
        await self._offer(opened)

    async def _offer(self, opened: _Open) -> None:
        state = opened.state
        if state.status is not Status.RUNNING or not state.count(Standing.WAITING):
            return
        ready = frozenset(name for name, node in self._registry.nodes.items() if node.online)
        await self._feed(opened, Ready(ready))

    async def _feed(self, opened: _Open, event: Event) -> None:
        async with self._turn:
            before = opened.state
            after, actions = step(before, event, now_ms())
            if not actions and after.status is before.status and after.members is before.members:
                return
            changes_wanted = False
            async with self._database.write() as session:
                await session.execute(
                    update(RolloutRow)
                    .where(RolloutRow.id == opened.id)
                    .values(
                        status=after.status.value,
                        state=msgspec.json.encode(after),
                        updated_ms=now_ms(),
                    )
                )
                for action in actions:
                    match action:
                        case Note(text):
                            session.add(DecisionRow(rollout=opened.id, at_ms=now_ms(), text=text))
                        case Offer(node):
                            await self._wanted.want(
                                session,
                                node,
                                opened.release.name,
                                opened.release.id,
                                rollout=opened.id,
                            )
                            changes_wanted = True
                        case Recall(node):
                            await self._wanted.recall(
                                session, node, opened.release.name, opened.release.id
                            )
                            changes_wanted = True
            opened.state = after
            if not after.status.is_open:
                self._open.pop(opened.id, None)
        for action in actions:
            if isinstance(action, Note):
                log.info("rollout", rollout=opened.id, decision=action.text)
        if changes_wanted:
            self._wanted.changed()
        self._blobs_wanted.set()

    async def _prepare(self, opened: _Open) -> None:
        item = opened.release
        bases = set(await self._releases.bases(item.name, limit=OTHER_BASES))
        for name in opened.state.members:
            known = self._registry.nodes[name].model(item.name)
            if known is not None and known.model_file:
                bases.add(known.model_file)
        await self._deltas.ensure(bases, item.model_file)
        # Those who serve it already, or failed it, are known before anybody is offered it.
        for name in list(opened.state.members):
            await self._observe(opened, self._registry.nodes[name])
        await self._feed(opened, Prepared())
        await self._offer(opened)

    async def _opened(self, rollout_id: int) -> _Open:
        if rollout_id not in self._open:
            status = (await self.get(rollout_id))["status"]
            raise ConflictError(f"rollout {rollout_id} has ended: it is {status}")
        return self._open[rollout_id]

    async def _failed_before(self, release: bytes) -> dict[str, Member]:
        """Nodes that failed this very release in an earlier rollout: they are not offered it again."""
        async with self._database.read() as session:
            rows = (
                await session.scalars(select(RolloutRow).where(RolloutRow.release == release))
            ).all()
        return {
            node: Member(
                Standing.EXCLUDED, reason=f"failed in rollout {row.id}: {member.reason}", seen=True
            )
            for row in rows
            for node, member in _state(row).members.items()
            if member.standing is Standing.FAILED
        }

    async def _view(self, row: RolloutRow) -> dict[str, Any]:
        state = _state(row)
        release = await self._releases.get(row.release)
        return {
            "id": row.id,
            "release": release.id.hex(),
            "title": release.title,
            "group": row.group,
            "status": state.status.value,
            "final": not state.status.is_open,
            "reason": state.reason,
            "wave": state.wave,
            "wave_size": state.wave_size,
            "started": state.started,
            "counts": {standing.value: state.count(standing) for standing in Standing},
            "created_ms": row.created_ms,
            "updated_ms": row.updated_ms,
        }

    def _phase(self, node: str, release: Release) -> str | None:
        known = self._registry.nodes.get(node)
        state = None if known is None else known.model(release.name)
        if state is None or state.target != release.id:
            return None
        return state.phase.name.lower()


def _state(row: RolloutRow) -> Rollout:
    return msgspec.json.decode(row.state, type=Rollout)
