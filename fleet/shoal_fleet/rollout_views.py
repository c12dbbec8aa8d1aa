"""Rollouts as the API shows them, read from the table. It changes nothing."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_fleet.database import Database
from shoal_fleet.deltas import Deltas
from shoal_fleet.errors import NotFoundError
from shoal_fleet.registry import Registry
from shoal_fleet.releases import Release, Releases
from shoal_fleet.rollout_rows import state_of
from shoal_fleet.rollout_state import Standing, Status
from shoal_fleet.tables import DecisionRow, RolloutMemberRow, RolloutRow

MAX_LISTED: Final = 200


class RolloutViews:
    """What there is to see of rollouts, open and ended."""

    def __init__(
        self, database: Database, *, registry: Registry, releases: Releases, deltas: Deltas
    ) -> None:
        self._database = database
        self._registry = registry
        self._releases = releases
        self._deltas = deltas

    async def list_all(self) -> list[dict[str, Any]]:
        """Every rollout, newest first, without its members."""
        async with self._database.read() as session:
            rows = (
                await session.scalars(
                    select(RolloutRow).order_by(RolloutRow.id.desc()).limit(MAX_LISTED)
                )
            ).all()
            counts = await _standings(session, [row.id for row in rows])
        return [await self._summary(row, counts[row.id]) for row in rows]

    async def counts(self) -> dict[str, int]:
        """How many rollouts have each status."""
        async with self._database.read() as session:
            rows = await session.execute(
                select(RolloutRow.status, func.count()).group_by(RolloutRow.status)
            )
            found = {status: count for status, count in rows}  # noqa: C416 - rows are no pairs to mypy
        return {status.value: found.get(status.value, 0) for status in Status}

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
            members = (
                await session.scalars(
                    select(RolloutMemberRow)
                    .where(RolloutMemberRow.rollout == rollout_id)
                    .order_by(RolloutMemberRow.place)
                )
            ).all()
            counts = await _standings(session, [rollout_id])
        release = await self._releases.get(row.release)
        full = await self._releases.blob(release.model_file)
        return {
            **await self._summary(row, counts[rollout_id]),
            "nodes": [
                {
                    "node": member.node,
                    "standing": member.standing,
                    "wave": member.wave,
                    "offered_ms": member.offered_ms,
                    "resolved_ms": member.resolved_ms,
                    "reason": member.reason,
                    "phase": self._phase(member.node, release),
                }
                for member in members
            ],
            "decisions": [{"at_ms": entry.at_ms, "text": entry.text} for entry in decisions],
            "full_bytes": full.size_bytes,
            "deltas": [
                {"base": offer.base.hex(), "size_bytes": offer.blob.size_bytes}
                for offer in await self._deltas.offers(release.model_file)
            ],
        }

    async def _summary(self, row: RolloutRow, counts: "_Standings") -> dict[str, Any]:
        state = state_of(row)
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
            "started": counts.started,
            "counts": {standing.value: counts.standing[standing.value] for standing in Standing},
            "created_ms": row.created_ms,
            "updated_ms": row.updated_ms,
        }

    def _phase(self, node: str, release: Release) -> str | None:
        known = self._registry.nodes.get(node)
        state = None if known is None else known.model(release.name)
        if state is None or state.target != release.id:
            return None
        return state.phase.name.lower()


@dataclass(slots=True)
class _Standings:
    """How many nodes of a rollout stand where, and how many ever got a lease."""

    standing: Counter[str] = field(default_factory=Counter)
    started: int = 0


async def _standings(session: AsyncSession, rollouts: list[int]) -> Mapping[int, _Standings]:
    found = {rollout: _Standings() for rollout in rollouts}
    rows = await session.execute(
        select(
            RolloutMemberRow.rollout,
            RolloutMemberRow.standing,
            func.count(),
            func.count(RolloutMemberRow.offered_ms),
        )
        .where(RolloutMemberRow.rollout.in_(rollouts))
        .group_by(RolloutMemberRow.rollout, RolloutMemberRow.standing)
    )
    for rollout, standing, nodes, started in rows:
        found[rollout].standing[standing] = nodes
        found[rollout].started += started
    return found
