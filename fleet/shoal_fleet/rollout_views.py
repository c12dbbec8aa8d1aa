"""Rollouts as the API shows them, read from the table. It changes nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_contract.messages import DeltaOffer
from shoal_fleet.answer_times import answer_s
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.deltas import Deltas
from shoal_fleet.errors import NotFoundError
from shoal_fleet.model_files import NO_MODEL, model_files
from shoal_fleet.registry import Registry
from shoal_fleet.releases import Release, Releases
from shoal_fleet.rollout_gate import coming_waves
from shoal_fleet.rollout_rows import state_of
from shoal_fleet.rollout_state import Rollout, Standing, Status
from shoal_fleet.rollouts import Rollouts
from shoal_fleet.tables import DecisionRow, RolloutMemberRow, RolloutRow

MAX_LISTED: Final = 200


class RolloutViews:
    """What there is to see of rollouts, open and ended."""

    def __init__(
        self,
        database: Database,
        *,
        registry: Registry,
        releases: Releases,
        deltas: Deltas,
        rollouts: Rollouts,
    ) -> None:
        self._rollouts = rollouts
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
            wave_s = await answer_s(session, rollout_id)
        release = await self._releases.get(row.release)
        full = await self._releases.blob(release.model_file)
        state, standing = state_of(row), counts[rollout_id].standing
        offered = standing[Standing.OFFERED.value]
        in_wave = [member for member in members if state.wave and member.wave == state.wave]
        free = max(0, state.wave_size - len(in_wave))
        is_open = state.status.is_open
        waves = _coming(state, counts[rollout_id], len(members), free) if is_open else []
        # The leases that are out are a wave that is under way.
        left = len(waves) + (1 if offered and not free else 0)
        offers = await self._deltas.offers(release.model_file)
        return {
            **await self._summary(row, counts[rollout_id]),
            "options": msgspec.to_builtins(state.options),
            "waits": await self._rollouts.waiting(rollout_id),
            "gate": self._rollouts.gate(rollout_id),
            "waves": waves,
            "claimed": len(in_wave),
            "answered": sum(
                member.standing in {Standing.SERVING.value, Standing.FAILED.value}
                for member in in_wave
            ),
            "wave_s": wave_s,
            "eta_s": None if wave_s is None or not is_open else round(left * wave_s, 1),
            "bases": await self._bases(members, release, offers),
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
            "decisions": [
                {
                    "at_ms": entry.at_ms,
                    "deed": entry.deed,
                    "text": entry.text,
                    "figures": entry.figures,
                    "by": entry.by,
                }
                for entry in decisions
            ],
            "full_bytes": full.size_bytes,
            "deltas": [
                {"base": offer.base.hex(), "size_bytes": offer.blob.size_bytes} for offer in offers
            ],
        }

    async def _bases(
        self,
        members: Sequence[RolloutMemberRow],
        release: Release,
        offers: Sequence[DeltaOffer],
    ) -> list[dict[str, Any]]:
        """The model files of nodes that wait: how many nodes have each, and whether its delta is there."""
        known = self._registry.nodes
        waiting = [
            known[member.node]
            for member in members
            if member.standing == Standing.WAITING.value and member.node in known
        ]
        boards = model_files(waiting, release.name)
        made = {offer.base: offer.blob.size_bytes for offer in offers}
        rows = []
        for base, nodes in boards.most_common():
            if base in {NO_MODEL, release.model_file}:
                continue
            settled = base in made or await self._deltas.is_settled(base, release.model_file)
            rows.append(
                {
                    "base": base.hex(),
                    "nodes": nodes,
                    "is_settled": settled,
                    "delta_bytes": made.get(base),
                }
            )
        return rows

    async def _summary(self, row: RolloutRow, counts: "_Standings") -> dict[str, Any]:
        state = state_of(row)
        release = await self._releases.get(row.release)
        return {
            "id": row.id,
            "release": release.id.hex(),
            "title": release.title,
            "group": row.group,
            "where": row.expression,
            "by": state.by,
            "approved_by": state.approved_by,
            "priority": state.options.priority,
            "frozen": state.is_frozen_at(now_ms()),
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


def _coming(state: Rollout, counts: "_Standings", nodes: int, free: int) -> list[int]:
    """How many nodes the waves from now on start, when nothing more fails."""
    return coming_waves(
        state.options,
        nodes,
        waiting=counts.standing[Standing.WAITING.value],
        wave_size=state.wave_size,
        free=free,
        started=counts.started,
        failures=counts.standing[Standing.FAILED.value],
    )


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
