"""The rollouts that there are: feeds the engine with what nodes report, keeps its state, does what it says.

Deciding is `rollout` (pure). A decision, its reason, and the wanted states that it changes are one
transaction, and only then is anything sent: a restart at any moment continues. What there is to see of
rollouts is in `rollout_views`.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

import msgspec
import structlog
from sqlalchemy import select

from shoal_contract.messages import Phase
from shoal_fleet.clock import ListeningTime, now_ms
from shoal_fleet.database import Database
from shoal_fleet.deltas import Deltas
from shoal_fleet.errors import ConflictError, NotFoundError, RequestError, StateError
from shoal_fleet.model_files import NO_MODEL, model_files
from shoal_fleet.registry import Node, Registry
from shoal_fleet.releases import Release, Releases
from shoal_fleet.rollout import step, uncounted
from shoal_fleet.rollout_roster import Roster
from shoal_fleet.rollout_rows import add_members, load_roster, save, state_of
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
from shoal_fleet.tables import DecisionRow, RolloutMemberRow, RolloutRow
from shoal_fleet.wanted import WantedStates

log = structlog.get_logger(__name__)

TICK_S: Final = 1.0
OTHER_BASES: Final = 4


@dataclass(slots=True)
class _Open:
    """A rollout that is not at its end."""

    id: int
    release: Release
    group: dict[str, str]
    state: Rollout
    roster: Roster

    @property
    def has_room(self) -> bool:
        """Whether somebody waits and a lease is free."""
        counts = self.roster.counts
        return (
            self.state.status is Status.RUNNING
            and counts.at(Standing.WAITING) > 0
            and counts.leases.get(self.state.wave, 0) < self.state.wave_size
        )


class Rollouts:
    """All rollouts. Call `load` once before anything else."""

    def __init__(
        self,
        database: Database,
        *,
        registry: Registry,
        releases: Releases,
        deltas: Deltas,
        wanted: WantedStates,
        blobs_wanted: asyncio.Event,
        is_listening: Callable[[], bool],
    ) -> None:
        self._database = database
        self._registry = registry
        self._releases = releases
        self._deltas = deltas
        self._wanted = wanted
        self._blobs_wanted = blobs_wanted
        self._is_listening = is_listening
        self._time = ListeningTime(now_ms(), time.monotonic())
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
            rosters = {row.id: await load_roster(session, row.id) for row in rows}
        for row in rows:
            self._open[row.id] = _Open(
                row.id,
                await self._releases.get(row.release),
                parse_group(row.group),
                # Nobody listened while no controller ran. When it ended is not known: its last word
                # was this row.
                uncounted(state_of(row), now_ms() - row.updated_ms),
                rosters[row.id],
            )

    async def start(self, release: Release, group: str, options: Options) -> int:
        """Begin a rollout to the nodes that are in the group now and that join it later; its id.

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
                ((node.name, node.strata) for node in nodes), seed=f"{release.id.hex()} {now_ms()}"
            )
            kinds = {node.name: node.kind for node in nodes}
            roster = Roster((name, failed.get(name, Member(kind=kinds[name]))) for name in order)
            state = Rollout(options=options)
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
                await add_members(session, row.id, roster)
                session.add(
                    DecisionRow(
                        rollout=row.id,
                        at_ms=now_ms(),
                        text=f"started: {release.title} to {len(order)} nodes",
                    )
                )
            self._open[row.id] = _Open(row.id, release, wanted, state, roster)
        log.info("rollout started", rollout=row.id, release=release.title, nodes=len(order))
        self._to_prepare.set()
        return row.id

    async def resume(self, rollout_id: int) -> None:
        """Go on after a hold.

        Raises:
            NotFoundError: no such rollout.
            ConflictError: it is not held.
        """
        opened = await self._opened(rollout_id)
        if opened.state.status is not Status.HELD:
            raise ConflictError(f"rollout {rollout_id} is {opened.state.status}, not held")
        await self._feed(opened, Resume())

    async def stop(self, rollout_id: int, *, back: bool) -> None:
        """End it: nodes that are not through go back to what they had; with `back` the others, too.

        Raises:
            NotFoundError: no such rollout.
            ConflictError: it has ended.
        """
        opened = await self._opened(rollout_id)
        await self._feed(opened, Stop("by an operator", back=back))

    async def observe(self, name: str) -> None:
        """The node's presence or report has changed."""
        node = self._registry.nodes[name]
        for opened in list(self._open.values()):
            if not belongs(node.labels, opened.group) and name not in opened.roster.members:
                continue
            wave = opened.state.wave
            await self._notice(opened, node)
            # A new wave is open to everybody; else one more is ready, perhaps.
            has_opened = opened.state.wave != wave
            await self._offer(opened, self._registry.nodes.values() if has_opened else (node,))
        # A direct wish may be fulfilled by this report: its blobs can go.
        self._blobs_wanted.set()

    def claims(self, node: str, model: str) -> int | None:
        """The rollout that has offered the node a release of this model and waits for it."""
        for opened in self._open.values():
            member = opened.roster.members.get(node)
            if (
                opened.release.name == model
                and member is not None
                and member.standing is Standing.OFFERED
            ):
                return opened.id
        return None

    @asynccontextmanager
    async def unclaimed(self, node: str, model: str) -> AsyncIterator[None]:
        """No rollout offers anything while the block lasts, and none waits for this node.

        Raises:
            ConflictError: one does.
        """
        async with self._turn:
            if (rollout := self.claims(node, model)) is not None:
                raise ConflictError(f"rollout {rollout} waits for {node}: stop it first")
            yield

    async def expecting(self) -> set[tuple[str, bytes]]:
        """(node, release) for members that are still to get the release of an open rollout."""
        return {
            (node, opened.release.id)
            for opened in self._open.values()
            if opened.state.status is not Status.PREPARING
            for node, member in opened.roster.members.items()
            if member.standing in {Standing.WAITING, Standing.OFFERED}
        }

    async def run(self) -> NoReturn:
        """For ever: time passes, nodes join, leases are claimed."""
        while True:
            await self.tick()
            await asyncio.sleep(TICK_S)

    async def tick(self) -> None:
        """What is due by the clock and by who is there now."""
        passed_ms = self._time.uncounted_ms(
            now_ms(), time.monotonic(), listening=self._is_listening()
        )
        if passed_ms:
            async with self._turn:
                for opened in self._open.values():
                    opened.state = uncounted(opened.state, passed_ms)
        for opened in list(self._open.values()):
            await self._tick(opened)

    async def prepare(self) -> NoReturn:
        """For ever: build the deltas of rollouts that wait for them.

        Raises:
            StateError: at least one could not be prepared; the next call tries again.
        """
        while True:
            await self._to_prepare.wait()
            self._to_prepare.clear()
            failure: StateError | None = None
            for opened in list(self._open.values()):
                if opened.state.status is Status.PREPARING:
                    try:
                        await self._prepare(opened)
                    except StateError as exc:
                        failure = exc
            if failure is not None:
                self._to_prepare.set()
                raise failure

    # --- the engine's turn

    async def _tick(self, opened: _Open) -> None:
        nodes = self._registry.nodes
        joined = tuple(
            name
            for name, node in nodes.items()
            if name not in opened.roster.members and belongs(node.labels, opened.group)
        )
        if joined:
            await self._feed(opened, Joined(tuple((name, nodes[name].kind) for name in joined)))
            # All of them before anybody is offered it: some may have failed it already.
            for name in joined:
                await self._notice(opened, nodes[name])
        await self._feed(opened, Tick())
        await self._offer(opened, nodes.values())

    async def _notice(self, opened: _Open, node: Node) -> None:
        state = node.model(opened.release.name)
        if state is not None:
            if state.release == opened.release.id and state.phase is Phase.SERVING:
                await self._feed(opened, Serves(node.name))
            elif state.target == opened.release.id and state.phase is Phase.FAILED:
                await self._feed(opened, Fails(node.name, state.reason or "no reason given"))

    async def _offer(self, opened: _Open, nodes: Iterable[Node]) -> None:
        """Leases to those of these nodes that are ready."""
        if not opened.has_room:
            return
        ready = frozenset(
            node.name
            for node in nodes
            # Labels may have changed since it became a member.
            if node.online and belongs(node.labels, opened.group)
        )
        if ready:
            await self._feed(opened, Ready(ready))

    async def _feed(self, opened: _Open, event: Event) -> None:
        async with self._turn:
            outcome = step(opened.state, opened.roster, event, now_ms())
            if outcome.is_empty:
                return
            changes_wanted = False
            async with self._database.write() as session:
                await save(session, opened.id, outcome, opened.roster, at_ms=now_ms())
                for action in outcome.actions:
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
            opened.state = outcome.rollout
            opened.roster.put(outcome.changes)
            if not opened.state.status.is_open:
                self._open.pop(opened.id, None)
        for action in outcome.actions:
            if isinstance(action, Note):
                log.info("rollout", rollout=opened.id, decision=action.text)
        if changes_wanted:
            self._wanted.changed()
        self._blobs_wanted.set()

    async def _prepare(self, opened: _Open) -> None:
        item = opened.release
        # Those of the newest releases, too: who joins later is likely to have one.
        boards = Counter(dict.fromkeys(await self._releases.bases(item.name, limit=OTHER_BASES), 0))
        members = [self._registry.nodes[name] for name in opened.roster.members]
        boards.update(model_files(members, item.name))
        boards.pop(NO_MODEL, None)
        await self._deltas.ensure(boards, item.model_file)
        # Those who serve it already, or failed it, are known before anybody is offered it.
        for name in list(opened.roster.members):
            await self._notice(opened, self._registry.nodes[name])
        await self._feed(opened, Prepared())
        await self._offer(opened, self._registry.nodes.values())

    async def _opened(self, rollout_id: int) -> _Open:
        if rollout_id not in self._open:
            async with self._database.read() as session:
                row = await session.get(RolloutRow, rollout_id)
            if row is None:
                raise NotFoundError(f"there is no rollout {rollout_id}")
            raise ConflictError(f"rollout {rollout_id} has ended: it is {row.status}")
        return self._open[rollout_id]

    async def _failed_before(self, release: bytes) -> dict[str, Member]:
        """Nodes that failed this very release in an earlier rollout: they are not offered it again."""
        async with self._database.read() as session:
            rows = await session.scalars(
                select(RolloutMemberRow)
                .join(RolloutRow)
                .where(
                    RolloutRow.release == release,
                    RolloutMemberRow.standing == Standing.FAILED.value,
                )
                .order_by(RolloutRow.id)
            )
            return {
                row.node: Member(
                    Standing.EXCLUDED,
                    reason=f"failed in rollout {row.rollout}: {row.reason}",
                    seen=True,
                    kind=row.kind,
                )
                for row in rows
            }
