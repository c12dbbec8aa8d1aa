"""The first lines of a rollout in the database: who is in it, in which order, and who is left out."""

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_contract.requirements import Requirement
from shoal_fleet.audience import Audience
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.registry import Node
from shoal_fleet.releases import Release
from shoal_fleet.rollout_open import OpenRollout
from shoal_fleet.rollout_roster import Roster
from shoal_fleet.rollout_rows import add_decision, add_members
from shoal_fleet.rollout_state import Deed, Member, Note, Options, Rollout, Standing
from shoal_fleet.selection import stratify
from shoal_fleet.tables import RolloutMemberRow, RolloutRow


async def begin(
    database: Database,
    release: Release,
    audience: Audience,
    nodes: list[Node],
    options: Options,
    requires: tuple[Requirement, ...],
    *,
    by: str,
) -> OpenRollout:
    """A new rollout of the release to these nodes, whose deltas are still to be built.

    Raises:
        StateError: the disk does not take it.
    """
    order = stratify(
        ((node.name, node.strata) for node in nodes), seed=f"{release.id.hex()} {now_ms()}"
    )
    kinds = {node.name: node.kind for node in nodes}
    state = Rollout(options=options, by=by)
    row = RolloutRow(
        release=release.id,
        group=audience.group,
        expression=audience.where,
        status=state.status.value,
        state=msgspec.json.encode(state),
        created_ms=now_ms(),
        updated_ms=now_ms(),
    )
    async with database.write() as session:
        failed = await _failed_before(session, release.id)
        roster = Roster((name, failed.get(name, Member(kind=kinds[name]))) for name in order)
        session.add(row)
        await session.flush()
        await add_members(session, row.id, roster)
        note = Note(
            _in_words(release, len(order), audience, options, requires),
            Deed.STARTED,
            {"nodes": len(order), "excluded": roster.counts.at(Standing.EXCLUDED)},
            by,
        )
        add_decision(session, row.id, note)
    return OpenRollout(row.id, release, audience, state, roster, requires)


def _in_words(
    release: Release,
    nodes: int,
    audience: Audience,
    options: Options,
    requires: tuple[Requirement, ...],
) -> str:
    parts = [f"started: {release.title} to {nodes} nodes"]
    if audience.where:
        parts.append(f"where {audience.where}")
    if options.window:
        parts.append(f"window {options.window}")
    if requires:
        parts.append("needs " + " and ".join(map(str, requires)))
    if options.approval:
        parts.append(f"approval before {options.approval}")
    if options.overrides_freeze:
        parts.append("overrides a freeze")
    return ", ".join(parts)


async def _failed_before(session: AsyncSession, release: bytes) -> dict[str, Member]:
    """Nodes that failed this very release in an earlier rollout: they are not offered it again."""
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
