from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference.room import WORKER_BYTES, Place, place_of_load, place_of_trial

BYTES = st.integers(0, 1 << 32)


@given(BYTES, BYTES, BYTES)
def test_what_serves_goes_first_only_where_nothing_else_has_room(room, new, resident):
    place = place_of_load(room, new_bytes=new, resident_bytes=resident)
    assert (place is Place.BESIDE) == (room >= WORKER_BYTES + new + resident)
    assert (place is Place.INSTEAD) == (room < new)


def test_a_trial_needs_a_process_and_the_file_twice():
    needs = WORKER_BYTES + 2000
    assert place_of_trial(needs, file_bytes=1000) is Place.BESIDE
    assert place_of_trial(needs - 1, file_bytes=1000) is Place.INSTEAD
