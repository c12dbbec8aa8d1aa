"""How likely so many failures are by chance, and what they say against a release. Pure."""

import math
from functools import lru_cache
from typing import Final

_NEGLIGIBLE: Final = 1e-18
_PRIOR: Final = 9
"""How bad a bad release is, before anything is known: density proportional to (1 - p)^(_PRIOR - 1)."""
_MOST_LOG: Final = 600.0
_EXACT_SHARE: Final = 1e-9


@lru_cache(maxsize=1 << 16)
def chance_of_at_least(failures: int, started: int, share: float) -> float:
    """P(Binomial(started, share) >= failures)."""
    if failures <= 0:
        return 1.0
    if failures > started:
        return 0.0
    if failures <= started * share:
        return max(0.0, 1.0 - _lower_tail(failures - 1, started, share))
    return min(1.0, _upper_tail(failures, started, share))


def chance_of_at_most(failures: int, started: int, share: float) -> float:
    """P(Binomial(started, share) <= failures)."""
    if failures > started * share:
        return max(0.0, 1.0 - _upper_tail(failures + 1, started, share))
    return min(1.0, _lower_tail(failures, started, share))


def _upper_tail(failures: int, started: int, share: float) -> float:
    """Sums the terms from `failures`, above the mean, upwards: they fall, and few of them count."""
    if failures > started:
        return 0.0
    odds = share / (1.0 - share)
    total, term = 0.0, _term(failures, started, share)
    for k in range(failures, started + 1):
        total += term
        if term <= total * _NEGLIGIBLE:
            break
        term *= (started - k) / (k + 1) * odds
    return total


def _lower_tail(failures: int, started: int, share: float) -> float:
    """The same from `failures`, below the mean, downwards."""
    odds = share / (1.0 - share)
    total, term = 0.0, _term(failures, started, share)
    for k in range(failures, -1, -1):
        total += term
        if term <= total * _NEGLIGIBLE:
            break
        term *= k / ((started - k + 1) * odds)
    return total


def _term(failures: int, started: int, share: float) -> float:
    return math.exp(
        math.lgamma(started + 1)
        - math.lgamma(failures + 1)
        - math.lgamma(started - failures + 1)
        + failures * math.log(share)
        + (started - failures) * math.log1p(-share)
    )


def upper_share(failures: int, started: int, doubt: float) -> float:
    """The share of failures that is not exceeded, but for a doubt (Clopper and Pearson's one-sided bound)."""
    if failures >= started:
        return 1.0
    low, high = failures / started, 1.0
    while high - low > _EXACT_SHARE:
        middle = (low + high) / 2
        if chance_of_at_most(failures, started, middle) > doubt:
            low = middle
        else:
            high = middle
    return high


def evidence(failures: int, started: int, tolerated: float) -> float:
    """How many times likelier the failures are with a bad release than with one that is just tolerable.

    It may be looked at after every failure: of rollouts of a release that fails on `tolerated` of the nodes,
    or fewer, at most one in N ever shows evidence of N (Ville's inequality; decision 0036). Nodes that have not
    answered count as good ones, which keeps that true.

    The bad release is a mixture: it fails on a share p > tolerated of the nodes, with density (1 - p)^8.
    """
    if failures <= 0:
        return 0.0
    log_ratio = (
        math.log(_PRIOR)
        + math.lgamma(failures + 1)
        + math.lgamma(started - failures + _PRIOR)
        - math.lgamma(started + _PRIOR + 1)
        - failures * math.log(tolerated)
        - (started - failures) * math.log1p(-tolerated)
    )
    # Of the whole mixture, the part that is above `tolerated`: after the failures, and before.
    above = chance_of_at_most(failures, started + _PRIOR, tolerated)
    return math.exp(min(log_ratio, _MOST_LOG)) * above / (1.0 - tolerated) ** _PRIOR
