"""When a board asks: a third into a certificate's life, never all at once, and whatever its clock says."""

from hypothesis import given
from hypothesis import strategies as st
from tests.support.enrolling import DAY_MS

from shoal_agent.identity import schedule
from shoal_agent.identity.store import Facts
from shoal_agent.identity.task import Outcome

BEGIN_MS = 1_700_000_000_000
LIFE_MS = 30 * DAY_MS


def facts(key="00" * 32, node="press-4"):
    return Facts(node=node, key=key, not_before_ms=BEGIN_MS, not_after_ms=BEGIN_MS + LIFE_MS)


keys = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(keys)
def test_each_key_has_its_moment_between_a_third_and_that_and_a_tenth(key):
    moment = schedule.renews_at_ms(facts(key)) - BEGIN_MS
    assert LIFE_MS / 3 - 1 <= moment <= LIFE_MS * (1 / 3 + 1 / 10) + 1
    assert moment == schedule.renews_at_ms(facts(key)) - BEGIN_MS


def test_moments_are_spread_over_the_whole_window():
    moments = [schedule.renews_at_ms(facts(f"{n:02x}" + "7f" * 31)) for n in range(256)]
    assert max(moments) - min(moments) > 0.98 * LIFE_MS / 10


@given(st.integers(0, 1 << 43))
def test_before_its_certificate_a_clock_is_wrong_and_nothing_is_asked(now_ms):
    due = schedule.is_due(facts(), node="press-4", now_ms=now_ms)
    assert due == (now_ms >= schedule.renews_at_ms(facts()))
    if schedule.is_clock_behind(facts(), now_ms):
        assert not due


def test_without_a_certificate_or_with_one_in_another_name_it_asks_at_once():
    assert schedule.is_due(None, node="a", now_ms=0)
    assert schedule.is_due(facts(node="b"), node="a", now_ms=0)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_waits_grow_to_a_minute_with_full_jitter(failures, chance):
    wait_s = schedule.wait_s(Outcome(kind="unreachable"), failures, chance)
    assert wait_s == min(60.0, 2.0 ** min(failures, 10)) * chance


@given(st.floats(0, 1), st.floats(0, 600))
def test_who_waits_for_a_person_keeps_to_what_the_door_says(chance, retry_s):
    wait_s = schedule.wait_s(Outcome(kind="pending", retry_s=retry_s), 1, chance)
    assert max(1.0, retry_s / 2) <= wait_s <= max(1.0, retry_s)


@given(st.floats(0, 1))
def test_who_was_refused_asks_rarely(chance):
    assert 150 <= schedule.wait_s(Outcome(kind="refused"), 1, chance) <= 300
    assert 10 <= schedule.wait_s(Outcome(kind="refused", retry_s=20), 9, chance) <= 20


def test_a_clock_that_is_far_from_the_doors_is_told_by_how_much():
    assert schedule.clock_off_s(Outcome(kind="issued", door_ms=BEGIN_MS), 1000) < -1e9
    assert schedule.clock_off_s(Outcome(kind="issued", door_ms=BEGIN_MS), BEGIN_MS + 1000) == 0
    assert schedule.clock_off_s(Outcome(kind="unreachable"), 1000) == 0
