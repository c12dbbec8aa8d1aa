"""How fast and when chunks are asked for."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.allowance import Allowance, Window
from shoal_agent.errors import ConfigError

HOUR_S = 3600


@pytest.mark.parametrize(
    ("text", "of_day_s", "opens_in_s"),
    [
        ("22:00-05:30", 22 * HOUR_S, 0),
        ("22:00-05:30", 0, 0),
        ("22:00-05:30", 5 * HOUR_S + 1799, 0),
        ("22:00-05:30", 5 * HOUR_S + 1800, 16 * HOUR_S + 1800),
        ("01:00-02:00", 0, HOUR_S),
        ("01:00-02:00", 2 * HOUR_S, 23 * HOUR_S),
    ],
)
def test_a_window_says_when_it_opens(text, of_day_s, opens_in_s):
    assert Window.parse(text).opens_in_s(of_day_s) == opens_in_s


@given(st.integers(0, 86_399), st.integers(0, 1439), st.integers(0, 1439))
def test_a_window_is_open_once_what_it_says_is_over(of_day_s, start, end):
    if start == end:
        return
    text = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    window = Window.parse(text)
    wait_s = window.opens_in_s(of_day_s)
    assert window.opens_in_s((of_day_s + wait_s) % 86_400) == 0
    assert wait_s == 0 or window.opens_in_s((of_day_s + wait_s - 1) % 86_400) == 1


@pytest.mark.parametrize("text", ["", "22-5", "24:00-01:00", "03:00-03:00", "22:00-05:30 "])
def test_what_is_no_window_is_refused(text):
    with pytest.raises(ConfigError, match=r"\[updates\] window"):
        Window.parse(text)


def test_bytes_are_spread_over_the_time_they_may_take():
    now_s = 100.0
    allowance = Allowance(1000, clock=lambda: now_s)
    # A second may come at once, and then a thousand bytes a second.
    assert [allowance.delay_s(500) for _ in range(5)] == [0.0, 0.5, 1.0, 1.5, 2.0]
    now_s = 200.0
    # Quiet for long is made up for by a second's bytes, not by more.
    assert [allowance.delay_s(500) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_without_a_cap_nothing_waits():
    assert [Allowance().delay_s(1 << 30) for _ in range(3)] == [0.0] * 3


async def test_outside_of_its_window_nothing_is_asked_for_and_the_reason_is_told():
    of_day_s = 12 * HOUR_S
    allowance = Allowance(window=Window.parse("22:00-05:30"), of_day=lambda: of_day_s)
    assert allowance.why_not_now() == "waits for the window 22:00-05:30"
    waiting = asyncio.create_task(allowance.wait(1))
    await asyncio.sleep(0)
    assert allowance.waiting == 1
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert allowance.waiting == 0
    of_day_s = 23 * HOUR_S
    assert allowance.why_not_now() == ""
    await allowance.wait(1)
