import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_fleet.chances import chance_of_at_least, chance_of_at_most, evidence, upper_share

SHARE = 0.02


@given(st.integers(0, 12), st.integers(0, 400))
def test_the_tail_of_the_binomial_is_the_sum_of_its_terms(failures, count):
    exact = sum(
        math.comb(count, k) * SHARE**k * (1 - SHARE) ** (count - k)
        for k in range(failures, count + 1)
    )
    assert chance_of_at_least(failures, count, SHARE) == pytest.approx(exact, rel=1e-9, abs=1e-12)


@given(st.integers(1, 100), st.integers(0, 5_000))
def test_more_failures_are_more_evidence_and_more_nodes_are_less(failures, good):
    some = evidence(failures, failures + good, SHARE)
    assert evidence(failures + 1, failures + 1 + good, SHARE) > some
    assert evidence(failures, failures + good + 1, SHARE) <= some * (1 + 1e-9)


def test_the_evidence_is_the_ratio_of_the_likelihoods_under_the_mixture():
    failures, started = 4, 20
    steps = 200_000
    width = (1 - SHARE) / steps
    shares = [SHARE + (step + 0.5) * width for step in range(steps)]
    prior = sum((1 - p) ** 8 for p in shares)
    bad = sum((1 - p) ** 8 * p**failures * (1 - p) ** (started - failures) for p in shares) / prior
    good = SHARE**failures * (1 - SHARE) ** (started - failures)
    assert evidence(failures, started, SHARE) == pytest.approx(bad / good, rel=1e-6)


@pytest.mark.parametrize("share", [0.005, 0.01, 0.02])
def test_a_good_release_hardly_ever_looks_bad_however_often_one_looks(share):
    """One in fifty at the most; a thousand rollouts to a thousand nodes, looked at after each failure."""
    draw = random.Random(7)  # noqa: S311 - a simulation
    alarms = 0
    for _ in range(1000):
        failures = 0
        for started in range(1, 1001):
            if draw.random() < share:
                failures += 1
                if evidence(failures, started, SHARE) >= 50:
                    alarms += 1
                    break
    assert alarms <= 20


def test_no_failure_is_no_evidence_and_numbers_of_any_size_are_taken():
    assert evidence(0, 100_000, SHARE) == 0.0
    assert evidence(100_000, 100_000, SHARE) > 1e100


@given(st.integers(0, 50), st.integers(1, 5000), st.floats(0.01, 0.5))
def test_the_upper_share_is_where_so_few_failures_become_a_matter_of_doubt(failures, more, doubt):
    started = failures + more
    share = upper_share(failures, started, doubt)
    assert chance_of_at_most(failures, started, share) == pytest.approx(doubt, rel=1e-3)
    assert share >= failures / started


def test_when_all_have_failed_nothing_is_excluded():
    assert upper_share(3, 3, 0.2) == 1.0
    assert upper_share(0, 0, 0.2) == 1.0
