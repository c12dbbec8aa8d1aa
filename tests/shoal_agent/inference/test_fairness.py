from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference.fairness import Turns


@given(st.lists(st.floats(0.001, 1.0), min_size=2, max_size=5), st.integers(200, 400))
def test_models_that_always_have_work_get_equal_time_however_long_their_batches_are(costs, turns):
    fair = Turns()
    used = dict.fromkeys((bytes([n]) for n in range(len(costs))), 0.0)
    for _ in range(turns):
        chosen = fair.next(dict.fromkeys(used, 1))
        fair.charge(chosen, costs[chosen[0]])
        used[chosen] += costs[chosen[0]]
    assert max(used.values()) - min(used.values()) <= max(costs) + 1e-9


def test_who_was_idle_has_saved_nothing_up():
    fair = Turns()
    for _ in range(100):
        assert fair.next({b"a": 1}) == b"a"
        fair.charge(b"a", 1.0)
    order = []
    for _ in range(10):
        chosen = fair.next({b"a": 1, b"b": 1})
        fair.charge(chosen, 1.0)
        order.append(chosen)
    assert order.count(b"a") == 5


def test_the_highest_class_goes_first_whatever_it_has_cost():
    fair = Turns()
    fair.charge(b"a", 99.0)
    assert fair.next({b"a": 2, b"b": 1}) == b"a"
    assert fair.next({b"a": 1, b"b": 1}) == b"b"


def test_who_is_forgotten_begins_anew():
    fair = Turns()
    fair.charge(b"a", 99.0)
    fair.forget(b"a")
    fair.charge(b"b", 1.0)
    assert fair.next({b"a": 1, b"b": 1}) == b"a"
