import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_delta import CorruptDeltaError, ans, ans_model, drift
from shoal_delta.lanes import MAX_LANE_BITS
from shoal_delta.wire import Cursor, varint

MODEL_TABLES = 2  # where the count of tables stands in a model


def residuals(size, *, seed=1, spread=1.0):
    """Small signed numbers as bytes, in stretches that move more and less, and their sides."""
    rng = np.random.default_rng(seed)
    widths = np.repeat(rng.uniform(0.2, 2, size // 300 + 1), 300)[:size] * spread
    symbols = np.rint(rng.normal(0, widths)).astype(np.int8).view(np.uint8)
    return symbols, rng.integers(0, 32, size).astype(np.uint8)


def entropy_bytes(symbols):
    counts = np.bincount(symbols, minlength=256)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / symbols.size)).sum()) / 8


def decoded(packed, size, side):
    return ans.decode(*packed, size, None if side is None else lambda: side)


@given(st.binary(min_size=1, max_size=400), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_any_bytes_come_back(data, is_signed, has_side):
    symbols = np.frombuffer(data, np.uint8)
    side = (symbols[::-1] & 31).copy() if has_side else None
    packed = ans.encode(symbols, side, is_signed=is_signed)
    assert decoded(packed, symbols.size, side).tobytes() == data


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 8191, 8192, 8193, 70_001])
def test_lanes_of_every_length_come_back(size):
    symbols, side = residuals(size)
    packed = ans.encode(symbols, side, is_signed=True)
    assert decoded(packed, size, side).tobytes() == symbols.tobytes()


@pytest.mark.parametrize("size", [9_000, 150_000])
def test_what_is_to_be_quick_takes_a_fraction_of_the_steps_and_comes_back(size):
    symbols, side = residuals(size)
    patient = ans.encode(symbols, side, is_signed=True)
    quick = ans.encode(symbols, side, is_signed=True, is_slow_allowed=False)
    assert decoded(quick, size, side).tobytes() == symbols.tobytes()
    steps = [ans.steps(Cursor(model), size) for model, _ in (patient, quick)]
    assert steps[1] <= min(steps[0] / 2, 2 * 2048)
    assert len(quick[1]) < 1.02 * len(patient[1])


@pytest.mark.parametrize("has_side", [True, False])
def test_the_states_of_many_lanes_carry_words_of_the_last_symbols(has_side):
    symbols, side = residuals(60_000)
    known = side if has_side else None
    model, stream = ans.encode(symbols, known, is_signed=True)
    lanes = 1 << (model[0] & 0x3F)
    assert lanes >= 16
    assert model[1] > 0  # how many stand behind the others
    assert decoded((model, stream), symbols.size, known).tobytes() == symbols.tobytes()
    # Half of each state tells nothing, but for what it carries.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ans, "_MIN_TAILED_LANES", 1 << 20)
        plain = ans.encode(symbols, known, is_signed=True)
    assert decoded(plain, symbols.size, known).tobytes() == symbols.tobytes()
    assert len(stream) < len(plain[1]) - lanes


def test_a_mirrored_side_makes_large_bytes_small_ones():
    symbols, _ = residuals(40_000)
    side = np.where(symbols.view(np.int8) < 0, 3 | drift.MIRRORED, 3).astype(np.uint8)
    blind = sum(map(len, ans.encode(symbols, side & drift.CLASS, is_signed=True)))
    packed = ans.encode(symbols, side, is_signed=True)
    assert sum(map(len, packed)) < 0.9 * blind
    assert decoded(packed, symbols.size, side).tobytes() == symbols.tobytes()


def test_what_is_off_by_much_is_not_mirrored():
    symbols, _ = residuals(20_000)
    symbols += np.uint8(9)
    side = np.where(np.arange(symbols.size) % 2, 3 | drift.MIRRORED, 3).astype(np.uint8)
    packed = ans.encode(symbols, side, is_signed=True)
    alone = sum(map(len, ans.encode(symbols, None, is_signed=True)))
    assert sum(map(len, packed)) < 1.02 * alone
    assert decoded(packed, symbols.size, side).tobytes() == symbols.tobytes()


def test_what_moves_in_stretches_takes_less_than_its_entropy_without_contexts():
    symbols, _ = residuals(200_000)
    model, stream = ans.encode(symbols, None, is_signed=True)
    assert len(model) + len(stream) < 0.97 * entropy_bytes(symbols)


def test_a_side_that_tells_the_symbol_makes_it_nearly_free():
    symbols, _ = residuals(50_000)
    side = np.minimum(symbols, 31).astype(np.uint8)
    alone = sum(map(len, ans.encode(symbols, None, is_signed=True)))
    assert sum(map(len, ans.encode(symbols, side, is_signed=True))) < 0.5 * alone


def test_damage_is_refused_or_gives_as_many_symbols():
    symbols, side = residuals(300)
    model, stream = ans.encode(symbols, side, is_signed=True)
    refused = 0
    for position in range(0, len(stream), 2):
        damaged = bytearray(stream)
        damaged[position] ^= 1 << position % 8
        try:
            assert decoded((model, bytes(damaged)), 300, side).size == 300
        except CorruptDeltaError:
            refused += 1
    # Every state ends where it began: damage is seen without a checksum.
    assert refused > 0.99 * len(range(0, len(stream), 2))
    for position in range(0, len(model), 3):
        for value in (0, 1, 0x7F, 0xFF):
            damaged = bytearray(model)
            damaged[position] = value
            with contextlib.suppress(CorruptDeltaError):
                assert decoded((bytes(damaged), stream), 300, side).size == 300


def test_lanes_tables_and_sides_that_cannot_be_are_refused():
    symbols, side = residuals(3000)
    model, stream = ans.encode(symbols, side, is_signed=True)
    many = bytearray(model)
    many[MODEL_TABLES] = ans_model.MAX_TABLES + 1
    cases = [
        (bytes([MAX_LANE_BITS + 1]) + model[1:], stream, side),
        (model[:1] + varint(3000) + model[2:], stream, side),
        (model[:1] + varint(3) + model[2:], stream, side),
        (bytes(many), stream, side),
        (model[:-1], stream, side),
        (model, stream[:-1], side),
        (model, stream[:3], side),
        (model, stream, None),
        (model, stream, side[:-1]),
        (model, stream, side + np.uint8(1)),
    ]
    for damaged_model, damaged_stream, other in cases:
        with pytest.raises(CorruptDeltaError):
            decoded((damaged_model, damaged_stream), 3000, other)


def test_the_logarithm_of_the_model_is_close_and_exact_at_powers_of_two():
    values = np.array([0, 1, 2, 3, 5, 1000, 4097, 1 << 20, (1 << 30) - 1])
    found = ans_model.log2(values)
    assert found[[0, 1, 2, 7]].tolist() == [0, 0, 1 << 10, 20 << 10]
    assert np.abs(found[1:] / 1024 - np.log2(values[1:])).max() < 0.002
