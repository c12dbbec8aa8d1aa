"""What agrees, and what follows of too little of it."""

import struct

import pytest

from shoal_agent.inference.agreement import Measure, Tally, agreeing_rows
from shoal_agent.inference.signature import Form, TensorInfo, item_form
from shoal_agent.inference.tensors import Tensor
from shoal_contract.release import ShadowTable

FORM = Form((TensorInfo("x", "float32", (4,)),), ("y",))


def floats(*rows: tuple[float, ...]) -> list[Tensor]:
    values = [value for row in rows for value in row]
    return [Tensor("float32", (len(rows), len(rows[0])), struct.pack(f"<{len(values)}f", *values))]


def test_labels_agree_by_their_names_whatever_their_order_and_no_label_agrees_with_nothing():
    measure = Measure("top-1", 0.99, ("cat", "dog"), ("dog", "cat"))
    old, new = (
        [Tensor("int32", (3,), struct.pack("<3i", *best))] for best in ((0, 1, -1), (1, 1, -1))
    )
    assert agreeing_rows(measure, item_form(4), 3, old, new) == 1


def test_the_largest_value_of_each_row_is_compared_and_only_in_the_rows_that_were_run():
    old, new = floats((1, 5, 2), (9, 5, 2), (9, 1, 1)), floats((0, 3, 1), (1, 5, 2))
    assert agreeing_rows(Measure("top-1", 0.99), FORM, 2, old, new) == 1


@pytest.mark.parametrize(
    ("old", "new", "agrees"),
    [
        ((1.0, 2.0), (2.0, 4.0), True),
        ((1.0, 0.0), (0.0, 1.0), False),
        ((0.0, 0.0), (0.0, 0.0), True),
        ((0.0, 0.0), (1.0, 0.0), False),
        ((1.0, 2.0), (float("nan"), 2.0), False),
        ((5.0,), (5.0,), True),
        ((5.0,), (6.0,), False),
        ((1.0, 2.0), (1.0, 2.0, 3.0), False),
    ],
)
def test_vectors_agree_by_their_cosine(old, new, agrees):
    assert agreeing_rows(Measure("cosine", 0.99), FORM, 1, floats(old), floats(new)) == agrees


def tally(**options: object) -> Tally:
    return Tally(ShadowTable(requests=10, least=4, **options), Measure("top-1", 0.99))


def test_too_little_agreement_is_refused_with_the_figures():
    made = tally(agreement=0.9)
    for _ in range(8):
        made.count(1, 1)
    made.count(2, 0)
    assert "8 of 10 rows of 9 live requests agree" in (made.why_refused() or "")


def test_enough_agreement_passes():
    made = tally(agreement=0.8)
    for n in range(10):
        made.count(1, int(n > 1))
    assert made.is_enough
    assert made.why_refused() is None


@pytest.mark.parametrize("without", ["pass", "refuse"])
def test_too_little_traffic_is_what_the_release_says_it_is(without):
    made = tally(without=without)
    made.count(1, 0)
    reason = made.why_refused()
    assert (reason is not None) == (without == "refuse")
    assert reason is None or "1 live requests in 300 s, 4 are needed" in reason


def test_three_failures_are_enough():
    made = tally()
    for _ in range(3):
        assert not made.is_enough
        made.count_failure(1)
    assert made.is_enough
    assert "failed at 3 live requests" in (made.why_refused() or "")
