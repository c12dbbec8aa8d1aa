from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_delta.arithmetic import (
    MAX_INTEGER_SHIFT,
    as_bytes,
    differences,
    from_planes,
    gain_ratios,
    monotone,
    planes,
    products,
    rescaled,
    rescaled_integers,
    scale_ratios,
    undo_differences,
    unmonotone,
)

scales = st.floats(2.0**-10, 2.0**4, width=32)
weights = st.lists(st.integers(0, 255), min_size=1, max_size=40).map(bytes)


@given(weights, scales, scales, st.booleans(), st.integers(-9, 9), st.integers(-9, 9))
def test_a_prediction_is_the_exact_rounded_ratio(data, old, new, is_signed, zero, new_zero):
    if not is_signed:
        zero, new_zero = abs(zero), abs(new_zero)
    got, _ = rescaled(
        as_bytes(data),
        is_signed=is_signed,
        zero_points=(zero, new_zero),
        ratios=scale_ratios(np.float32(old).tobytes(), np.float32(new).tobytes()),
        first=0,
        inner=1,
    )
    low, high = (-128, 127) if is_signed else (0, 255)
    for byte, made in zip(data, got.tolist(), strict=True):
        weight = byte - 256 if is_signed and byte > 127 else byte
        exact = (weight - zero) * Fraction(old) / Fraction(new)
        wanted = min(max(floor(exact + Fraction(1, 2)) + new_zero, low), high)
        assert made == wanted & 0xFF


@pytest.mark.parametrize(
    ("old", "new"),
    [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (np.inf, 1.0), (1.0, np.nan), (1e-40, 1.0), (1e9, 1e-9)],
)
def test_scales_that_make_no_sense_leave_the_weights_alone(old, new):
    data = as_bytes(bytes(range(256)))
    got, _ = rescaled(
        data,
        is_signed=True,
        zero_points=(0, 0),
        ratios=scale_ratios(np.float32(old).tobytes(), np.float32(new).tobytes()),
        first=0,
        inner=1,
    )
    assert got.tolist() == data.tolist()


def test_channels_follow_the_layout_wherever_a_stretch_begins():
    data = as_bytes(bytes(range(1, 25)))
    old = np.array([1, 1, 1], "<f4").tobytes()
    new = np.array([1, 0.5, 0.25], "<f4").tobytes()
    common = {"is_signed": False, "zero_points": (0, 0), "inner": 2}
    common["ratios"] = scale_ratios(old, new)
    whole, _ = rescaled(data, first=0, **common)
    assert whole[:8].tolist() == [1, 2, 6, 8, 20, 24, 7, 8]
    for cut in range(1, 23):
        tail, _ = rescaled(data[cut:], first=cut, **common)
        assert tail.tolist() == whole[cut:].tolist()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20))
def test_the_monotone_map_keeps_the_order_of_floats(values):
    floats = np.array(sorted(values), "<f4")
    mapped = monotone(floats.view("<u4")).astype(np.int64)
    rising = floats[1:] > floats[:-1]
    assert (np.diff(mapped)[rising] > 0).all()
    assert unmonotone(monotone(floats.view("<u4"))).tobytes() == floats.tobytes()


@given(st.data(), st.sampled_from([2, 4]), st.booleans())
def test_differences_are_undone_for_every_bit_pattern(data, width, is_float):
    size = width * data.draw(st.integers(0, 9))
    old, new = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    parts = differences(old, new, width, is_float=is_float)
    assert parts.shape == (width, size // width)
    assert undo_differences(old, parts, is_float=is_float) == new
    assert from_planes(planes(new, width)) == new


def test_a_float_one_step_away_is_a_difference_of_one():
    old = np.array([1.0, -1.0, 0.5], "<f4")
    new = np.nextafter(old, np.float32(np.inf), dtype=np.float32)
    assert differences(old.tobytes(), new.tobytes(), 4, is_float=True)[0].tolist() == [2, 2, 2]


floats = st.floats(width=32, min_value=2.0**-126, max_value=2.0**127)


@given(st.lists(floats, min_size=1, max_size=20), floats)
def test_a_product_is_the_float32_product_of_ieee_754_wherever_that_is_normal(values, factor):
    with np.errstate(over="ignore", under="ignore"):
        wanted = np.array(values, "<f4") * np.float32(factor)
    wanted[~np.isfinite(wanted) | (wanted < np.finfo("<f4").tiny)] = 0
    made = np.frombuffer(products(np.array(values, "<f4").tobytes(), np.float32(factor)), "<f4")
    # A product that rounds up to the least normal number counts as too small: its exponent did not fit.
    same = (made == wanted) | ((made == 0) & (wanted == np.finfo("<f4").tiny))
    assert same.all()


def test_products_of_numbers_that_are_not_normal_and_positive_are_zero():
    values = np.array([0, -1, np.inf, np.nan, 1e-40, 2], "<f4").tobytes()
    made = np.frombuffer(products(values, np.float32(3).tobytes()), "<f4")
    assert made.tolist() == [0, 0, 0, 0, 0, 6]


integers = st.integers(-(2**31), 2**31 - 1)


@given(st.lists(integers, min_size=1, max_size=20), scales, scales)
def test_an_integer_on_another_scale_is_the_exact_rounded_ratio_modulo_2_to_the_32(
    values, old, new
):
    ratios = scale_ratios(np.float32(old).tobytes(), np.float32(new).tobytes(), MAX_INTEGER_SHIFT)
    exact = Fraction(old) / Fraction(new)
    if abs(int(np.frexp(np.float32(old))[1]) - int(np.frexp(np.float32(new))[1])) > 6:
        exact = Fraction(1)
    made = np.frombuffer(rescaled_integers(np.array(values, "<i4").tobytes(), ratios, 0, 1), "<u4")
    wanted = [floor(value * exact + Fraction(1, 2)) & 0xFFFFFFFF for value in values]
    assert made.tolist() == wanted


@given(weights, st.integers(-128, 127), st.integers(8, 14))
def test_a_gain_is_one_and_its_code_in_fractions_of_a_power_of_two(data, code, bits):
    got, _ = rescaled(
        as_bytes(data),
        is_signed=True,
        zero_points=(0, 0),
        ratios=gain_ratios(bytes([code & 0xFF]), bits),
        first=0,
        inner=1,
    )
    gain = 1 + Fraction(code, 1 << bits)
    weights_before = np.frombuffer(data, np.int8).tolist()
    wanted = [min(max(floor(q * gain + Fraction(1, 2)), -128), 127) for q in weights_before]
    assert got.view(np.int8).tolist() == wanted
