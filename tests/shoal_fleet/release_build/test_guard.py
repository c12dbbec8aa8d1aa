"""Judging a small model by its answers, and choosing between small models."""

import numpy as np
import pytest

from shoal_fleet.release_build.choice import Candidate, chosen, verdict
from shoal_fleet.release_build.guard import MAX_SQNR_DB, Judgement, Limits, is_worse, judge


def logits(count=200, seed=1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    answers = rng.normal(size=(count, 10))
    answers[np.arange(count), labels] += 6
    return answers.astype(np.float32), labels


def test_the_same_answers_pass_with_every_figure_at_its_best():
    answers, labels = logits()
    found = judge("classes", answers, answers, labels=labels)
    assert found.passes
    assert found.figures["agreement"] == 1.0
    assert found.figures["accuracy"] == found.figures["float_accuracy"]
    assert found.figures["sqnr_db"] == MAX_SQNR_DB
    found = judge("embedding", answers, answers)
    assert found.passes
    assert found.figures["cosine"] == pytest.approx(1)
    assert found.figures["overlap"] == 1.0


def test_an_answer_in_fifty_that_changes_is_the_limit_of_agreement():
    answers, _ = logits(200)
    for flipped, passes in ((4, True), (5, False)):
        other = answers.copy()
        for row in range(flipped):
            other[row, (answers[row].argmax() + 1) % 10] = answers[row].max() + 0.1
        found = judge("classes", answers, other, limits=Limits(sqnr_db=0))
        assert found.figures["agreement"] == pytest.approx(1 - flipped / 200)
        assert found.passes is passes
    assert "top-1 agreement" in found.failures[0]


def test_accuracy_may_drop_by_the_bound_and_not_by_more():
    answers, labels = logits(1000)
    limits = Limits(agreement=0, sqnr_db=-99)
    right = np.flatnonzero(answers.argmax(axis=1) == labels)
    for lost, passes in ((10, True), (11, False)):
        other = answers.copy()
        other[right[:lost]] = np.roll(other[right[:lost]], 1, axis=1)
        assert judge("classes", answers, other, labels=labels, limits=limits).passes is passes


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_one_answer_that_is_no_number_fails(poison):
    answers, labels = logits()
    other = answers.copy()
    other[7, 3] = poison
    found = judge("classes", answers, other, labels=labels)
    assert found.failures == ("1 of 200 answers are NaN or infinite",)
    with pytest.raises(ValueError, match="float model answers NaN"):
        judge("classes", other, answers)


def test_embeddings_are_judged_by_cosine_worst_hundredth_and_neighbours():
    rng = np.random.default_rng(3)
    before = rng.normal(size=(300, 32))
    near = before + 0.05 * rng.normal(size=before.shape)
    assert judge("embedding", before, near).passes
    few = near.copy()
    few[:6] = rng.normal(size=(6, 32))
    found = judge("embedding", before, few)
    assert any("worst hundredth" in failure for failure in found.failures)
    far = before + 0.7 * rng.normal(size=before.shape)
    found = judge("embedding", before, far)
    assert found.figures["overlap"] < 0.8
    assert any("neighbours" in failure for failure in found.failures)


def test_noise_is_measured_in_decibels():
    before = np.ones((4, 100))
    after = before + 0.1 * np.where(np.arange(100) % 2, 1, -1)
    assert judge("classes", before, after).figures["sqnr_db"] == pytest.approx(20)


def test_answers_that_do_not_go_together_are_refused():
    answers, _ = logits()
    for other in (answers[:, :9], answers[:5]):
        with pytest.raises(ValueError, match="do not compare"):
            judge("classes", answers, other)
    with pytest.raises(ValueError, match="do not compare"):
        judge("classes", answers[:0], answers[:0])


def test_worse_means_by_more_than_a_fair_coin_would_explain():
    def right(*wrong):
        found = np.ones(500, dtype=bool)
        found[list(wrong)] = False
        return found

    assert not is_worse(right(1, 2, 3), right(4, 5, 6))
    assert not is_worse(right(), right(4, 5))
    assert is_worse(right(), right(4, 5, 6))
    assert is_worse(right(1), right(*range(10, 20)))
    assert not is_worse(right(*range(20)), right())


def judgement(*failures, wrong=0):
    right = np.ones(100, dtype=bool)
    right[:wrong] = False
    return Judgement({}, failures, right)


def test_the_smallest_update_is_chosen_among_those_that_pass_and_are_no_worse():
    fresh = Candidate("fresh", 0, 1000, judgement())
    old = Candidate("old", 0, 900, judgement(wrong=1))
    lazy = Candidate("tau 0.25", 0.25, 800, judgement(wrong=9))
    broken = Candidate("tau 1", 1.0, 500, judgement("agreement 0.5 is below 0.98"))
    assert chosen([fresh, old, lazy, broken]) is old
    assert verdict(lazy, fresh) == "right less often than on fresh scales, by more than noise"
    assert verdict(broken, fresh) == "agreement 0.5 is below 0.98"
    assert verdict(fresh, fresh) == ""
    assert chosen([fresh, lazy, broken]) is fresh


def test_of_two_updates_of_one_size_the_one_without_a_dead_band_is_chosen():
    fresh = Candidate("fresh", 0, 1000, judgement())
    old, lazy = Candidate("old", 0, 900, judgement()), Candidate("tau", 0.25, 900, judgement())
    assert chosen([fresh, lazy, old]) is old


def test_when_nothing_passes_it_stays_with_fresh_scales():
    fresh = Candidate("fresh", 0, 1000, judgement("no"))
    assert chosen([fresh, Candidate("old", 0, 900, judgement("no"))]) is fresh
