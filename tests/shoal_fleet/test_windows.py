import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_fleet.errors import RequestError
from shoal_fleet.windows import DAYS, Window, parse_window, zone_of

MINUTE_MS = 60_000
OSLO = zone_of("Europe/Oslo")
UTC_ZONE = zone_of("UTC")


def ms(text: str) -> int:
    """Of a moment in UTC."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-11-30T01:00", True),  # a Monday
        ("2026-11-30T00:59", False),
        ("2026-11-30T04:59", True),
        ("2026-11-30T05:00", False),
        ("2026-12-05T02:00", False),  # a Saturday
        ("2026-12-06T02:00", False),
    ],
)
def test_a_window_is_open_on_its_days_from_its_first_minute_to_before_its_last(moment, is_open):
    assert parse_window("mon-fri 01:00-05:00").is_open(ms(moment), UTC_ZONE) is is_open


def test_a_window_is_by_the_clock_of_the_site_in_winter_and_in_summer():
    window = parse_window("01:00-02:00")
    assert window.is_open(ms("2026-01-10T00:30"), OSLO)
    assert not window.is_open(ms("2026-07-09T00:30"), OSLO)
    assert window.is_open(ms("2026-07-09T23:30"), OSLO)


def test_a_window_past_midnight_belongs_to_the_day_on_which_it_begins():
    window = parse_window("fri 22:00-04:00")
    assert window.is_open(ms("2026-12-04T22:00"), UTC_ZONE)
    assert window.is_open(ms("2026-12-05T03:59"), UTC_ZONE)
    assert not window.is_open(ms("2026-12-05T22:00"), UTC_ZONE)
    assert not window.is_open(ms("2026-12-04T03:00"), UTC_ZONE)


def test_an_hour_that_the_clock_skips_is_not_open_and_one_that_it_shows_twice_is_open_twice():
    window = parse_window("02:00-03:00")
    spring = [ms("2026-03-29T00:00") + minute * MINUTE_MS for minute in range(180)]
    assert not any(window.is_open(moment, OSLO) for moment in spring)
    autumn = [ms("2026-10-24T23:00") + minute * MINUTE_MS for minute in range(240)]
    assert sum(window.is_open(moment, OSLO) for moment in autumn) == 120


def test_several_windows_and_lists_of_days():
    window = parse_window("mon,wed 01:00-02:00; sat-mon 10:00-11:00")
    days = {span.day for span in window.spans if span.start_min == 600}
    assert days == {5, 6, 0}
    assert window.is_open(ms("2026-12-02T01:30"), UTC_ZONE)
    assert window.is_open(ms("2026-12-06T10:30"), UTC_ZONE)


def test_when_it_opens_next_is_known():
    window = parse_window("mon-fri 01:00-05:00")
    assert window.opens_ms(ms("2026-12-04T06:00"), UTC_ZONE) == ms("2026-12-07T01:00")
    assert window.opens_ms(ms("2026-12-07T01:30"), UTC_ZONE) == ms("2026-12-07T01:30")
    only_in_the_gap = parse_window("sun 02:00-02:30")
    assert only_in_the_gap.opens_ms(ms("2026-03-28T12:00"), OSLO) == ms("2026-04-05T00:00")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a window is like"),
        ("mon", "expected times"),
        ("mon 1:00-2:00", "expected times"),
        ("01:00-01:00", "begins when it ends"),
        ("24:00-25:00", "no such time"),
        ("01:61-02:00", "no such time"),
        ("someday 01:00-02:00", "days are mon"),
        ("mon- 01:00-02:00", "days are mon"),
        ("x" * 300, "at most 256"),
        (";".join(["01:00-02:00"] * 20), "at most 16 parts"),
    ],
)
def test_what_is_no_window_is_refused(text, says):
    with pytest.raises(RequestError, match=says):
        parse_window(text)


@pytest.mark.parametrize(
    "name", ["Europe/Olso", "../etc/passwd", "/etc/passwd", "", "Europe", "a" * 99]
)
def test_what_is_no_time_zone_is_refused(name):
    with pytest.raises(RequestError, match="is not a time zone"):
        zone_of(name)


@given(st.text(max_size=40))
def test_any_text_is_a_window_or_refused(text):
    with contextlib.suppress(RequestError):
        assert parse_window(text).spans


WINDOWS = st.builds(
    lambda day, start, length: parse_window(
        f"{DAYS[day]} {start // 60:02}:{start % 60:02}-"
        f"{(start + length) % 1440 // 60:02}:{(start + length) % 60:02}"
    ),
    st.integers(0, 6),
    st.integers(0, 1439),
    st.integers(1, 1439),
)


@given(
    WINDOWS, st.integers(0, 4_000_000_000), st.sampled_from(["UTC", "Europe/Oslo", "Asia/Kolkata"])
)
def test_it_is_closed_until_it_opens_and_open_then(window: Window, at_s: int, name: str):
    zone = zone_of(name)
    opens_ms = window.opens_ms(at_s * 1000, zone)
    assert opens_ms is not None
    if opens_ms > at_s * 1000:
        assert window.is_open(opens_ms, zone)
        passed_ms = opens_ms - at_s * 1000
        assert not any(window.is_open(at_s * 1000 + passed_ms * k // 50, zone) for k in range(50))
