from fractions import Fraction
from math import floor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal_delta import drift
from shoal_delta.arithmetic import as_bytes, rescaled, scale_ratios

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.int16)


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=40).map(bytes),
    st.floats(2.0**-10, 2.0**4, width=32),
    st.floats(2.0**-10, 2.0**4, width=32),
)
def test_what_rounding_lost_is_the_exact_rest_rounded_down(data, old, new):
    _, lost = rescaled(
        as_bytes(data),
        is_signed=False,
        zero_points=(0, 0),
        ratios=scale_ratios(np.float32(old).tobytes(), np.float32(new).tobytes()),
        first=0,
        inner=1,
    )
    for weight, made in zip(data, lost.tolist(), strict=True):
        exact = weight * Fraction(old) / Fraction(new)
        assert made == floor((exact - floor(exact + Fraction(1, 2))) * 65536)


def test_sides_grow_with_what_was_lost_and_mirror_what_was_rounded_up():
    sides = drift.sides(EVERY)
    classes, is_mirrored = sides & drift.CLASS, sides & drift.MIRRORED > 0
    assert (is_mirrored == (EVERY < 0)).all()
    assert classes.max() == drift.CLASSES - 1
    up = EVERY >= 0
    assert (np.diff(classes[up].astype(int)) >= 0).all()
    # -1 - d is as far from the level as d.
    assert (classes[up] == drift.sides(~EVERY[up]) & drift.CLASS).all()


def test_mirroring_twice_changes_nothing():
    residuals = np.arange(256, dtype=np.uint8).repeat(2)
    side = np.tile(np.array([5, 5 | drift.MIRRORED], np.uint8), 256)
    once = drift.mirrored(residuals, side)
    assert once[:4].tolist() == [0, 0, 1, 255]
    assert (drift.mirrored(once, side) == residuals).all()


def test_the_row_coder_expects_the_middle_of_an_eighth():
    assert drift.centres(np.array([-32768, -1, 0, 8191, 8192, 32767], np.int16)).tolist() == [
        *(-7, -1, 1, 1),
        *(3, 7),
    ]
