from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference.backlog import Backlog, Waiting

REQUESTS = st.lists(
    st.tuples(st.integers(1, 5), st.floats(0, 100), st.integers(0, 2), st.booleans()), max_size=20
)


@given(REQUESTS, st.integers(1, 8))
def test_batches_hold_every_wanted_item_once_urgent_first_then_in_order_of_arrival(
    requests, max_batch
):
    backlog = Backlog(limit=1000)
    waiting = []
    for items, deadline, priority, over in requests:
        request = Waiting([b""] * items, deadline, priority)
        backlog.push(request)
        request.over = over
        waiting.append(request)
    taken = []
    while batch := backlog.take(max_batch, now=50.0):
        assert len(batch) <= max_batch
        taken += batch
    expected = [
        (-request.priority, arrival, index)
        for arrival, request in enumerate(waiting, 1)
        for index in range(len(request.items))
        if not request.over and request.deadline > 50
    ]
    assert [(e.urgency, e.arrival, e.index) for e in taken] == sorted(expected)
    assert len(backlog) == 0


def test_a_request_that_nobody_waits_for_makes_room():
    backlog = Backlog(limit=4)
    gone = Waiting([b""] * 3, 1.0, 1)
    backlog.push(gone)
    assert not backlog.has_room(2)
    gone.over = True
    assert backlog.has_room(4)
    assert not backlog.has_room(5)


def test_what_is_put_back_comes_out_first_again():
    backlog = Backlog(limit=4)
    for _ in range(4):
        backlog.push(Waiting([b""], 1.0, 1))
    batch = backlog.take(2, now=0.0)
    backlog.put_back(batch)
    assert backlog.take(2, now=0.0) == batch
