from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference.limits import Breaker, RestartBudget

ADVANCES = st.floats(0, 30, allow_nan=False)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(ADVANCES, st.booleans()), max_size=60))
def test_after_three_failures_in_a_row_at_most_one_request_goes_per_ten_seconds(steps):
    clock = Clock()
    breaker = Breaker(clock)
    in_a_row = 0
    closed_until = 0.0
    for advance, succeeds in steps:
        clock.now += advance
        expected = in_a_row < 3 or clock.now >= closed_until
        assert breaker.allows() == expected
        if not expected:
            continue
        if succeeds:
            breaker.succeeded()
            in_a_row = 0
        else:
            breaker.failed()
            in_a_row += 1
            closed_until = clock.now + 10.0


def test_a_half_open_breaker_lets_one_request_through_while_its_outcome_is_not_known():
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    assert not breaker.allows()
    clock.now = 10.0
    assert breaker.allows()
    assert not breaker.allows()
    breaker.succeeded()
    assert breaker.allows()
    assert breaker.allows()


@given(st.lists(ADVANCES, max_size=60))
def test_no_minute_sees_more_than_five_restarts(steps):
    clock = Clock()
    budget = RestartBudget(clock)
    spent: list[float] = []
    for advance in steps:
        clock.now += advance
        recent = [at for at in spent if clock.now - at < 60.0]
        assert (budget.wait_s() > 0) == (len(recent) >= 5)
        if not budget.wait_s():
            budget.spend()
            spent.append(clock.now)


def test_a_spent_budget_says_how_long_to_wait():
    clock = Clock()
    budget = RestartBudget(clock, limit=2, window_s=60)
    budget.spend()
    clock.now = 20.0
    budget.spend()
    clock.now = 30.0
    assert budget.wait_s() == 30.0
    clock.now = 60.0
    assert budget.wait_s() == 0.0
