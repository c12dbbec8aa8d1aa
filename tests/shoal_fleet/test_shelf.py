from hypothesis import given
from hypothesis import strategies as st

from shoal_fleet import shelf
from shoal_fleet.shelf import SMALL_BYTES, TURN_S, Held, plan

MIB = 1 << 20
A, B, C, D = (bytes([number]) * 32 for number in range(4))


def total(digests, sizes):
    return sum(sizes[digest] for digest in digests)


def test_small_blobs_come_before_large_ones():
    needed = {A: 5 * MIB, B: 300, C: 2 * MIB}
    found = plan(needed, {}, waited_s={}, limit_bytes=10 * MIB)
    assert found.retain == (B, C, A)
    assert (found.clear, found.wait, found.on_request) == ((), (), frozenset())


def test_what_does_not_fit_waits_and_a_smaller_one_goes_past_it():
    needed = {A: 6 * MIB, B: 5 * MIB, C: 300}
    found = plan(needed, {A: Held(6 * MIB, 1.0)}, waited_s={}, limit_bytes=10 * MIB)
    assert found.retain == (C, A)
    assert found.wait == (B,)


def test_what_is_larger_than_the_limit_goes_out_on_request():
    found = plan({A: 11 * MIB, B: 1}, {}, waited_s={}, limit_bytes=10 * MIB)
    assert (found.retain, found.on_request) == ((B,), {A})


def test_what_the_broker_refuses_loses_its_place():
    found = plan({A: 5}, {A: Held(5)}, waited_s={}, limit_bytes=10, refused={A})
    assert (found.retain, found.clear, found.on_request) == ((), (A,), {A})


def test_what_nobody_needs_is_cleared_and_makes_room():
    found = plan({B: 8 * MIB}, {A: Held(9 * MIB)}, waited_s={}, limit_bytes=10 * MIB)
    assert (found.clear, found.retain) == ((A,), (B,))


def test_a_lowered_limit_takes_places_away():
    held = {A: Held(5 * MIB, 9.0), B: Held(4 * MIB, 1.0)}
    needed = {A: 5 * MIB, B: 4 * MIB}
    found = plan(needed, held, waited_s={}, limit_bytes=6 * MIB)
    assert (found.retain, found.clear, found.wait) == ((B,), (A,), (A,))


def test_who_has_waited_a_turn_takes_the_place_of_one_that_had_its_turn():
    held = {A: Held(6 * MIB, TURN_S), B: Held(3 * MIB, TURN_S - 1)}
    needed = {A: 6 * MIB, B: 3 * MIB, C: 5 * MIB}
    found = plan(needed, held, waited_s={C: TURN_S}, limit_bytes=10 * MIB)
    assert (found.retain, found.clear, found.wait) == ((B, C), (A,), (A,))


def test_nobody_loses_a_place_in_vain():
    held = {A: Held(2 * MIB, TURN_S), B: Held(8 * MIB, 1.0)}
    needed = {A: 2 * MIB, B: 8 * MIB, C: 5 * MIB}
    found = plan(needed, held, waited_s={C: TURN_S}, limit_bytes=10 * MIB)
    assert (found.retain, found.clear) == ((A, B), ())


def test_what_comes_free_is_kept_for_who_has_waited_a_turn_but_small_ones_pass():
    needed = {A: 6 * MIB, B: 8 * MIB, C: 2 * MIB, D: SMALL_BYTES}
    held = {A: Held(6 * MIB, 1.0)}
    found = plan(needed, held, waited_s={B: TURN_S}, limit_bytes=10 * MIB)
    assert found.retain == (D, A)
    assert set(found.wait) == {B, C}


blob_sizes = st.dictionaries(
    st.binary(min_size=1, max_size=1), st.integers(0, 12 * MIB), max_size=12
)


@given(blob_sizes, blob_sizes, st.data())
def test_places_never_take_more_than_the_limit_and_everything_needed_is_somewhere(
    needed, others, data
):
    seconds = st.floats(0, 2 * TURN_S)
    held = {
        digest: Held(size, data.draw(seconds))
        for digest, size in (others | needed).items()
        if data.draw(st.booleans())
    }
    waited = {digest: data.draw(seconds) for digest in needed if digest not in held}
    refused = {digest for digest in needed if data.draw(st.booleans())}
    found = plan(needed, held, waited_s=waited, limit_bytes=10 * MIB, refused=refused)
    assert total(found.retain, needed) <= 10 * MIB
    assert {*found.retain, *found.wait, *found.on_request} == set(needed)
    assert len(found.retain) + len(found.wait) + len(found.on_request) == len(needed)
    # Whoever has no place when this is done holds no bytes.
    assert set(found.clear) == held.keys() - set(found.retain)


@given(st.lists(st.integers(1, 10 * MIB), min_size=1, max_size=10), st.data())
def test_nobody_waits_for_ever_though_nobody_ever_leaves(sizes, data):
    """Dead nodes need every blob for ever: each still has its turn, again and again."""
    needed = {bytes([number]): size for number, size in enumerate(sizes)}
    step_s = TURN_S / 3
    complete_s: dict[bytes, float] = {}
    waited_s: dict[bytes, float] = {}
    turns = dict.fromkeys(needed, 0)
    # Turns are TURN_S long, and every blob may have to see each of the others through one.
    for _ in range(3 * 4 * len(sizes) + 6):
        held = {digest: Held(needed[digest], age) for digest, age in complete_s.items()}
        found = shelf.plan(needed, held, waited_s=waited_s, limit_bytes=10 * MIB)
        for digest in found.retain:
            turns[digest] += digest not in complete_s
        complete_s = {digest: complete_s.get(digest, -step_s) + step_s for digest in found.retain}
        waited_s = {digest: waited_s.get(digest, -step_s) + step_s for digest in found.wait}
    assert all(turns.values())
