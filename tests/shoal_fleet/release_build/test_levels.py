"""Weights on old and new scales: the bound, the dead band, and what is carried to the next release."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_fleet.release_build.levels import NOISE_BOUND, Grid, on_old_scales

CHANNELS, INNER = 12, 40


def weights(seed, spread=0.1):
    return np.random.default_rng(seed).normal(0, spread, (CHANNELS, INNER)).astype(np.float32)


def grid_of(weight, limit=127):
    scale = (np.abs(weight).max(axis=1) / limit).astype(np.float32)
    return Grid(scale, np.zeros(len(scale), np.int8), 0, -limit, limit)


def released(weight):
    grid = grid_of(weight)
    return grid, grid.quantised(weight)


def test_levels_stand_for_the_weights_within_half_a_step():
    weight = weights(1)
    grid, levels = released(weight)
    assert levels.dtype == np.int8
    error = np.abs(grid.values(levels) - weight)
    assert (error <= 0.5 * grid.scale[:, None] * (1 + 1e-6)).all()
    np.testing.assert_allclose(grid.noise(weight, levels), np.square(error).mean(axis=1))


def test_weights_that_did_not_move_are_the_same_bytes_on_the_same_scales():
    weight = weights(1)
    old, old_levels = released(weight)
    moved = weight * np.float32(1.0)
    moved[:, 0] *= np.float32(0.9)
    made = on_old_scales(moved, grid_of(moved), old, old_levels)
    assert made.kept.all()
    assert (made.grid.scale == old.scale).all()
    same = made.levels == old_levels
    assert same[:, 1:].all()
    assert not same[:, 0].all()


def test_a_weight_that_did_not_move_is_the_same_byte_however_the_quantiser_rounded_its_tie():
    grid = Grid(np.array([0.1], np.float32), np.array([0], np.int8), None, -127, 127)
    ties = (np.float32(0.1) * (np.arange(100) + np.float32(0.5))).astype(np.float32)
    for offset in (0, 1):
        old_levels = (np.arange(100) + offset).astype(np.int8)
        made = on_old_scales(ties, grid, grid, old_levels)
        assert (made.levels == old_levels).all()


def test_a_channel_that_outgrew_its_range_gets_a_new_scale_and_the_others_do_not():
    weight = weights(1)
    old, old_levels = released(weight)
    moved = weight.copy()
    moved[3] *= 2
    fresh = grid_of(moved)
    made = on_old_scales(moved, fresh, old, old_levels)
    assert list(np.flatnonzero(~made.kept)) == [3]
    assert made.grid.scale[3] == fresh.scale[3]
    assert made.noise_ratio == pytest.approx(1.0)


def test_a_channel_that_shrank_far_below_its_range_gets_a_new_scale():
    weight = weights(1)
    old, old_levels = released(weight)
    moved = weight.copy()
    moved[5] /= 8
    made = on_old_scales(moved, grid_of(moved), old, old_levels)
    assert list(np.flatnonzero(~made.kept)) == [5]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    factor=st.floats(0.5, 2.0),
    drift=st.floats(0, 0.05),
    bound=st.floats(1.0, 3.0),
)
def test_no_channel_is_noisier_than_the_bound_says(seed, factor, drift, bound):
    weight = weights(seed)
    old, old_levels = released(weight)
    moved = (weight * factor + drift * weights(seed + 1)).astype(np.float32)
    fresh = grid_of(moved)
    made = on_old_scales(moved, fresh, old, old_levels, noise_bound=bound)
    fresh_noise = np.maximum(fresh.noise(moved, fresh.quantised(moved)), fresh.scale**2 / 12)
    noise = made.grid.noise(moved, made.levels)
    assert (noise <= bound * fresh_noise * (1 + 1e-6)).all()
    assert made.levels.min() >= -127


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), tau=st.floats(0.01, 1.0))
def test_with_a_dead_band_no_weight_is_further_off_than_it_and_fewer_bytes_change(seed, tau):
    weight = weights(seed)
    old, old_levels = released(weight)
    moved = (weight + 0.002 * np.random.default_rng(seed).normal(size=weight.shape)).astype(
        np.float32
    )
    fresh = replace(old, scale=old.scale)
    exact = on_old_scales(moved, fresh, old, old_levels)
    lazy = on_old_scales(moved, fresh, old, old_levels, tau=tau)
    inside = np.abs(fresh.steps(moved)) <= 127
    steps_off = np.abs(lazy.grid.values(lazy.levels) - moved) / lazy.grid.scale[:, None]
    assert steps_off[inside].max() <= 0.5 + tau + 1e-5
    assert (lazy.levels != old_levels).sum() <= (exact.levels != old_levels).sum()
    changed = lazy.levels != old_levels
    assert (lazy.levels[changed] == exact.levels[changed]).all()


def test_what_a_dead_band_leaves_unsaid_is_said_by_a_later_release():
    weight = weights(1)
    grid, levels = released(weight)
    wish = grid.values(levels)
    carry = None
    # Ten releases, each trained from the INT8 weights of the last, each moving 0.2 of a step.
    for _ in range(10):
        trained = (grid.values(levels) + 0.2 * grid.scale[:, None]).astype(np.float64)
        wish = wish + 0.2 * grid.scale[:, None]
        made = on_old_scales(trained, grid, grid, levels, tau=0.5, carried=carry)
        levels, carry = made.levels, made.carry
    inside = np.abs(grid.steps(wish)) < 127
    off = np.abs(grid.values(levels) - wish) / grid.scale[:, None]
    assert off[inside].max() <= 1.0 + 1e-3
    # Without it not one of them would ever have moved.
    lost = on_old_scales(
        grid.values(levels) + 0.2 * grid.scale[:, None], grid, grid, levels, tau=0.5
    )
    assert (lost.levels == levels).all()


def test_the_carry_is_what_the_levels_do_not_say():
    weight = weights(4)
    old, old_levels = released(weights(3))
    made = on_old_scales(weight, grid_of(weight), old, old_levels, tau=0.3)
    np.testing.assert_allclose(made.grid.values(made.levels) + made.carry, weight, atol=1e-7)


def test_one_scale_for_all_and_unsigned_levels_with_a_zero_point_work_too():
    weight = weights(2)
    scale = np.array([(weight.max() - weight.min()) / 255], np.float32)
    zero = np.array([round(-float(weight.min()) / float(scale[0]))], np.uint8)
    old = Grid(scale, zero, None, 0, 255)
    levels = old.quantised(weight)
    assert levels.dtype == np.uint8
    fresh = Grid(scale * np.float32(0.97), zero, None, 0, 255)
    made = on_old_scales(weight, fresh, old, levels)
    assert made.kept.tolist() == [True]
    assert (made.levels == levels).all()


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf, -1.0])
def test_an_old_scale_that_is_none_is_never_kept(scale):
    weight = weights(1)
    old, old_levels = released(weight)
    broken = replace(old, scale=np.where(np.arange(CHANNELS) == 2, np.float32(scale), old.scale))
    with np.errstate(all="ignore"):
        made = on_old_scales(weight, grid_of(weight), broken, old_levels)
    assert not made.kept[2]
    assert np.isfinite(made.grid.scale).all()


def test_weights_of_another_shape_are_refused():
    weight = weights(1)
    old, old_levels = released(weight)
    with pytest.raises(ValueError, match="another shape"):
        on_old_scales(weight, grid_of(weight), old, old_levels[:, :-1])
    with pytest.raises(ValueError, match="another shape"):
        on_old_scales(weight, grid_of(weight), replace(old, axis=1), old_levels)


def test_the_bound_is_one_decibel():
    assert pytest.approx(10 ** (1 / 10), abs=0.02) == NOISE_BOUND
