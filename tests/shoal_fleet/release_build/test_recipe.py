"""What is tried in which order, which nodes stay float, and what suits which processor."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build.exclusion import (
    exclusions,
    noise_share,
    rounding_sqnr_db,
    worst_first,
)
from shoal_fleet.release_build.presets import (
    ANYWHERE,
    PRESETS,
    preset_for,
    preset_for_all,
)
from shoal_fleet.release_build.recipe import (
    MAX_EXCLUDED_SHARE,
    Attempt,
    Facts,
    Way,
    first_attempt,
    further_attempts,
)

WEIGHTS = {"a": 1000, "b": 40, "c": 30, "d": 20, "e": 5}


def test_without_convolutions_it_begins_dynamic_and_with_them_static():
    assert first_attempt(Facts(0, WEIGHTS, 0)) == Attempt(Way.DYNAMIC)
    assert first_attempt(Facts(2, WEIGHTS, 10)) == Attempt(Way.STATIC)


def test_convolutions_without_calibration_are_refused_with_the_reason():
    with pytest.raises(
        ReleaseBuildError, match=r"2 Conv nodes.*4 to 6 times slower.*--calibration"
    ):
        first_attempt(Facts(2, WEIGHTS, 0))


def test_a_model_without_weights_is_refused():
    with pytest.raises(ReleaseBuildError, match="no weights"):
        first_attempt(Facts(0, {}, 10))


def test_further_attempts_leave_out_more_and_more_then_quantise_weights_only_then_nothing():
    facts = Facts(1, WEIGHTS, 10)
    attempts = list(further_attempts(facts, Attempt(Way.STATIC), ["a", "b", "c", "d", "e"]))
    assert attempts == [
        Attempt(Way.STATIC, ("b",)),
        Attempt(Way.STATIC, ("b", "c")),
        Attempt(Way.STATIC, ("b", "c", "d", "e")),
        Attempt(Way.WEIGHTS_ONLY),
        Attempt(Way.FLOAT),
    ]
    assert [each.way for each in further_attempts(facts, Attempt(Way.DYNAMIC), [])] == [
        Way.WEIGHTS_ONLY,
        Way.FLOAT,
    ]


@settings(max_examples=50)
@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 10**6), min_size=1),
    st.randoms(use_true_random=False),
)
def test_no_more_than_a_tenth_of_the_weights_ever_stays_float(weights, random):
    order = sorted(weights)
    random.shuffle(order)
    found = list(exclusions(order, weights, share=MAX_EXCLUDED_SHARE))
    for chosen in found:
        assert sum(weights[node] for node in chosen) <= 0.1 * sum(weights.values()) + 1e-6
        assert len(set(chosen)) == len(chosen) > 0
    for fewer, more in pairwise(found):
        assert more[: len(fewer)] == fewer
        assert len(more) > len(fewer)
    assert len(found) <= len(order).bit_length() + 1


def test_three_nodes_that_fit_are_tried_one_two_and_three_at_a_time():
    found = list(exclusions(["x", "y", "z"], {"x": 1, "y": 1, "z": 1, "rest": 97}, share=0.1))
    assert found == [("x",), ("x", "y"), ("x", "y", "z")]
    assert list(exclusions(["x", "y"], {"x": 1, "y": 1, "rest": 98}, share=0.1)) == [
        ("x",),
        ("x", "y"),
    ]


def test_the_noisiest_node_comes_first():
    noise = {
        "quiet": noise_share(60, 60),
        "weight": noise_share(10, 60),
        "input": noise_share(60, 5),
    }
    assert worst_first(noise) == ["input", "weight", "quiet"]
    assert worst_first({"b": 1.0, "a": 1.0}) == ["a", "b"]


def test_a_loud_channel_drowns_the_others_in_rounding():
    values = np.random.default_rng(1).normal(size=(50, 20)).astype(np.float32)
    quiet = rounding_sqnr_db(values)
    assert 25 < quiet < 50
    with_zero_signal = rounding_sqnr_db(np.zeros((3, 3), np.float32))
    assert with_zero_signal == rounding_sqnr_db(np.empty((0,), np.float32)) == 200


@pytest.mark.parametrize(
    ("machine", "flags", "name"),
    [
        ("aarch64", [], "arm64"),
        ("arm64", ["asimddp"], "arm64"),
        ("x86_64", ["avx2", "avx512f", "avx512_vnni"], "avx512_vnni"),
        ("x86_64", ["avx2", "avx_vnni"], "avx512_vnni"),
        ("AMD64", ["avx2", "avx512f"], "avx512"),
        ("x86_64", ["avx2"], "avx2"),
        ("x86_64", [], "avx2"),
        ("riscv64", [], "avx2"),
        ("aarch64_be", [], "avx2"),
    ],
)
def test_a_board_gets_the_preset_of_what_it_reports(machine, flags, name):
    assert preset_for(machine, flags).name == name


def test_a_mixed_fleet_gets_what_is_right_on_all_of_it():
    arm, vnni, old = PRESETS["arm64"], PRESETS["avx512_vnni"], PRESETS["avx512"]
    assert preset_for_all([arm, arm]) is arm
    assert not preset_for_all([arm, vnni]).is_narrow
    assert preset_for_all([arm, old]) is ANYWHERE
    assert preset_for_all([]) is ANYWHERE
