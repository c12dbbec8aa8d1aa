import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_delta import CorruptDeltaError, mixing
from shoal_delta.byte_coders import zstd_compress
from shoal_delta.coders import Mode, pack, unpack
from shoal_delta.decoding import reader_of

NAMES = [f"layer{layer}.{part}" for layer in range(12) for part in ("weight", "bias", "scale")]
OLD = " ".join(f"Conv({name}, {name}_zero_point) -> {name}_out;" for name in NAMES).encode()
NEW = OLD.replace(b"layer", b"model/block").replace(b"_out", b":0")


@given(st.binary(max_size=60), st.binary(max_size=60))
@settings(max_examples=30)
def test_any_text_is_given_back(text, prime):
    assert mixing.decode(mixing.encode(text, prime), len(text), prime) == text


@given(st.binary(max_size=30), st.integers(0, 60))
@settings(max_examples=20)
def test_any_bytes_stand_for_as_many_bytes_as_are_asked_for(packed, size):
    assert len(mixing.decode(packed, size, b"prime")) == size


def test_a_renamed_graph_is_much_shorter_than_with_the_old_one_as_a_dictionary():
    packed = mixing.encode(NEW, OLD)
    assert mixing.decode(packed, len(NEW), OLD) == NEW
    assert len(packed) < 0.7 * len(zstd_compress(NEW, OLD))


def test_text_that_repeats_costs_almost_nothing():
    assert len(mixing.encode(OLD, OLD)) < len(OLD) // 25


def test_the_packer_chooses_it_for_text_and_says_where_the_old_text_stands():
    old = b"x" * 100 + OLD
    packed = pack(NEW, read=reader_of(old), prime=[(100, len(OLD))])
    assert packed[0] == Mode.MIXED
    assert unpack(packed, len(NEW), reader_of(old)) == NEW


def test_more_text_than_the_limit_is_neither_made_nor_read():
    old = np.random.default_rng(1).bytes(mixing.MAX_BYTES)
    packed = pack(NEW, read=reader_of(old), prime=[(0, mixing.MAX_BYTES - len(NEW) + 1)])
    assert packed[0] != Mode.MIXED
    for size, prime in ((mixing.MAX_BYTES + 1, b"\0"), (10, b"\1\0\xff\xff\x03")):
        with pytest.raises(CorruptDeltaError):
            unpack(bytes([Mode.MIXED]) + prime + b"abc", size, reader_of(old))


def test_the_chances_are_whole_numbers_that_a_stranger_can_make():
    squash, stretch = mixing.squashed(), mixing.stretched()
    assert (squash[0], squash[2047], squash[4094]) == (1, 2047, 4094)
    assert squash == sorted(squash)
    assert all(squash[x + 2047] >= chance for chance, x in enumerate(stretch) if x < 2047)
