import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_delta import matcher
from shoal_delta.matcher import Match, matches
from shoal_delta.operations import Kind
from shoal_delta.plan import stretch

RANDOM = np.random.default_rng(11)


def edited(old: bytes, at: int, gone: int, put: bytes) -> bytes:
    return old[:at] + put + old[at + gone :]


def agree(old: bytes, new: bytes, match: Match) -> int:
    pairs = zip(new[match.start : match.end], old[match.source :], strict=False)
    return sum(a == b for a, b in pairs)


def test_an_insertion_and_a_deletion_make_three_exact_matches():
    old = RANDOM.bytes(5000)
    new = edited(edited(old, 3000, 70, b""), 1000, 0, RANDOM.bytes(100))
    assert matches(old, new) == [
        Match(0, 0, 1000),
        Match(1100, 1000, 2000),
        Match(3100, 3070, 1930),
    ]


def test_blocks_in_another_order_are_found_wherever_they_went():
    blocks = [RANDOM.bytes(size) for size in (900, 40, 2000, 333, 120)]
    order = [3, 0, 4, 2, 0, 3]
    old, new = b"".join(blocks), b"".join(blocks[k] for k in order)
    found = matches(old, new)
    assert [match.size for match in found] == [len(blocks[k]) for k in order]
    assert all(agree(old, new, match) == match.size for match in found)


def test_bytes_that_differ_inside_a_match_do_not_end_it():
    old = RANDOM.bytes(4000)
    new = bytearray(RANDOM.bytes(30) + old)
    for at in range(40, 4000, 23):
        new[at] = (new[at] + 3) & 0xFF
    assert matches(old, bytes(new)) == [Match(30, 0, 4000)]


def test_a_match_grows_past_its_seed_as_long_as_most_bytes_agree():
    old = RANDOM.bytes(2000)
    frayed = bytearray(old[500:1500])
    for at in range(0, 300, 5):
        frayed[at] ^= 0x55
    new = RANDOM.bytes(700) + bytes(frayed)
    (match,) = matches(old, new)
    assert match.shift == -200
    assert match.start in range(700, 706)
    assert match.end == 1700


def test_of_equal_places_the_one_that_goes_on_is_taken():
    page = RANDOM.bytes(100)
    old = b"".join(page + RANDOM.bytes(50) for _ in range(8))
    new = RANDOM.bytes(64) + old[450:]
    assert matches(old, new) == [Match(64, 450, len(old) - 450)]


def test_what_is_too_short_or_shares_nothing_gives_no_match():
    assert matches(b"", b"") == []
    assert matches(b"abc", b"abc") == []
    assert matches(RANDOM.bytes(3000), RANDOM.bytes(3000)) == []


@given(st.binary(max_size=600), st.binary(max_size=300), st.integers(0, 600))
@settings(max_examples=80)
def test_matches_never_overlap_nor_leave_their_files(old, put, at):
    new = edited(old, min(at, len(old)), 20, put) + old[:200]
    position = 0
    for match in matches(old, new, gain=8):
        assert match.start >= position
        assert match.size > 0
        assert 0 <= match.source <= len(old) - match.size
        position = match.end
    assert position <= len(new)


def test_an_index_that_is_thinned_out_still_finds_long_matches(monkeypatch):
    monkeypatch.setattr(matcher, "_MAX_INDEXED", 500)
    old = RANDOM.bytes(9000)
    new = RANDOM.bytes(77) + old[1234:8000]
    assert matches(old, new) == [Match(77, 1234, 6766)]


@pytest.mark.parametrize("size", [8, 31, 32, 33, 64])
def test_seeds_of_the_smallest_sizes_are_found(size):
    old = RANDOM.bytes(size)
    assert matches(old, b"x" * 40 + old, gain=8) == [Match(40, 0, size)]


def test_a_stretch_reads_the_old_file_where_it_stands():
    old, put = RANDOM.bytes(1000), RANDOM.bytes(10)
    operations = stretch(old[200:800], edited(old[200:800], 300, 0, put), 200)
    read = [(o.kind, o.source, o.size) for o in operations if o.size]
    assert read == [(Kind.COPY, 200, 300), (Kind.LITERAL, 0, 10), (Kind.COPY, 500, 300)]
