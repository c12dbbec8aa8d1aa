from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference.hurry import WINDOW_S, Hurry


def test_without_a_request_nobody_is_in_a_hurry():
    assert Hurry().shortest_s(1000.0) == float("inf")


@given(
    st.lists(st.tuples(st.floats(0, 90), st.floats(0.001, 60)), min_size=1, max_size=60),
    st.floats(0, 200),
)
def test_a_deadline_counts_for_a_window_and_never_for_three(steps, rest_s):
    hurry, now, asked = Hurry(), 1000.0, []
    for advance_s, deadline_s in steps:
        now += advance_s
        hurry.note(deadline_s, now)
        asked.append((now, deadline_s))
    now += rest_s
    shortest_s = hurry.shortest_s(now)
    lately = [deadline_s for at, deadline_s in asked if now - at < WINDOW_S]
    known = [deadline_s for at, deadline_s in asked if now - at < 3 * WINDOW_S]
    assert min(known, default=float("inf")) <= shortest_s <= min(lately, default=float("inf"))
