import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shoal_delta import row_reference

from shoal_delta import CorruptDeltaError, row_streams
from shoal_delta.ans_model import log2
from shoal_delta.row_coder import MAX_COLUMNS, MAX_LANE_BITS, Matrix, effort
from shoal_delta.row_prediction import Covariance
from shoal_delta.spread_tables import FRACTIONS, MAX_REACH, SPREADS, SpreadTables

ALWAYS = 1 << 40
"""So many bytes are always to be beaten: an encoder that must not give up."""
LANES, REACH, SHAPE, STRENGTH = range(4)  # where they stand in the model of one matrix


def outer_products(rows, columns, rank, *, seed=1, noise=0.3):
    """What a merged LoRA leaves: a few outer products, rounded."""
    rng = np.random.default_rng(seed)
    whole = rng.normal(0, 1, (rows, rank)) @ rng.normal(0, 1, (rank, columns))
    return np.rint(whole + rng.normal(0, noise, whole.shape)).astype(np.int8).view(np.uint8)


def packed(numbers, sizes, expected=None):
    coded = row_streams.encode(numbers.reshape(-1), sizes, expected, ALWAYS)
    assert coded is not None
    return coded


def unpacked(coded, sizes, expected=None):
    return row_streams.decode(*coded, [size for size, _ in sizes], expected)


def entropy_bytes(numbers):
    counts = np.bincount(numbers.reshape(-1), minlength=256)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / numbers.size)).sum()) / 8


@given(
    st.lists(st.tuples(st.binary(min_size=2, max_size=90), st.integers(0, 40)), min_size=1),
    st.booleans(),
    st.data(),
)
@settings(max_examples=25)
def test_any_bytes_come_back_in_any_matrices(pieces, is_expected, data):
    numbers = np.frombuffer(b"".join(piece for piece, _ in pieces), np.uint8)
    sizes = [(len(piece), columns) for piece, columns in pieces]
    sizes[0] = (sizes[0][0], 2)
    expected = None
    if is_expected:
        raw = data.draw(st.binary(min_size=numbers.size, max_size=numbers.size))
        expected = np.frombuffer(raw, np.int8)
    coded = packed(numbers, sizes, expected)
    assert unpacked(coded, sizes, expected).tobytes() == numbers.tobytes()


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 512), (512, 2), (40, 40), (7, 300), (100, 513), (9, 64), (64, 9)]
)
def test_matrices_of_every_shape_come_back(rows, columns):
    numbers = outer_products(rows, columns, 2)
    sizes = [(numbers.size, columns)]
    assert unpacked(packed(numbers, sizes), sizes).tobytes() == numbers.tobytes()


def test_a_matrix_that_ends_within_a_row_comes_back():
    numbers = outer_products(40, 30, 2).reshape(-1)[:-17]
    sizes = [(100, 30), (numbers.size - 100, 30)]
    assert unpacked(packed(numbers, sizes), sizes).tobytes() == numbers.tobytes()


def test_a_few_outer_products_take_less_than_half_of_their_entropy():
    numbers = outer_products(128, 64, 3)
    model, stream = packed(numbers, [(numbers.size, 64)])
    assert len(model) + len(stream) < 0.5 * entropy_bytes(numbers)


def test_what_is_expected_is_not_paid_for_again():
    rng = np.random.default_rng(3)
    expected = rng.integers(-100, 100, 4096).astype(np.int8)
    numbers = np.rint(expected / 16 + rng.normal(0, 0.2, 4096)).astype(np.int8).view(np.uint8)
    sizes = [(numbers.size, 64)]
    blind = sum(map(len, packed(numbers, sizes)))
    coded = packed(numbers, sizes, expected)
    assert sum(map(len, coded)) < 0.6 * blind
    assert unpacked(coded, sizes, expected).tobytes() == numbers.tobytes()


def test_an_encoder_without_hope_gives_up():
    noise = np.random.default_rng(1).integers(0, 256, 2000).astype(np.uint8)
    assert row_streams.encode(noise, [(2000, 50)], None, 1500) is None
    assert row_streams.encode(noise, [(2000, 0)], None, ALWAYS) is None


def test_damage_is_refused_or_gives_as_many_numbers():
    numbers = outer_products(30, 24, 2)
    sizes = [(numbers.size, 24)]
    model, stream = packed(numbers, sizes)
    refused = tried = 0
    for position in range(0, len(stream), 9):
        damaged = bytearray(stream)
        damaged[position] ^= 1 << position % 8
        tried += 1
        try:
            assert unpacked((model, bytes(damaged)), sizes).size == numbers.size
        except CorruptDeltaError:
            refused += 1
    # Every state ends where it began: damage is seen without a checksum.
    assert refused > 0.95 * tried
    for position in range(len(model)):
        for value in (0, 1, 2, 9, 0x7F, 0xFF):
            damaged = bytearray(model)
            damaged[position] = value
            with contextlib.suppress(CorruptDeltaError):
                assert unpacked((bytes(damaged), stream), sizes).size == numbers.size


