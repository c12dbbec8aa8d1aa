"""The table of `make bench-trust`: what the tests recorded, held against the goals."""

from pathlib import Path

import pytest

REPORT = b"""<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.a.test_b" name="test_c[full]"><properties>
<property name="tries" value="70"/><property name="bad" value="0"/><property name="worst_s" value="0.5"/>
</properties></testcase>
<testcase classname="tests.a.test_b" name="test_c[other]"><properties>
<property name="tries" value="30"/><property name="bad" value="0"/><property name="worst_s" value="1.5"/>
</properties></testcase>
<testcase classname="tests.a.test_b" name="test_cd"><properties>
<property name="tries" value="1000"/><property name="bad" value="5"/></properties></testcase>
<testcase classname="tests.a.test_e" name="test_f"><skipped message="no faketime"/></testcase>
<testcase classname="tests.a.test_e" name="test_g"><properties>
<property name="tries" value="100"/><property name="bad" value="0"/></properties>
<failure message="assert"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def rows(bench):
    return bench("trust_rows")


def line(rows, *tests, tries=100, within_s=None):
    row = rows.Row("figure", "accepted", tests, tries=tries, within_s=within_s)
    return rows.judged(row, rows.of(row.tests(is_full=True), rows.read(REPORT)))


def test_the_counts_of_a_test_are_added_over_its_parameters_and_no_further(rows):
    found = line(rows, "tests/a/test_b.py::test_c", within_s=60)
    assert found.measured == "0 accepted of 100, slowest 1.500 s"
    assert (found.goal, found.is_met) == ("0 of >= 100, <= 60 s", True)
    assert line(rows, "tests/a/test_b.py::test_c[full]", tries=70).measured == "0 accepted of 70"


@pytest.mark.parametrize(
    ("test", "goals", "says"),
    [
        ("tests/a/test_b.py::test_cd", {}, "5 accepted of 1,000"),
        ("tests/a/test_b.py::test_c", {"tries": 101}, "0 accepted of 100"),
        ("tests/a/test_b.py::test_c", {"within_s": 1}, "0 accepted of 100, slowest 1.500 s"),
        ("tests/a/test_e.py::test_f", {}, "0 accepted of 0; not run: no faketime"),
        ("tests/a/test_e.py::test_g", {}, "0 accepted of 100; 1 tests failed"),
        ("tests/a/test_e.py", {}, "not run: no faketime"),
        ("tests/a/test_gone.py", {}, "0 accepted of 0"),
    ],
)
def test_what_got_through_was_too_little_too_late_failed_or_was_not_run_is_a_miss(
    rows, test, goals, says
):
    found = line(rows, test, **goals)
    assert found.is_met is False
    assert says in found.measured


def test_no_test_is_counted_by_two_rows(rows):
    for is_full in (False, True):
        named = [test for row in rows.ROWS for test in row.tests(is_full=is_full)]
        assert len(named) == len(set(named))


def test_every_row_names_tests_that_are_there(rows):
    for row in rows.ROWS:
        for test in {*row.short, *row.full, rows.IDLE_TEST}:
            path, _, name = test.partition("::")
            text = (rows_root(rows) / path).read_text()
            assert f"def {name.partition('[')[0]}(" in text or not name, test
            for parameter in filter(None, [name.partition("[")[2].rstrip("]")]):
                assert f'"{parameter}"' in text, test


def rows_root(rows):
    return Path(rows.__file__).resolve().parents[1]
