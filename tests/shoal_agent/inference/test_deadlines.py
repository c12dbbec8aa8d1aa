from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference.backlog import Request
from shoal_agent.inference.deadlines import TICK_S, Deadlines
from shoal_agent.inference.signature import item_form


class Timers:
    """An event loop's timers by hand: `now` moves, what is due is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.armed: list[Timer] = []
        self.calls = 0

    def call_at(self, when, callback):
        timer = Timer(self, when, callback)
        self.armed.append(timer)
        self.calls += 1
        return timer

    def move_to(self, now: float) -> None:
        while self.armed and min(t.when for t in self.armed) <= now:
            timer = min(self.armed, key=lambda t: t.when)
            self.armed.remove(timer)
            self.now = max(self.now, timer.when)
            timer.callback()
        self.now = now


class Timer:
    def __init__(self, timers, when, callback) -> None:
        self.timers, self.when, self.callback = timers, when, callback

    def cancel(self) -> None:
        self.timers.armed.remove(self)


def request(deadline: float) -> Request:
    return Request(item_form(4), [], 1, deadline, 1, 0.0, None)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5), st.booleans()), max_size=30).map(
        lambda steps: sorted(steps, key=lambda step: step[0])
    )
)
def test_each_is_called_back_for_once_never_early_at_most_a_tick_and_a_half_late(steps):
    timers, late = Timers(), {}
    deadlines = Deadlines(timers, lambda r: late.setdefault(r, []).append(timers.now))
    watched = []
    for at, lasts, answered in steps:
        timers.move_to(at)
        one = request(at + lasts)
        deadlines.watch(one)
        if answered:
            deadlines.forget(one)
        else:
            watched.append(one)
        assert len(timers.armed) <= 1
    timers.move_to(20.0)
    assert late.keys() == set(watched)
    for one in watched:
        (when,) = late[one]
        assert one.deadline <= when + 1e-9
        assert when <= one.deadline + 1.5 * TICK_S
    assert not timers.armed


def test_a_thousand_requests_that_are_answered_cost_a_timer_a_tick_at_most():
    timers = Timers()
    deadlines = Deadlines(timers, lambda r: None)
    for number in range(1000):
        timers.move_to(number * 0.001)
        one = request(number * 0.001 + 1.0)
        deadlines.watch(one)
        deadlines.forget(one)
    assert timers.calls < 10
