"""How fast a series grows, and how sure that is: a line through samples that hang together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, fmean

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth a second, and half the width of its 95 % interval."""

    per_s: float
    margin_per_s: float

    def over(self, seconds: float) -> tuple[float, float]:
        """What it comes to in so long: from, to."""
        return (self.per_s - self.margin_per_s) * seconds, (
            self.per_s + self.margin_per_s
        ) * seconds


def slope(
    times_s: Sequence[float], values: Sequence[float], groups: Sequence[Hashable] | None = None
) -> Slope:
    """Least squares; a sample is compared with those of its group only (one level a group, one slope for all).

    Neighbours resemble each other, so there are fewer samples than it seems: the error is widened by the first
    autocorrelation r of what the line leaves, to that of n (1 - r) / (1 + r) samples (at least 4).
    """
    times, heights = _within(times_s, groups), _within(values, groups)
    levels = len(set(groups)) if groups is not None else 1
    count = len(times)
    spread = sum(t * t for t in times)
    per_s = sum(t * v for t, v in zip(times, heights, strict=True)) / spread
    left = [v - per_s * t for t, v in zip(times, heights, strict=True)]
    power = sum(x * x for x in left)
    neighbours = sum(a * b for a, b in pairwise(left))
    r = min(max(neighbours / power, 0.0), 0.99) if power else 0.0
    effective = max(4.0, count * (1 - r) / (1 + r))
    variance = power / max(1, count - levels - 1) / spread * (count / effective)
    return Slope(per_s, _student(effective - 2) * math.sqrt(variance))


def _within(values: Sequence[float], groups: Sequence[Hashable] | None) -> list[float]:
    """Each value less the mean of its group."""
    keys = groups if groups is not None else [None] * len(values)
    members: dict[Hashable, list[float]] = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        members[key].append(value)
    means = {key: fmean(found) for key, found in members.items()}
    return [value - means[key] for key, value in zip(keys, values, strict=True)]


def _student(freedom: float) -> float:
    """Student's t from the normal quantile (Cornish-Fisher, Abramowitz and Stegun 26.7.5, three terms)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
