import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shoal_delta.onnx_files import FLOAT, model, node, tensor

import shoal_delta
from shoal_delta import float_plan, float_steps, framing, low_rank, operations, segment
from shoal_delta.arithmetic import as_bytes
from shoal_delta.coders import Mode
from shoal_delta.decoding import reader_of
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.low_rank import LowRank
from shoal_delta.operations import Kind, Operation

SPECIAL = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001, 0x7F800001, 1, 0x007FFFFF, 0x00800000]
SPECIAL += [0x7F7FFFFF, 0xFF7FFFFF, 0x3F800000, 0xBF800000]

patterns = st.one_of(
    st.sampled_from(SPECIAL), st.integers(0, (1 << 32) - 1), st.integers(0x3F7FFF00, 0x3F8000FF)
)


@given(st.lists(st.tuples(patterns, patterns), min_size=1, max_size=40), st.integers(1, 254))
@settings(max_examples=200)
def test_any_numbers_come_back_from_any_others_with_any_cell(pairs, cell):
    expected, new = (np.array(side, dtype=np.uint32) for side in zip(*pairs, strict=True))
    steps, bits = float_steps.encode(expected, new, cell)
    made, used = float_steps.decode(expected, steps, as_bytes(bits), cell)
    assert (made == new).all()
    assert used == len(bits) <= 4 * len(pairs)


def moved_numbers(seed, count, spread=1e-3):
    rng = np.random.default_rng(seed)
    old = rng.normal(0, 0.05, count).astype("<f4")
    return old, (old + rng.normal(0, spread, count)).astype("<f4")


def test_numbers_of_more_than_one_block_come_back():
    old, new = (side.view("<u4") for side in moved_numbers(1, 150_000))
    steps, bits = float_steps.encode(old, new, 112)
    made, _ = float_steps.decode(old, steps, as_bytes(bits), 112)
    assert (made == new).all()


def test_steps_take_little_more_than_the_entropy_of_the_movement():
    old, new = moved_numbers(2, 60_000)
    cell, bits = float_plan.cheapest_cell(old.view("<u4"), new.view("<u4"))
    # Of a normal distribution, in units of the last place of each new number.
    floor = np.log2(1e-3 * np.sqrt(2 * np.pi * np.e) / np.spacing(np.abs(new))).mean()
    assert floor < bits / old.size < floor + 0.15
    assert 2.0 ** (cell - 127) < 1e-3


def test_what_stays_as_it_is_costs_no_bits():
    old, _ = moved_numbers(3, 500)
    steps, bits = float_steps.encode(old.view("<u4"), old.view("<u4"), 100)
    assert not steps.any()
    assert bits == b""


def test_missing_bits_and_steps_beyond_the_largest_number_are_refused():
    old, new = (side.view("<u4") for side in moved_numbers(4, 100))
    steps, bits = float_steps.encode(old, new, 112)
    with pytest.raises(CorruptDeltaError):
        float_steps.decode(old, steps, as_bytes(bits[:-1]), 112)
    largest = np.array([0x7F7FFFFF], dtype=np.uint32)
    with pytest.raises(CorruptDeltaError):
        float_steps.decode(largest, np.array([3], dtype=np.uint8), as_bytes(bytes(8)), 254)


def segment_of(steps: bytes, bits: bytes, bits_size: int) -> bytes:
    """One operation that steps from the numbers at 0, its streams as they are."""
    size = 4 * len(steps)
    plan = operations.encode([Operation(Kind.STEPPED32, size, 0, cell=112)], 0)
    return framing.joined(len(plan), [b"\0" + plan, b"\0" + steps, bits], bits_size)


def test_a_segment_with_bits_that_nothing_needs_is_refused():
    old, new = moved_numbers(5, 64)
    read = reader_of(old.tobytes())
    steps, bits = float_steps.encode(old.view("<u4"), new.view("<u4"), 112)
    data = segment_of(steps.tobytes(), b"\0" + bits, len(bits))
    assert segment.decode(data, 0, 256, read=read, old_size=256) == new.tobytes()
    for extra in (1, 60):
        more = segment_of(steps.tobytes(), b"\0" + bits + bytes(extra), len(bits) + extra)
        with pytest.raises(CorruptDeltaError):
            segment.decode(more, 0, 256, read=read, old_size=256)


def test_bits_beyond_four_bytes_a_number_are_refused_before_they_are_unpacked():
    # One step of 0, and a claim of 2^40 bits that are all the same.
    data = segment_of(bytes(1), bytes([Mode.RUN, 0]), 1 << 40)
    with pytest.raises(CorruptDeltaError, match="not what the operations need"):
        segment.decode(data, 0, 4, read=reader_of(bytes(4)), old_size=4)


@pytest.mark.parametrize("cell", [0, 255])
def test_a_cell_that_is_no_normal_number_is_refused(cell):
    raw = operations.encode([Operation(Kind.STEPPED32, 4, 0, cell=cell)], 0)
    with pytest.raises(CorruptDeltaError):
        operations.decode(raw, 0, 4, 4, 0)


def test_updates_leave_numbers_alone_that_are_not_finite_or_would_not_be():
    old = np.array([*SPECIAL, 0x3F800000], dtype=np.uint32)
    block = np.array([1], "i1").tobytes() + b"\0" + np.array([1] * old.size, "i1").tobytes()
    update = LowRank(0, 1, old.size, 1, 1, 0, 1, 127)
    made = low_rank.moved(old, update, block)
    kept = ~np.isfinite(old.view("<f4")) | (old == 0x7F7FFFFF)
    assert (made[kept] == old[kept]).all()
    assert (made[~kept] != old[~kept]).all()


def float_model(weights):
    return model(
        [node("MatMul", ["x", "w"], "y")],
        [tensor("w", FLOAT, weights.shape, weights.astype("<f4").tobytes())],
    )


def test_float_weights_that_moved_by_an_outer_product_cost_much_less_than_others():
    rng = np.random.default_rng(6)
    old = rng.normal(0, 0.05, (64, 96)).astype("<f4")
    any_way = rng.normal(0, 1e-3, old.shape)
    one_way = 1e-3 * np.outer(rng.normal(0, 1, 64), rng.normal(0, 1, 96))
    sizes = []
    for update in (any_way, one_way + any_way / 16):
        new = (old + update).astype("<f4")
        delta = shoal_delta.diff(float_model(old), float_model(new))
        assert shoal_delta.apply(float_model(old), delta) == float_model(new)
        sizes.append(len(delta))
    assert sizes[0] - sizes[1] > old.size * 3 / 8


def test_a_float_matrix_with_numbers_that_are_not_finite_round_trips():
    rng = np.random.default_rng(7)
    old = rng.normal(0, 0.05, (48, 64)).astype("<f4")
    new = (old + rng.normal(0, 1e-3, old.shape)).astype("<f4")
    new[3, 4], old[5, 6], new[7, 8] = np.nan, np.inf, -0.0
    delta = shoal_delta.diff(float_model(old), float_model(new))
    assert shoal_delta.apply(float_model(old), delta) == float_model(new)
