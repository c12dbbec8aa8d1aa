"""New scales, old scales, or a dead band: which of the passing models makes the smallest update. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal_fleet.release_build.guard import Judgement, is_worse


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to lay the new weights on levels.

    Attributes:
        name: "fresh scales", "old scales", "old scales, tau 0.25".
        tau: the dead band; 0 for none.
        delta_bytes: what the update from the old release costs.
        judgement: of its answers.
        kept_scales, scales: how many scales of weights are the old ones, of how many that could be.
    """

    name: str
    tau: float
    delta_bytes: int
    judgement: Judgement
    kept_scales: int = 0
    scales: int = 0


def verdict(candidate: Candidate, fresh: Candidate) -> str:
    """Why it may not be chosen; "" when it may.

    It has to pass the guard, and it must not be right less often than the one on fresh scales by more than
    noise.
    """
    if not candidate.judgement.passes:
        return "; ".join(candidate.judgement.failures)
    if candidate is not fresh and is_worse(fresh.judgement.right, candidate.judgement.right):
        return "right less often than on fresh scales, by more than noise"
    return ""


def chosen(candidates: Sequence[Candidate]) -> Candidate:
    """The smallest update among those that may be chosen; the first one is on fresh scales.

    Ties go to the smaller dead band.
    """
    fresh = candidates[0]
    allowed = [each for each in candidates if not verdict(each, fresh)]
    return min(allowed or [fresh], key=lambda each: (each.delta_bytes, each.tau))
