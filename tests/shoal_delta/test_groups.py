import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_delta import CorruptDeltaError, coders, drift, groups
from shoal_delta.coders import Contexts, Mode, pack, unpack
from shoal_delta.decoding import reader_of
from shoal_delta.wire import varint

READ = reader_of(b"")
ROWS, COLUMNS = 400, 96


def embedding(seed=1):
    """Residuals of an embedding of which one row in twenty has moved, and their sides."""
    rng = np.random.default_rng(seed)
    moved = rng.random(ROWS) < 0.05
    numbers = rng.integers(-1, 2, (ROWS, COLUMNS)) * (rng.random((ROWS, COLUMNS)) < 0.3)
    numbers = (numbers * moved[:, None]).astype(np.int8).view(np.uint8).reshape(-1)
    return numbers, rng.integers(0, drift.CLASSES, numbers.size).astype(np.uint8)


def known_of(side):
    return lambda: Contexts(side, is_signed=True)


@given(st.binary(min_size=1, max_size=300), st.integers(1, groups.MAX_BITS), st.booleans())
@settings(max_examples=80)
def test_any_numbers_come_back_in_groups_of_any_size(data, bits, has_side):
    data += b"\1"
    side = np.frombuffer(data, np.uint8) & np.uint8(0x83) if has_side else None
    packed = coders._groups(data, Contexts(side, is_signed=True), bits)
    assert unpack(packed, len(data), READ, known_of(side)) == data


def test_rows_that_did_not_move_cost_next_to_nothing():
    numbers, side = embedding()
    contexts = Contexts(side, is_signed=True)
    packed = pack(numbers.tobytes(), contexts=contexts)
    assert packed[0] == Mode.GROUPS
    assert unpack(packed, numbers.size, READ, known_of(side)) == numbers.tobytes()
    assert len(packed) < 0.9 * len(coders._ans(numbers.tobytes(), contexts, is_quick=False))


def test_damage_is_refused_or_gives_as_many_numbers():
    numbers, side = embedding()
    packed = pack(numbers.tobytes(), contexts=Contexts(side, is_signed=True))
    for position in range(1, len(packed), 5):
        damaged = bytearray(packed)
        damaged[position] ^= 1 << position % 8
        with contextlib.suppress(CorruptDeltaError):
            assert len(unpack(bytes(damaged), numbers.size, READ, known_of(side))) == numbers.size


def packed_as(bits, flags, numbers, count=32):
    return bytes([Mode.GROUPS, bits]) + varint(count) + varint(len(flags)) + flags + numbers


RAW = bytes([Mode.RAW])


@pytest.mark.parametrize(
    "packed",
    [
        packed_as(0, RAW + b"\1" * 64, RAW + bytes(64), 64),
        packed_as(groups.MAX_BITS + 1, RAW + b"\1", RAW + bytes(64), 64),
        packed_as(5, RAW + b"\1\0", RAW + bytes(32), 31),
        packed_as(5, RAW + b"\1\1", RAW + bytes(64), 32),
        packed_as(5, RAW + b"\1\2", RAW + bytes(64)),
        packed_as(5, RAW + b"\0\0", RAW, 0),
        packed_as(5, RAW + b"\1", RAW + bytes(32)),
        packed_as(5, RAW + b"\1\0", RAW + bytes(33)),
        packed_as(5, RAW + b"\1\0", packed_as(5, RAW + b"\1", RAW + bytes(32))),
        packed_as(5, packed_as(1, RAW + b"\1", RAW + b"\1\1"), RAW + bytes(64)),
        packed_as(5, b"", RAW + bytes(64)),
    ],
)
def test_groups_that_cannot_be_are_refused(packed):
    good = packed_as(5, RAW + b"\1\0", RAW + bytes(32))
    assert unpack(good, 64, READ, known_of(None)) == bytes(64)
    with pytest.raises(CorruptDeltaError):
        unpack(packed, 64, READ, known_of(None))


def test_groups_are_refused_where_no_numbers_are():
    with pytest.raises(CorruptDeltaError):
        unpack(packed_as(5, RAW + b"\1\0", RAW + bytes(32)), 64, READ)
