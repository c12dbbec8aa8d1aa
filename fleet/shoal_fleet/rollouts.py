"""The rollouts that there are, and what persons ask of them: start, pause, resume, approve, stop, freeze.

What follows from it is `rollout_driver`'s business; what there is to see of rollouts is in `rollout_views`.
"""

import structlog

from shoal_fleet.audience import Audience
from shoal_fleet.errors import ConflictError, NotFoundError
from shoal_fleet.releases import Release
from shoal_fleet.rollout_begin import begin
from shoal_fleet.rollout_driver import RolloutDriver
from shoal_fleet.rollout_open import OpenRollout
from shoal_fleet.rollout_rows import load_roster, state_of
from shoal_fleet.rollout_state import (
    Approve,
    Freeze,
    Options,
    Pause,
    Resume,
    Status,
    Stop,
)
from shoal_fleet.tables import RolloutRow
from shoal_fleet.windows import parse_window, zone_of

log = structlog.get_logger(__name__)


class Rollouts(RolloutDriver):
    """All rollouts. Call `load` once before anything else."""

    async def start(
        self, release: Release, audience: Audience, options: Options, *, by: str = ""
    ) -> int:
        """Begin a rollout to the nodes that are meant; its id. To a group's nodes that join it later, too.

        Raises:
            RequestError: nobody is meant, or the window or time zone is none.
            ConflictError: another rollout of this model is open, or the release waits for one that waits for it.
        """
        if options.window:
            parse_window(options.window)
            zone_of(options.tz)
        requires = await self._needs.check(release)
        nodes = audience.among(self._registry.nodes.values())
        async with self.turn:
            self._check_alone(release)
            opened = await begin(self._database, release, audience, nodes, options, requires, by=by)
            self.open[opened.id] = opened
        log.info("rollout started", rollout=opened.id, release=release.title, nodes=len(nodes))
        self.to_prepare.set()
        return opened.id

    async def pause(self, rollout_id: int, reason: str, *, by: str = "") -> None:
        """Offer it to nobody for now.

        Raises:
            NotFoundError: no such rollout.
            ConflictError: it has ended, or is paused.
        """
        opened = await self._opened(rollout_id)
        if opened.state.status is Status.PAUSED:
            raise ConflictError(f"rollout {rollout_id} is paused already")
        await self.feed(opened, Pause(reason, by))

    async def resume(self, rollout_id: int, *, by: str = "") -> None:
        """Go on after a hold or a pause.

        Raises:
            NotFoundError: no such rollout.
            ConflictError: it is neither.
        """
        opened = await self._opened(rollout_id)
        if opened.state.status not in {Status.HELD, Status.PAUSED}:
            raise ConflictError(f"rollout {rollout_id} is {opened.state.status}, not held")
        await self.feed(opened, Resume(by))

    async def approve(self, rollout_id: int, *, by: str) -> None:
        """A second person agrees.

        Raises:
            NotFoundError: no such rollout.
            ConflictError: it has ended, needs no approval, has it, or the person is the one who started it.
        """
        opened = await self._opened(rollout_id)
        state = opened.state
        if not state.options.approval:
            raise ConflictError(f"rollout {rollout_id} needs no approval")
        if state.approved_by:
            raise ConflictError(f"rollout {rollout_id} was approved by {state.approved_by}")
        if not by:
            raise ConflictError("an approval says whose it is (SHOAL_OPERATOR)")
        if by == state.by:
            raise ConflictError(f"{by} started rollout {rollout_id}: a second person approves it")
        await self.feed(opened, Approve(by))

    async def stop(self, rollout_id: int, *, back: bool, by: str = "") -> None:
        """End it: nodes that are not through go back to what they had; with `back` the others, too.

        Raises:
            NotFoundError: no such rollout.
            ConflictError: it has ended.
        """
        opened = await self._opened(rollout_id)
        await self.feed(opened, Stop(_by_whom(by), back=back, by=by))

    async def back(self, rollout_id: int, *, by: str = "") -> None:
        """Every node that serves it goes back to what it had, of a rollout that has ended, too.

        Raises:
            NotFoundError: no such rollout.
            ConflictError: another rollout of this model is open.
        """
        if rollout_id in self.open:
            await self.stop(rollout_id, back=True, by=by)
            return
        async with self._database.read() as session:
            row = await session.get(RolloutRow, rollout_id)
            if row is None:
                raise NotFoundError(f"there is no rollout {rollout_id}")
            roster = await load_roster(session, rollout_id)
        release = await self._releases.get(row.release)
        audience = Audience.parse(group=row.group, where=row.expression)
        ended = OpenRollout(rollout_id, release, audience, state_of(row), roster)
        async with self.turn:
            self._check_alone(release)
            await self.step(ended, Stop(_by_whom(by), back=True, by=by))

    async def freeze(self, freeze: Freeze) -> None:
        """No rollout opens a wave or gives a lease, but those that override it.

        Raises:
            ConflictError: the fleet is frozen, or the freeze would be over at once.
        """
        async with self.turn:
            await self._freezes.begin(freeze)
        await self.tell_all()

    async def thaw(self, *, by: str = "") -> None:
        """Rollouts go on.

        Raises:
            ConflictError: the fleet is not frozen.
        """
        async with self.turn:
            await self._freezes.end(by=by)
        await self.tell_all()

    async def _opened(self, rollout_id: int) -> OpenRollout:
        if rollout_id not in self.open:
            async with self._database.read() as session:
                row = await session.get(RolloutRow, rollout_id)
            if row is None:
                raise NotFoundError(f"there is no rollout {rollout_id}")
            raise ConflictError(f"rollout {rollout_id} has ended: it is {row.status}")
        return self.open[rollout_id]

    def _check_alone(self, release: Release) -> None:
        for other in self.open.values():
            if other.release.name == release.name:
                raise ConflictError(
                    f"rollout {other.id} of {other.release.title} is open: stop it first"
                )


def _by_whom(by: str) -> str:
    return f"by {by}" if by else "by an operator"
