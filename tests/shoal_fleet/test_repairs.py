from hypothesis import given
from hypothesis import strategies as st

from shoal_fleet.repairs import AGAIN_AFTER_S, ASKED_AT_MOST, Repairs

BLOB, OTHER = b"b" * 32, b"o" * 32


def test_what_many_ask_for_is_one_wish():
    repairs = Repairs()
    for _ in range(300):
        repairs.ask(BLOB, [4, 2], count=5)
    assert repairs.blobs(0.0) == [BLOB]
    assert repairs.of(BLOB, at_most=64) == [4, 2]


def test_who_asks_just_after_it_was_sent_gets_it_with_that_message():
    repairs = Repairs()
    repairs.ask(BLOB, [1], count=5)
    repairs.sent(BLOB, [1], 10.0)
    repairs.ask(BLOB, [1, 3], count=5)
    assert repairs.blobs(10.5) == [BLOB]
    assert repairs.of(BLOB, at_most=64) == [3]
    repairs.sent(BLOB, [3], 10.5)
    repairs.ask(BLOB, [1], count=5)
    assert repairs.blobs(10.0 + AGAIN_AFTER_S) == [BLOB]
    assert repairs.of(BLOB, at_most=64) == [1]


def test_chunks_that_do_not_exist_are_not_kept_and_wishes_are_bounded():
    repairs = Repairs()
    repairs.ask(BLOB, [-1, 5, 1 << 80], count=5)
    assert not len(repairs)
    repairs.ask(BLOB, range(1 << 20), count=1 << 20)
    assert len(repairs) == ASKED_AT_MOST


wishes = st.lists(st.tuples(st.sampled_from([BLOB, OTHER]), st.integers(0, 9)), max_size=60)


@given(wishes, st.integers(1, 4))
def test_every_wish_is_handed_out_once(asked, at_most):
    repairs = Repairs()
    for digest, index in asked:
        repairs.ask(digest, [index], count=10)
    handed_out = []
    while names := repairs.blobs(0.0):
        for digest in names:
            indexes = repairs.of(digest, at_most=at_most)
            assert len(indexes) <= at_most
            handed_out += [(digest, index) for index in indexes]
            repairs.sent(digest, indexes, 0.0)
    assert sorted(handed_out) == sorted(set(asked))
