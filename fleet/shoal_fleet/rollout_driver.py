"""Drives the rollout engine: feeds it with what nodes report and what time it is, keeps its state, does what it says.

Deciding is `rollout` (pure), who is ready says `admission` (pure). A decision, its reason, and the wanted states
that it changes are one transaction, and only then is anything sent: a restart at any moment continues.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final, NoReturn

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_contract.messages import Phase
from shoal_fleet.admission import Admission
from shoal_fleet.audience import Audience
from shoal_fleet.clock import ListeningTime, now_ms
from shoal_fleet.database import Database
from shoal_fleet.deltas import Deltas
from shoal_fleet.errors import ConflictError, StateError
from shoal_fleet.freezes import Freezes
from shoal_fleet.model_files import NO_MODEL, model_files
from shoal_fleet.registry import Node, Registry
from shoal_fleet.release_needs import ReleaseNeeds
from shoal_fleet.releases import Releases
from shoal_fleet.rollout import step, uncounted
from shoal_fleet.rollout_gate import gate
from shoal_fleet.rollout_open import OpenRollout
from shoal_fleet.rollout_rows import add_decision, load_roster, save, state_of
from shoal_fleet.rollout_state import (
    Action,
    Deed,
    Event,
    Fails,
    Frozen,
    Joined,
    Note,
    Offer,
    Prepare,
    Prepared,
    Ready,
    Recall,
    Serves,
    Standing,
    Status,
    Tick,
)
from shoal_fleet.signed_list import SignedList
from shoal_fleet.tables import RolloutRow
from shoal_fleet.wanted import WantedStates

log = structlog.get_logger(__name__)

TICK_S: Final = 1.0
RETRY_S: Final = 2.0
OTHER_BASES: Final = 4


class RolloutDriver:
    """Drives the engine of every open rollout.

    Attributes:
        open: the rollouts that are not at their end, by id.
        turn: held while one of them takes an event, or is begun.
        to_prepare: set when deltas are to be built.
    """

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
        needs: ReleaseNeeds,
        freezes: Freezes,
        listed: Callable[[], Awaitable[SignedList | None]],
    ) -> None:
        self._needs = needs
        self._listed = listed
        self._freezes = freezes
        self._database = database
        self._registry = registry
        self._releases = releases
        self._deltas = deltas
        self._wanted = wanted
        self._blobs_wanted = blobs_wanted
        self._is_listening = is_listening
        self._time = ListeningTime(now_ms(), time.monotonic())
        self.open: dict[int, OpenRollout] = {}
        self.turn = asyncio.Lock()
        self.to_prepare = asyncio.Event()
        self.to_prepare.set()

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
            release = await self._releases.get(row.release)
            # Nobody listened while no controller ran. When it ended is not known: its last word was this row.
            state = uncounted(state_of(row), now_ms() - row.updated_ms)
            self.open[row.id] = OpenRollout(
                row.id,
                release,
                Audience.parse(group=row.group, where=row.expression),
                state,
                rosters[row.id],
                await self._needs.of(release),
            )

    async def waiting(self, rollout_id: int) -> dict[str, int]:
        """What the waiting nodes of an open rollout wait for, and how many of them for each."""
        opened = self.open.get(rollout_id)
        if opened is None:
            return {}
        admission = Admission(opened, self.open.values(), now_ms(), await self._listed())
        known = self._registry.nodes
        nodes = [known[name] for name in opened.roster.members if name in known]
        return dict(admission.waiting(nodes).most_common())

    def gate(self, rollout_id: int) -> str:
        """What stands between the open wave and the next one, in words; empty: nothing, or it has ended."""
        opened = self.open.get(rollout_id)
        if opened is None or not opened.state.wave or opened.state.status is Status.PREPARING:
            return ""
        return gate(opened.roster.counts, opened.state.wave, opened.state.wave_size).why

    async def observe(self, name: str) -> None:
        """The node's presence or report has changed."""
        node = self._registry.nodes[name]
        for opened in self.ranked():
            if name in opened.roster.members:
                await self._notice(opened, node)
        # What it says of one model may be what the release of another requires.
        for opened in self.ranked():
            if name in opened.roster.members:
                await self._offer(opened, (node,))
        # A direct wish may be fulfilled by this report: its blobs can go.
        self._blobs_wanted.set()

    def claims(self, node: str, model: str) -> int | None:
        """The rollout that has offered the node a release of this model and waits for it."""
        for opened in self.open.values():
            if opened.release.name == model and opened.offers(node):
                return opened.id
        return None

    @asynccontextmanager
    async def unclaimed(self, node: str, model: str) -> AsyncIterator[None]:
        """No rollout offers anything while the block lasts, and none waits for this node.

        Raises:
            ConflictError: one does.
        """
        async with self.turn:
            if (rollout := self.claims(node, model)) is not None:
                raise ConflictError(f"rollout {rollout} waits for {node}: stop it first")
            yield

    async def expecting(self) -> set[tuple[str, bytes]]:
        """(node, release) for members that are still to get the release of an open rollout."""
        return {
            (node, opened.release.id)
            for opened in self.open.values()
            if opened.state.wave
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
            async with self.turn:
                for opened in self.open.values():
                    opened.state = uncounted(opened.state, passed_ms)
        for opened in self.ranked():
            await self._tick(opened)

    async def prepare(self) -> NoReturn:
        """For ever: build the deltas that rollouts wait for before their next wave."""
        under_way: set[int] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self.to_prepare.wait()
                self.to_prepare.clear()
                for opened in self.ranked():
                    if opened.state.status is Status.PREPARING and opened.id not in under_way:
                        under_way.add(opened.id)
                        name = f"rollouts.prepare.{opened.id}"
                        tasks.create_task(self._prepare_alone(opened, under_way), name=name)

    async def _tick(self, opened: OpenRollout) -> None:
        nodes = self._registry.nodes
        joined = tuple(name for name, node in nodes.items() if opened.joins(node))
        if joined:
            await self.feed(opened, Joined(tuple((name, nodes[name].kind) for name in joined)))
            # All of them before anybody is offered it: some may have failed it already.
            for name in joined:
                await self._notice(opened, nodes[name])
        await self.feed(opened, Tick())
        await self._offer(opened, nodes.values())

    async def _notice(self, opened: OpenRollout, node: Node) -> None:
        state = node.model(opened.release.name)
        if state is not None:
            if state.release == opened.release.id and state.phase is Phase.SERVING:
                await self.feed(opened, Serves(node.name))
            elif state.target == opened.release.id and state.phase is Phase.FAILED:
                await self.feed(opened, Fails(node.name, state.reason or "no reason given"))

    async def _offer(self, opened: OpenRollout, nodes: Iterable[Node]) -> None:
        """Leases to those of these nodes that are ready."""
        async with self.turn:
            now = now_ms()
            if not opened.has_room_at(now):
                return
            admission = Admission(opened, self.open.values(), now, await self._listed())
            if ready := admission.ready(nodes):
                await self.step(opened, Ready(ready))

    async def feed(self, opened: OpenRollout, event: Event) -> None:
        """One event, when it is this one's turn."""
        async with self.turn:
            await self.step(opened, event)

    async def tell_all(self) -> None:
        """Something that concerns every rollout has changed."""
        for opened in self.ranked():
            await self.feed(opened, Tick())

    async def step(self, opened: OpenRollout, event: Event) -> None:
        """One event, in turn; before it what the rollout was not told of the fleet's freeze."""
        now = now_ms()
        freeze, told = self._freezes.at(now), opened.state.freeze
        if freeze != told and (freeze is not None or told is None or told.holds_at(now)):
            await self._take(opened, Frozen(freeze), now)
        await self._take(opened, event, now)

    async def _take(self, opened: OpenRollout, event: Event, now: int) -> None:
        outcome = step(opened.state, opened.roster, event, now)
        # A wave whose deltas are built and that may not open yet changes the status and nothing else.
        if outcome.is_empty and outcome.rollout == opened.state:
            return
        async with self._database.write() as session:
            await save(session, opened.id, outcome, opened.roster, at_ms=now_ms())
            for action in outcome.actions:
                await self._do(session, opened, action)
        opened.state = outcome.rollout
        opened.roster.put(outcome.changes)
        if not opened.state.status.is_open:
            self.open.pop(opened.id, None)
        for action in outcome.actions:
            if isinstance(action, Note):
                log.info("rollout", rollout=opened.id, decision=action.text)
        if any(isinstance(action, Offer | Recall) for action in outcome.actions):
            self._wanted.changed()
        if any(isinstance(action, Prepare) for action in outcome.actions):
            self.to_prepare.set()
        self._blobs_wanted.set()

    async def _do(self, session: AsyncSession, opened: OpenRollout, action: Action) -> None:
        model, release = opened.release.name, opened.release.id
        match action:
            case Note():
                add_decision(session, opened.id, action)
            case Offer(node):
                await self._wanted.want(session, node, model, release, rollout=opened.id)
            case Recall(node):
                await self._wanted.recall(session, node, model, release)
            case Prepare():
                # Whoever does it looks at the state, which is not there yet.
                pass

    async def _prepare_alone(self, opened: OpenRollout, under_way: set[int]) -> None:
        """One that waits for a long delta, or whose files cannot be read, is not in the others' way."""
        try:
            await self._prepare(opened)
        except StateError as exc:
            log.error("rollout waits", rollout=opened.id, reason=str(exc))  # noqa: TRY400 - the message says it all
            await asyncio.sleep(RETRY_S)
        finally:
            under_way.discard(opened.id)
            if opened.state.status is Status.PREPARING:
                self.to_prepare.set()

    async def _prepare(self, opened: OpenRollout) -> None:
        item, nodes = opened.release, self._registry.nodes
        # Those of the newest releases, too: who joins later is likely to have one.
        boards = Counter(dict.fromkeys(await self._releases.bases(item.name, limit=OTHER_BASES), 0))
        members = [nodes[name] for name in opened.roster.members if name in nodes]
        boards.update(model_files((node for node in members if opened.waits(node.name)), item.name))
        boards.pop(NO_MODEL, None)
        await self._deltas.ensure(boards, item.model_file)
        # Those who serve it already, or failed it, are known before anybody is offered it.
        for node in members:
            await self._notice(opened, node)
        if opened.state.status is not Status.PREPARING:
            return
        bases = [base for base, count in boards.items() if count and base != item.model_file]
        if bases:
            made = {offer.base for offer in await self._deltas.offers(item.model_file)}
            deltas = sum(base in made for base in bases)
            text = (
                f"waiting nodes have {len(bases)} other model files: a delta from {deltas} of them"
            )
            async with self.turn, self._database.write() as session:
                figures = {"bases": len(bases), "deltas": deltas, "wave": opened.state.wave + 1}
                add_decision(session, opened.id, Note(text, Deed.PREPARED, figures))
        await self.feed(opened, Prepared())
        await self._offer(opened, nodes.values())

    def ranked(self) -> list[OpenRollout]:
        """Those that go first come first."""
        return sorted(self.open.values(), key=lambda opened: opened.rank)