def test_streams_that_are_cut_or_torn_are_refused():
    numbers = outer_products(30, 24, 2)
    sizes = [(numbers.size, 24)]
    model, stream = packed(numbers, sizes)
    for cut in (stream[:-1], stream[:-2], stream[:3], b"", stream + bytes(2)):
        with pytest.raises(CorruptDeltaError):
            unpacked((model, cut), sizes)


def test_lanes_reaches_and_matrices_that_cannot_be_are_refused():
    numbers = outer_products(30, 24, 2)
    sizes = [(numbers.size, 24)]
    model, stream = packed(numbers, sizes)
    assert not model[SHAPE] & 1
    for position, value in [
        (LANES, MAX_LANE_BITS + 1),
        (REACH, 0),
        (REACH, MAX_REACH + 1),
        (SHAPE, 0),
        (SHAPE, 7 << 1 | 1),
        (STRENGTH, 16),
    ]:
        damaged = bytearray(model)
        damaged[position] = value
        with pytest.raises(CorruptDeltaError):
            unpacked((bytes(damaged), stream), sizes)
    with pytest.raises(CorruptDeltaError):
        unpacked((model + b"\0", stream), sizes)
    with pytest.raises(CorruptDeltaError):
        unpacked((model, stream), [*sizes, (10, 0)])


def test_what_would_take_minutes_is_refused_before_it_is_begun():
    one_lane, wide = bytes([0, 8, 2, 0]), bytes([0, 8, 0x80, 0x08, 0])
    for model in (one_lane, wide):
        with pytest.raises(CorruptDeltaError):
            row_streams.decode(model, bytes(4), [1 << 20], None)
    # Few steps, but as many factorings of large matrices.
    many = [Matrix(16 * MAX_COLUMNS, MAX_COLUMNS, False, 0)] * 128
    assert sum(matrix.columns * 2 for matrix in many) < row_streams.MAX_EFFORT < effort(many, 64)


def test_extreme_numbers_and_expectations_stay_within_64_bits():
    numbers = np.where(np.arange(64 * 96) % 5 < 2, 0x80, 0x7F).astype(np.uint8)
    expected = np.where(np.arange(numbers.size) % 3, -128, 127).astype(np.int8)
    sizes = [(numbers.size, 64)]
    with np.errstate(all="raise"):
        coded = packed(numbers, sizes, expected)
        assert unpacked(coded, sizes, expected).tobytes() == numbers.tobytes()


def test_tables_begin_around_their_centre_and_fill_their_range():
    for reach in (1, 8, MAX_REACH):
        tables = SpreadTables(reach)
        lengths = np.diff(tables.ends, axis=1)
        assert lengths.min() >= 1
        assert tables.ends[:, 0].max() == 0
        assert (tables.ends[:, -1] == 1 << 14).all()
        # Narrow ones are sure; wide ones lean to the side of their fraction.
        assert (lengths[: FRACTIONS // 2, reach] > 12_000).all()
        wide = lengths[12 * FRACTIONS : 20 * FRACTIONS]
        assert (wide[:, reach + 1] >= wide[:, reach - 1]).all()
        assert len(lengths) == SPREADS * FRACTIONS


def test_a_row_that_follows_the_others_is_predicted():
    pattern = np.array([32, -48, 16, 64, -16])
    known = Covariance(5, 8)
    known.add(np.outer([1, -1, 2, -2, 1, 1, -1, 2], pattern))
    model = known.model()
    assert model.coefficients is not None
    # The first column says how far this row goes.
    predicted = pattern[0] * model.coefficients[:, 0] / (1 << 16)
    assert np.sign(predicted[1:]).tolist() == np.sign(pattern[1:]).tolist()
    assert model.variance[3] / pattern[3] ** 2 < 0.5 * model.variance[0] / pattern[0] ** 2


def test_logarithms_are_what_the_format_says():
    """Of the 13 leading bits, rounded down to 1/16: no table, no float is needed."""
    values = np.concatenate([np.arange(1, 1 << 13), np.arange(1 << 12, 1 << 13) << 20])
    found = log2(values) >> 6
    for value, lg in zip(values.tolist(), found.tolist(), strict=True):
        assert 1 << lg <= value**16 < 1 << lg + 1


@pytest.mark.parametrize("bytes_a_lane", [1 << 20, 40])
def test_a_decoder_written_from_the_documentation_finds_the_same_numbers(bytes_a_lane, monkeypatch):
    monkeypatch.setattr(row_streams, "_BYTES_A_LANE", bytes_a_lane)
    rng = np.random.default_rng(4)
    pieces = [
        outer_products(37, 20, 2).reshape(-1)[:-13],
        outer_products(9, 30, 1, noise=2).reshape(-1),
        rng.integers(0, 256, 50).astype(np.uint8),
        outer_products(30, 12, 1).reshape(-1),
    ]
    numbers = np.concatenate(pieces)
    sizes = list(zip(map(len, pieces), (20, 30, 1, 12), strict=True))
    expected = rng.integers(-7, 8, numbers.size).astype(np.int8)
    model, stream = packed(numbers, sizes, expected)
    assert model[LANES] == (0 if bytes_a_lane > numbers.size else 3)
    found = row_reference.decode(model, stream, [size for size, _ in sizes], expected.tolist())
    assert found == numbers.view(np.int8).tolist()
