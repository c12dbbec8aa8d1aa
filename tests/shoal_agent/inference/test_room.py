from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference.room import WORKER_BYTES, Place, place_of_load, place_of_trial

BYTES = st.integers(0, 1 << 32)


@given(BYTES, BYTES, BYTES, st.booleans())
def test_what_serves_is_taken_away_only_where_it_is_allowed_and_nothing_else_has_room(
    room, new, resident, may_pause
):
    place = place_of_load(room, new_bytes=new, resident_bytes=resident, may_pause=may_pause)
    assert (place is Place.BESIDE) == (room >= WORKER_BYTES + new + resident)
    assert (place in {Place.INSTEAD, Place.NOWHERE}) == (room < new)
    assert place is not (Place.NOWHERE if may_pause else Place.INSTEAD)


def test_a_trial_needs_a_process_and_the_file_twice():
    needs = WORKER_BYTES + 2000
    assert place_of_trial(needs, file_bytes=1000, may_pause=False) is Place.BESIDE
    assert place_of_trial(needs - 1, file_bytes=1000, may_pause=False) is Place.NOWHERE
    assert place_of_trial(needs - 1, file_bytes=1000, may_pause=True) is Place.INSTEAD
