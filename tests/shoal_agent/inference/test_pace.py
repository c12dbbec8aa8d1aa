import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference.calibrations import MAX_RELEASES, Calibrations
from shoal_agent.inference.pace import Pace, best_rows
from shoal_agent.inference.served import Admission

POINTS = st.dictionaries(st.integers(1, 64), st.integers(1, 10**6), max_size=8).map(
    lambda points: list(points.items())
)


@pytest.mark.parametrize(
    ("points", "limit", "best"),
    [
        ([], 32, 32),
        ([(1, 10_000), (2, 11_000), (4, 12_000), (8, 24_000)], 32, 4),
        ([(1, 10_000), (2, 20_000), (4, 40_000)], 32, 1),
        ([(1, 10_000), (2, 19_000), (4, 37_900)], 32, 2),
        ([(1, 10_000), (2, 11_000), (4, 12_000)], 2, 2),
        ([(1, 10), (2, 20), (4, 40), (8, 80)], 32, 8),
    ],
)
def test_the_best_batch_is_the_smallest_of_those_that_are_nearly_as_productive(points, limit, best):
    assert best_rows(points, limit) == best


@given(POINTS, st.integers(1, 64))
def test_the_best_batch_was_measured_and_is_within_the_limit(points, limit):
    best = best_rows(points, limit)
    assert best <= limit
    assert best == limit or best in dict(points)


@given(POINTS, st.integers(1, 64))
def test_what_was_measured_is_what_is_predicted(points, rows):
    pace = Pace(points, limit=64)
    for measured, us in points:
        assert pace.batch_s(measured) == pytest.approx(us / 1e6)
    if points:
        times = [us for _, us in points]
        assert pace.batch_s(rows) >= min(times) / 1e6
        assert pace.row_s > 0
    else:
        assert pace.batch_s(rows) == pace.row_s == 0.0


@given(POINTS.filter(bool), st.floats(0.1, 10))
def test_a_board_that_became_slower_is_predicted_so_after_a_while(points, factor):
    pace = Pace(points, limit=64)
    rows, us = points[0]
    for _ in range(100):
        pace.observe(rows, us * factor / 1e6)
    assert pace.batch_s(rows) == pytest.approx(us * factor / 1e6, rel=0.01)


def test_one_hiccup_does_not_spoil_the_prediction():
    pace = Pace([(1, 1000), (8, 4000)], limit=8)
    pace.observe(1, 100.0)
    assert pace.batch_s(1) < 0.005
    for _ in range(20):
        pace.observe(1, 0.001)
    assert pace.batch_s(1) < 0.0011


def test_without_calibration_the_first_batch_is_what_is_known():
    pace = Pace(limit=8)
    assert not pace.is_known
    pace.observe(4, 0.002)
    assert [pace.batch_s(rows) for rows in (1, 4, 8)] == [0.002, 0.002, 0.004]


def test_what_was_measured_is_remembered_over_restarts_for_this_hardware_only(tmp_path):
    path = tmp_path / "calibration.json"
    Calibrations(path, hardware="pi").put(b"\x01" * 32, [(1, 10), (2, 15)])
    assert Calibrations(path, hardware="pi").get(b"\x01" * 32) == ((1, 10), (2, 15))
    assert Calibrations(path, hardware="nuc").get(b"\x01" * 32) == ()
    assert Calibrations(path, hardware="pi").get(b"\x02" * 32) == ()


def test_how_a_trial_went_is_remembered_beside_it_for_this_hardware_only(tmp_path):
    path, release = tmp_path / "calibration.json", bytes(32)
    known = Calibrations(path, hardware="pi")
    assert known.admission(release) == Admission()
    went = Admission(1.5, 10, 20, 5, resident_bytes=1 << 20, peak_bytes=1 << 21)
    known.put_admission(release, went)
    known.put(release, [(1, 10)])
    again = Calibrations(path, hardware="pi")
    assert (again.admission(release), again.get(release)) == (went, ((1, 10),))
    assert Calibrations(path, hardware="other").admission(release) == Admission()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": {"hardware": "pi"}}', "\0" * 9])
def test_a_file_that_is_none_is_written_anew(tmp_path, text):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    known = Calibrations(path, hardware="pi")
    assert known.get(bytes(32)) == ()
    known.put(bytes(32), [(1, 10)])
    assert json.loads(path.read_text()) == {
        bytes(32).hex(): {"hardware": "pi", "points": [[1, 10]]}
    }


def test_only_the_newest_releases_are_remembered(tmp_path):
    known = Calibrations(tmp_path / "c.json", hardware="pi")
    for number in range(MAX_RELEASES + 3):
        known.put(bytes([number]), [(1, 10)])
    assert known.get(bytes([2])) == ()
    assert known.get(bytes([3])) == ((1, 10),)
    assert len(json.loads((tmp_path / "c.json").read_text())) == MAX_RELEASES


def test_a_disk_that_takes_nothing_costs_only_the_memory_of_it(tmp_path):
    known = Calibrations(tmp_path / "gone" / "c.json", hardware="pi")
    known.put(bytes(32), [(1, 10)])
    assert known.get(bytes(32)) == ((1, 10),)
