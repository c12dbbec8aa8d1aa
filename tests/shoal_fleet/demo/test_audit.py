"""Counting: from the lines that a device writes to accuracy and loop steps."""

import json

import pytest

from shoal_fleet.demo.audit import DISPLAY_CHANNEL, DeviceLog, accuracy, by_key, percentile
from shoal_fleet.demo.errors import DemoError

V1, V2 = "11111111", "22222222"


def sample(seq: int, row: int) -> dict:
    return {"t": float(seq), "kind": "sample", "seq": seq, "row": row}


def shown(seq: int, value: int, release: str = V1, *, at_s: float = 0.0, channel=DISPLAY_CHANNEL):
    return {
        "t": at_s,
        "kind": "set",
        "channel": channel,
        "value": value,
        "context": [seq, release],
    }


@pytest.fixture
def device(tmp_path):
    """A log and a function that appends events to it."""
    log = DeviceLog(tmp_path / "meter.jsonl")

    def write(*events: dict) -> DeviceLog:
        with log.path.open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)
        log.refresh()
        return log

    return write


def test_a_log_that_is_not_there_yet_is_empty(tmp_path):
    log = DeviceLog(tmp_path / "none.jsonl")
    log.refresh()
    assert (log.sampled, log.shown, log.answered) == ({}, [], 0)


def test_what_is_added_is_read_once_and_half_a_line_is_left_for_later(device):
    log = device(sample(1, 10), {"t": 1, "kind": "answered", "seq": 1})
    whole = json.dumps(sample(2, 11))
    with log.path.open("a") as file:
        file.write(whole[:9])
    log.refresh()
    assert log.sampled == {1: 10}
    with log.path.open("a") as file:
        file.write(whole[9:] + "\n")
    log.refresh()
    log.refresh()
    assert log.sampled == {1: 10, 2: 11}
    assert log.answered == 1


def test_only_answers_on_the_display_are_counted_as_shown(device):
    log = device(
        sample(1, 10),
        shown(1, 7),
        shown(1, 8, channel=9),
        {"t": 0, "kind": "set", "channel": DISPLAY_CHANNEL, "value": 1, "context": []},
        {"t": 0, "kind": "safe"},
        {"t": 0, "kind": "start", "boot": 1},
    )
    assert [one.value for one in log.shown] == [7]
    assert log.safe_states == 1


def test_the_first_answer_of_a_release_counts_and_repeats_do_not(device):
    log = device(sample(1, 10), sample(2, 10), shown(1, 7), shown(2, 8), shown(2, 9, V2))
    assert log.rows_shown(V1) == {10: 7}
    assert log.rows_shown(V2) == {10: 9}


def test_loop_steps_are_counted_in_their_time(device):
    log = device(sample(1, 0), *(shown(1, 0, at_s=second) for second in (1.0, 2.0, 3.0)))
    assert log.shown_between(1.5, 3.0) == 2


def test_accuracy_is_counted_over_all_devices_and_rows(device):
    log = device(sample(1, 0), sample(2, 1), shown(1, 3), shown(2, 4))
    assert accuracy([log], [3, 4], V1) == 1.0
    assert accuracy([log], [3, 9], V1) == 0.5


def test_accuracy_refuses_to_leave_a_digit_out(device):
    log = device(sample(1, 0), shown(1, 3))
    with pytest.raises(DemoError, match="meter: 1 of 2 digits were classified"):
        accuracy([log], [3, 4], V1)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)]
)
def test_a_percentile_is_one_of_the_values(share, expected):
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected
    assert percentile([3.0], share) == 3.0


def test_sums_come_in_the_order_of_their_keys():
    assert list(by_key([("b", 1), ("a", 2), ("b", 3)]).items()) == [("a", 2), ("b", 4)]
