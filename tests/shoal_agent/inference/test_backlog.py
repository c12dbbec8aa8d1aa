from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference.backlog import AGEING_S, Backlog, Priority, Request
from shoal_agent.inference.signature import Form, TensorInfo

FORMS = [Form((TensorInfo("x", "float32", (n,)),), ("y",)) for n in (1, 2)]


def request(rows=1, *, deadline=1.0, priority=1, arrived=0.0, form=0) -> Request:
    return Request(FORMS[form], [], rows, deadline, priority, arrived, None)


REQUESTS = st.lists(
    st.builds(
        request,
        st.integers(1, 9),
        deadline=st.floats(0, 100),
        priority=st.integers(0, 2),
        arrived=st.sampled_from([0.0, 0.1, 0.6, 3.0]),
        form=st.integers(0, 1),
    ),
    max_size=20,
)


@given(REQUESTS, st.integers(1, 8), st.sets(st.integers(0, 19)))
def test_batches_hold_every_wanted_row_once_of_one_form_urgent_first(requests, limit, over):
    backlog = Backlog(limit=1000)
    for number, one in enumerate(requests):
        backlog.push(one)
        one.over = number in over
    assert backlog.rows == sum(one.rows for one in requests)
    taken = []
    while batch := backlog.take(limit, now=50.0):
        assert len({piece.request.form for piece in batch}) == 1
        assert sum(piece.rows for piece in batch) <= limit
        taken += batch
    assert backlog.rows == 0
    assert backlog.rows_before(0) == 0
    for form in FORMS:
        mine = [piece for piece in taken if piece.request.form == form]
        wanted = [r for r in requests if r.form == form and not r.over and r.deadline > 50]
        wanted.sort(key=lambda r: r.arrived - r.priority * AGEING_S)
        assert [(r, row) for r in wanted for row in range(r.rows)] == [
            (piece.request, row) for piece in mine for row in range(piece.start, piece.stop)
        ]


@given(REQUESTS, st.integers(1, 8))
def test_a_batch_is_full_unless_nothing_of_its_form_is_left(requests, limit):
    backlog = Backlog(limit=1000)
    for one in requests:
        backlog.push(one)
    left = {
        form: sum(r.rows for r in requests if r.form == form and r.deadline > 50) for form in FORMS
    }
    while batch := backlog.take(limit, now=50.0):
        form = batch[0].request.form
        rows = sum(piece.rows for piece in batch)
        assert rows == min(limit, left[form])
        left[form] -= rows
    assert set(left.values()) == {0}


@given(REQUESTS, st.integers(1, 8), st.integers(0, 3))
def test_what_is_put_back_comes_out_first_again(requests, limit, rounds):
    backlog = Backlog(limit=1000)
    for one in requests:
        backlog.push(one)
    for _ in range(rounds):
        backlog.take(limit, now=50.0)
    batch = backlog.take(limit, now=50.0)
    before = backlog.rows
    backlog.put_back(batch)
    assert backlog.rows == before + sum(piece.rows for piece in batch)
    assert backlog.take(limit, now=50.0) == batch


def test_a_request_that_nobody_waits_for_makes_room():
    backlog = Backlog(limit=4)
    gone = request(3)
    backlog.push(gone)
    assert not backlog.has_room(2)
    gone.over = True
    assert backlog.has_room(4)
    assert not backlog.has_room(5)
    assert backlog.rows == backlog.rows_before(Priority.LOW) == 0


def test_a_low_request_that_has_waited_for_long_goes_before_a_high_one_that_comes_now():
    backlog = Backlog(limit=9)
    low = request(priority=Priority.LOW, arrived=0.0, deadline=99)
    soon = request(priority=Priority.HIGH, arrived=2 * AGEING_S - 0.01, deadline=99)
    late = request(priority=Priority.HIGH, arrived=2 * AGEING_S + 0.01, deadline=99)
    for one in (late, soon, low):
        backlog.push(one)
    assert [piece.request for piece in backlog.take(9, now=2.0)] == [soon, low, late]


def test_the_class_of_what_waits_rises_with_its_age():
    backlog = Backlog(limit=9)
    assert backlog.first_class(0.0) == -1
    backlog.push(request(priority=Priority.LOW, arrived=10.0))
    ages = (0, 0.9, 1, 1.9, 2, 99)
    assert [backlog.first_class(10 + age * AGEING_S) for age in ages] == [0, 0, 1, 1, 2, 2]


def test_the_rows_of_a_class_and_above_are_counted():
    backlog = Backlog(limit=99)
    for rows, priority in ((1, 0), (10, 1), (20, 2)):
        backlog.push(request(rows, priority=priority))
    assert [backlog.rows_before(priority) for priority in Priority] == [31, 30, 20]
