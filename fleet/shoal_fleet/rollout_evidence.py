"""What the failures so far say against a release, in the fleet and in its classes of hardware. Pure."""

from typing import Final

from shoal_fleet.chances import evidence
from shoal_fleet.rollout_gate import TOLERATED_SHARE
from shoal_fleet.rollout_roster import Counts

HOLD_AT: Final = 50.0
"""Of rollouts of a good release, at most one in so many is ever held."""
STOP_AT: Final = 200.0
FEW: Final = 10
"""While fewer nodes have started, figures say nothing: any failure is a person's business."""


def against(counts: Counts) -> float:
    """Against the release: half of it from the whole fleet, half from the classes of hardware."""
    whole = evidence(counts.all_failures, counts.all_started, TOLERATED_SHARE)
    kinds = sum(_of_kind(counts, kind) for kind in counts.failures) / len(counts.started)
    return (whole + kinds) / 2


def in_words(counts: Counts, against: float) -> str:
    """The failures in words, and those of one class where it is that class."""
    failures, started = counts.all_failures, counts.all_started
    text = f"{failures} of {started} started nodes failed"
    worst = max(counts.failures, key=lambda kind: _of_kind(counts, kind))
    if len(counts.started) > 1 and _of_kind(counts, worst) > evidence(
        failures, started, TOLERATED_SHARE
    ):
        text += f", {counts.failures[worst]} of {counts.started[worst]} that are {worst}"
    return f"{text} (evidence {against:.3g} to 1 against it)"


def _of_kind(counts: Counts, kind: str) -> float:
    return evidence(counts.failures.get(kind, 0), counts.started.get(kind, 0), TOLERATED_SHARE)
