"""The broker's own time over restarts, whatever the wall clock says."""

import pytest

from shoal_broker.server.durable.timeline import CLOCK_FLOOR_MS, Timeline, absence_ms

TODAY_MS = CLOCK_FLOOR_MS + 300 * 86_400_000
HOUR_MS = 3_600_000


def test_a_time_that_is_stored_and_loaded_in_another_run_is_as_far_away():
    first = Timeline(50.0, 7_000)
    stored = first.stored(80.5)
    assert stored == 37_500
    later = Timeline(900.0, 7_000 + 20_000)
    assert later.core(stored) == pytest.approx(900.0 + 10.5)
    assert first.stored(None) is None
    assert later.core(None) is None


@pytest.mark.parametrize(
    ("stopped_ms", "now_ms", "away_ms"),
    [
        (TODAY_MS, TODAY_MS + HOUR_MS, HOUR_MS),
        (TODAY_MS, TODAY_MS, 0),
        (TODAY_MS, TODAY_MS - HOUR_MS, None),
        (TODAY_MS, 1_000, None),
        (1_000, TODAY_MS, None),
        (TODAY_MS, TODAY_MS + 10_000 * HOUR_MS, None),
    ],
    ids=["as it should", "at once", "put back", "not set", "was not set", "years ahead"],
)
def test_only_a_clock_that_can_be_believed_says_how_long_it_was(stopped_ms, now_ms, away_ms):
    assert absence_ms(stopped_ms, now_ms) == away_ms
