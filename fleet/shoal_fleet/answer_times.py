"""How long nodes took from being offered a release to serving it, as far as rollouts have seen. It changes nothing."""

import math
from collections.abc import Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_fleet.rollout_state import Standing
from shoal_fleet.tables import RolloutMemberRow

SAMPLES: Final = 1000
SHARE: Final = 0.9
"""A wave is through when so many have answered."""


async def answer_s(session: AsyncSession, rollout: int | None = None) -> float | None:
    """Seconds within which nine tenths of the nodes served it: in this rollout, else in the newest ones.

    None: no rollout has seen any.
    """
    for wanted in ([rollout] if rollout is not None else []) + [None]:
        query = select(RolloutMemberRow.offered_ms, RolloutMemberRow.resolved_ms).where(
            RolloutMemberRow.standing == Standing.SERVING.value,
            RolloutMemberRow.offered_ms.is_not(None),
            RolloutMemberRow.resolved_ms.is_not(None),
        )
        if wanted is not None:
            query = query.where(RolloutMemberRow.rollout == wanted)
        rows = await session.execute(query.order_by(RolloutMemberRow.rollout.desc()).limit(SAMPLES))
        found = [
            (resolved - offered) / 1000
            for offered, resolved in rows
            if offered is not None and resolved is not None
        ]
        if found:
            return nearest_rank(found, SHARE)
    return None


def nearest_rank(values: Sequence[float], share: float) -> float:
    """The smallest of the values that this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
