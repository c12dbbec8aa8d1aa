import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract.units import _TABLE, UnitError, conversion

PAIRS = [(a, b) for units in _TABLE.values() for a in units for b in units]


@pytest.mark.parametrize(
    ("source", "target", "value", "result"),
    [
        ("°F", "degC", 212.0, 100.0),
        ("degC", "K", 0.0, 273.15),
        ("kPa", "hPa", 101.325, 1013.25),
        ("%", "1", 45.0, 0.45),
        ("km/h", "m/s", 36.0, 10.0),
        ("rpm", "Hz", 3000.0, 50.0),
        ("µs", "ms", 1500.0, 1.5),
    ],
)
def test_a_value_becomes_what_it_is_in_the_other_unit(source, target, value, result):
    change = conversion(source, target)
    assert change is not None
    assert change(value) == pytest.approx(result)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("°C", "celsius"),
        ("hPa", "mbar"),
        ("grey level 0..16", " grey  level 0..16"),
        ("%", "percent"),
    ],
)
def test_two_names_of_one_unit_are_the_same(source, target):
    assert conversion(source, target) is None


@pytest.mark.parametrize(
    ("source", "target"), [("°C", "%"), ("V", "mv"), ("apples", "pears"), ("g", "grey level")]
)
def test_what_does_not_become_the_other_is_refused_by_name(source, target):
    with pytest.raises(UnitError, match="does not become it") as caught:
        conversion(source, target)
    assert repr(source) in str(caught.value)
    assert repr(target) in str(caught.value)


@given(st.sampled_from(PAIRS), st.floats(-1e6, 1e6))
def test_there_and_back_is_where_it_was(pair, value):
    there, back = conversion(*pair), conversion(*reversed(pair))
    assert (there is None) == (back is None)
    if there is not None:
        assert back is not None
        size = max(1.0, abs(value), 1000 / abs(there.factor) if there.offset else 0)
        assert math.isclose(back(there(value)), value, abs_tol=1e-8 * size)


def test_every_dimension_begins_with_its_own_unit():
    for units in _TABLE.values():
        assert next(iter(units.values())) == (1, 0)
    named = [unit for units in _TABLE.values() for unit in units]
    assert len(named) == len(set(named))
