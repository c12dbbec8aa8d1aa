"""A rollout's members as rows of the database, and back."""

from typing import Any

import msgspec
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_fleet.clock import now_ms
from shoal_fleet.rollout_roster import Roster
from shoal_fleet.rollout_state import Member, Note, Rollout, Standing
from shoal_fleet.rollout_turn import Outcome
from shoal_fleet.tables import DecisionRow, RolloutMemberRow, RolloutRow


def state_of(row: RolloutRow) -> Rollout:
    """The engine's state in a row."""
    return msgspec.json.decode(row.state, type=Rollout)


def member_of(row: RolloutMemberRow) -> Member:
    """Where the node of this row stands."""
    return Member(
        standing=Standing(row.standing),
        wave=row.wave,
        offered_ms=row.offered_ms,
        resolved_ms=row.resolved_ms,
        reason=row.reason,
        seen=row.seen,
        unheard_ms=row.unheard_ms,
        kind=row.kind,
    )


async def load_roster(session: AsyncSession, rollout_id: int) -> Roster:
    """Everybody in the rollout."""
    rows = await session.scalars(
        select(RolloutMemberRow)
        .where(RolloutMemberRow.rollout == rollout_id)
        .order_by(RolloutMemberRow.place)
    )
    return Roster((row.node, member_of(row)) for row in rows)


async def add_members(session: AsyncSession, rollout_id: int, roster: Roster) -> None:
    """Write everybody of a rollout that begins."""
    rows = [
        _columns(rollout_id, node, member) | {"place": place}
        for place, (node, member) in enumerate(roster.members.items())
    ]
    await session.execute(insert(RolloutMemberRow), rows)


def add_decision(session: AsyncSession, rollout_id: int, note: Note) -> None:
    """Write a decision down."""
    session.add(
        DecisionRow(
            rollout=rollout_id,
            at_ms=now_ms(),
            deed=note.deed.value,
            text=note.text,
            figures=dict(note.figures),
            by=note.by,
        )
    )


async def save(
    session: AsyncSession, rollout_id: int, outcome: Outcome, roster: Roster, *, at_ms: int
) -> None:
    """Write what a step has changed. The roster is as it was before."""
    after = outcome.rollout
    await session.execute(
        update(RolloutRow)
        .where(RolloutRow.id == rollout_id)
        .values(status=after.status.value, state=msgspec.json.encode(after), updated_ms=at_ms)
    )
    old = [item for item in outcome.changes.items() if item[0] in roster.members]
    new = [item for item in outcome.changes.items() if item[0] not in roster.members]
    if old:
        await session.execute(
            update(RolloutMemberRow), [_columns(rollout_id, node, member) for node, member in old]
        )
    if new:
        first = len(roster.members)
        rows = [
            _columns(rollout_id, node, member) | {"place": place}
            for place, (node, member) in enumerate(new, first)
        ]
        await session.execute(insert(RolloutMemberRow), rows)


def _columns(rollout_id: int, node: str, member: Member) -> dict[str, Any]:
    return {"rollout": rollout_id, "node": node, **msgspec.structs.asdict(member)}
