"""Which ways of quantising are tried, in which order, and when that ends. Pure: it decides, others do.

per-channel dynamic (no Conv) or static QDQ (Conv) -> the same without the worst nodes -> weights only -> not
quantised.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build.exclusion import exclusions


class Way(StrEnum):
    """How a model is made small."""

    DYNAMIC = "dynamic"
    """Weights INT8 per channel; activations quantised while running."""

    STATIC = "static"
    """QDQ: weights INT8 per channel, activations by calibrated ranges."""

    WEIGHTS_ONLY = "weights-only"
    """Weights INT8 in the file, computing in float."""

    FLOAT = "float"
    """Not quantised."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What of the model decides.

    Attributes:
        convolutions: how many nodes are Conv.
        weights: how many weights each node has that could be quantised, by node.
        calibration_items: inputs to calibrate with.
    """

    convolutions: int
    weights: dict[str, int]
    calibration_items: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to try. `excluded` nodes stay float."""

    way: Way
    excluded: tuple[str, ...] = ()


MAX_EXCLUDED_SHARE: Final = 0.10
"""So much of the weights may stay float before weights-only is the better deal."""


def first_attempt(facts: Facts) -> Attempt:
    """Where to begin.

    Raises:
        ReleaseBuildError: it has Conv and nothing to calibrate with, or nothing to quantise.
    """
    if not facts.weights:
        raise ReleaseBuildError("the model has no weights that can be quantised")
    if not facts.convolutions:
        return Attempt(Way.DYNAMIC)
    if not facts.calibration_items:
        raise ReleaseBuildError(
            f"the model has {facts.convolutions} Conv nodes; dynamic quantisation makes them 4 to 6"
            " times slower: give calibration inputs (--calibration FILE.npz)"
        )
    return Attempt(Way.STATIC)


def further_attempts(facts: Facts, first: Attempt, worst_first: Sequence[str]) -> Iterator[Attempt]:
    """What to try when the first attempt does not pass, one after the other.

    `worst_first` are the nodes by how much noise their quantisation brings.
    """
    for excluded in exclusions(worst_first, facts.weights, share=MAX_EXCLUDED_SHARE):
        yield Attempt(first.way, excluded)
    yield Attempt(Way.WEIGHTS_ONLY)
    yield Attempt(Way.FLOAT)
