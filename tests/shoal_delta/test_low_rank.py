from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shoal_delta.onnx_files import INT8, UINT8, model, node, tensor

import shoal_delta
from shoal_delta import contexts, global_block, low_rank, low_rank_fit, operations
from shoal_delta.decoding import reader_of
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.low_rank import MAX_RANK, MAX_SHIFT, LowRank
from shoal_delta.operations import Kind, Operation, Scaling
from shoal_delta.wire import Cursor


def block_of(lefts, rights, shifts, width):
    """The global block [left, shifts, right], and the update that reads it."""
    kind = f"<i{width}"
    left = np.asarray(lefts, kind)
    right = np.asarray(rights, kind)
    rank, rows = left.shape
    update = LowRank(0, rows, right.shape[1], rank, width, 0, left.nbytes, 0)
    return left.tobytes() + bytes(shifts) + right.tobytes(), update


@st.composite
def factored(draw):
    width = draw(st.sampled_from([1, 2]))
    rank, rows, columns = (draw(st.integers(1, n)) for n in (4, 9, 9))
    numbers = st.integers(-(1 << 8 * width - 1), (1 << 8 * width - 1) - 1)
    lefts = [draw(st.lists(numbers, min_size=rows, max_size=rows)) for _ in range(rank)]
    rights = [draw(st.lists(numbers, min_size=columns, max_size=columns)) for _ in range(rank)]
    shifts = [draw(st.integers(0, MAX_SHIFT)) for _ in range(rank)]
    return lefts, rights, shifts, width, draw(st.integers(-70, 70))


def product(lefts, rights, shifts, exponent):
    """Row by row, in fractions: nothing can be rounded."""
    return [
        Fraction(2) ** exponent
        * sum(
            left[row] * right[column] << shift
            for left, right, shift in zip(lefts, rights, shifts, strict=True)
        )
        for row in range(len(lefts[0]))
        for column in range(len(rights[0]))
    ]


@given(factored(), st.data())
@settings(max_examples=80)
def test_an_update_is_the_exact_product_of_its_factors_wherever_it_begins(parts, data):
    lefts, rights, shifts, width, exponent = parts
    block, update = block_of(lefts, rights, shifts, width)
    wanted = product(lefts, rights, shifts, exponent)
    first = data.draw(st.integers(0, len(wanted) - 1))
    count = data.draw(st.integers(1, len(wanted) - first))
    update = replace(update, first=first, exponent=exponent)
    made = np.concatenate([part for _, part in low_rank.updates(update, count, block)])
    assert [Fraction(value) for value in made] == wanted[first : first + count]
    fixed = low_rank.fixed_updates(update, count, block)
    assert fixed.tolist() == [
        max(-32767, min(32767, value.__floor__())) for value in wanted[first : first + count]
    ]


def test_the_largest_factors_there_can_be_are_still_multiplied_exactly():
    lefts = np.full((MAX_RANK, 3), -(1 << 15))
    rights = np.full((MAX_RANK, 5), -(1 << 15))
    rights[:, 1:] += np.arange(4)
    shifts = [MAX_SHIFT] * MAX_RANK
    block, update = block_of(lefts, rights, shifts, 2)
    made = np.concatenate([part for _, part in low_rank.updates(update, 15, block)])
    assert [int(v) for v in made] == product(lefts.tolist(), rights.tolist(), shifts, 0)


def test_an_update_of_many_rows_is_made_in_blocks_that_join():
    rng = np.random.default_rng(1)
    lefts, rights = rng.integers(-9, 9, (2, 700)), rng.integers(-9, 9, (2, 300))
    block, update = block_of(lefts, rights, [0, 3], 1)
    wanted = (lefts.T @ (rights << np.array([[0], [3]]))).reshape(-1)
    slices = list(low_rank.updates(replace(update, first=150), 200_000, block))
    assert len(slices) > 2
    made = np.empty(200_000)
    for here, part in slices:
        made[here] = part
    assert (made == wanted[150:200_150]).all()


GOOD = LowRank(5, 20, 30, 3, 1, 10, 80, -4)


@given(st.sampled_from([GOOD, replace(GOOD, width=2, left=0, right=140, first=599)]))
def test_an_update_is_read_back_as_it_was_written(update):
    assert low_rank.decode(Cursor(low_rank.encode(update)), 1, 400) == update


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0},
        {"rank": MAX_RANK + 1, "left": 0, "right": 0},
        {"rows": 0},
        {"columns": 0},
        {"rows": (1 << 24) + 1, "columns": 1, "rank": 1, "left": 0},
        {"columns": 1 << 17, "rank": 3},
        {"first": 597},
        {"left": 341},
        {"right": 308},
        {"exponent": 161},
        {"exponent": -161},
        {"width": 2, "left": 281},
    ],
)
def test_an_update_that_points_outside_or_is_too_large_is_refused(change):
    low_rank.decode(Cursor(low_rank.encode(GOOD)), 4, 400)
    with pytest.raises(CorruptDeltaError):
        low_rank.decode(Cursor(low_rank.encode(replace(GOOD, **change))), 4, 400)


def test_the_most_columns_that_a_rank_may_have_are_those_that_fit_in_two_mebibytes():
    most = LowRank(0, 1, low_rank.MAX_RIGHT // 2, 2, 1, 0, 2, 0)
    size = 1 << 24
    assert low_rank.decode(Cursor(low_rank.encode(most)), 1, size) == most
    more = replace(most, columns=most.columns + 1)
    with pytest.raises(CorruptDeltaError):
        low_rank.decode(Cursor(low_rank.encode(more)), 1, size)


def test_a_shift_that_would_not_be_exact_is_refused():
    block, update = block_of([[1]], [[1]], [MAX_SHIFT + 1], 1)
    with pytest.raises(CorruptDeltaError):
        list(low_rank.updates(update, 1, block))


def test_only_operations_that_predict_may_have_an_update():
    plan = [Operation(Kind.SUBTRACT, 8, 0, low_rank=LowRank(0, 2, 4, 1, 1, 0, 2, 0))]
    raw = operations.encode(plan, 0)
    assert operations.decode(raw, 0, 8, 8, 99) == plan
    for kind in (Kind.COPY, Kind.FLOAT32, Kind.INTEGER16, Kind.LITERAL, Kind.GLOBAL):
        with pytest.raises(CorruptDeltaError):
            operations.decode(bytes([raw[0] & ~15 | kind]) + raw[1:], 0, 8, 8, 99)


def scaled_matrix(seed, rows, columns, rank, noise):
    rng = np.random.default_rng(seed)
    strengths = 300 * 0.7 ** np.arange(rank)
    planted = (rng.normal(0, 1, (rows, rank)) * strengths) @ rng.normal(0, 1, (rank, columns))
    return np.rint(planted + rng.normal(0, noise, (rows, columns))).astype(np.int64)


def test_the_order_in_which_products_are_added_up_changes_nothing():
    # With its columns in another order every sum over columns is added up in another order.
    matrix = scaled_matrix(2, 40, 90, 5, 50)
    order = np.random.default_rng(3).permutation(90)
    found, other = low_rank_fit.basis(matrix), low_rank_fit.basis(matrix[:, order])
    assert found is not None
    assert other is not None
    assert found.strengths == other.strengths
    assert (found.left == other.left).all()
    assert (found.right[order] == other.right).all()


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_planted_update_is_found_up_to_what_its_noise_hides(rank):
    matrix = scaled_matrix(4, 120, 80, rank, 30)
    found = low_rank_fit.basis(matrix)
    assert found is not None
    exact = np.linalg.svd(matrix.astype(float), compute_uv=False)[:rank] ** 2
    assert np.allclose(found.strengths[:rank], exact, rtol=1e-3)
    factors = low_rank_fit.factors(found, rank)
    assert factors is not None
    update = factors.placed(0)
    made = low_rank.fixed_updates(replace(update), matrix.size, factors.data)
    assert (matrix - made.reshape(matrix.shape)).std() < 1.15 * 30


def test_noise_and_nothing_have_no_update():
    rng = np.random.default_rng(5)
    assert low_rank_fit.basis(np.rint(rng.normal(0, 99, (200, 100))).astype(np.int64)) is None
    assert low_rank_fit.basis(np.zeros((20, 30), dtype=np.int64)) is None
    assert low_rank_fit.basis(np.ones((1, 30), dtype=np.int64)) is None


def test_an_exactly_low_rank_matrix_with_empty_rows_is_found():
    matrix = scaled_matrix(6, 60, 50, 2, 0)
    matrix[10:20] = 0
    found = low_rank_fit.basis(matrix)
    assert found is not None
    assert sum(found.strengths[:2]) == pytest.approx(found.energy, rel=1e-4)
    factors = low_rank_fit.factors(found, 2)
    assert factors is not None
    assert factors.low_rank.width == 2
    made = low_rank.fixed_updates(factors.placed(0), matrix.size, factors.data)
    assert np.abs(matrix.reshape(-1) - made).max() <= 4


def test_numbers_that_cannot_be_multiplied_exactly_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="too large"):
        low_rank_fit.basis(np.full((8, 8), 1 << 30))


@pytest.mark.parametrize("kind", [Kind.SUBTRACT, Kind.SCALED_S8, Kind.SCALED_U8])
def test_an_operation_cut_anywhere_predicts_the_same(kind):
    rng = np.random.default_rng(7)
    old = rng.bytes(600)
    factors, update = block_of(
        rng.integers(-9, 9, (2, 20)), rng.integers(-9, 9, (2, 30)), [1, 0], 1
    )
    scales = rng.uniform(0.01, 0.02, 40).astype("<f4").tobytes()
    scaling = Scaling(0, 30, 20, 600, len(factors), 0, 1) if kind is not Kind.SUBTRACT else None
    whole = Operation(kind, 600, 0, scaling, low_rank=replace(update, exponent=1))
    read = reader_of(old + scales[:80])
    known = contexts.expected(whole, read, factors + scales[80:])
    assert len(set(known.side.tolist())) > 8
    for size in (1, 29, 30, 217, 599):
        parts = whole.split(size)
        made = [contexts.expected(part, read, factors + scales[80:]) for part in parts]
        assert (np.concatenate([part.weights for part in made]) == known.weights).all()
        assert (np.concatenate([part.side for part in made]) == known.side).all()


def matrix_model(levels, dtype, scale):
    dims = levels.shape
    kind = np.int8 if dtype == INT8 else np.uint8
    return model(
        [node("DequantizeLinear", ["w", "s"], "y")],
        [
            tensor("w", dtype, dims, levels.astype(kind).tobytes()),
            tensor("s", 1, (1,), np.float32(scale).astype("<f4").tobytes()),
        ],
    )


def tuned_pair(seed, dtype, *, rank, scale_drift=1.0):
    """An INT8 matrix and itself with an update of that rank (0: of full rank), equally strong."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 20, (96, 128))
    update = rng.normal(0, 1, (96, 128))
    if rank:
        update = rng.normal(0, 1, (96, rank)) @ rng.normal(0, 1, (rank, 128)) / np.sqrt(rank)
    zero = 0 if dtype == INT8 else 128
    old, new = (
        np.clip(np.rint(values) + zero, zero - 128, zero + 127)
        for values in (weights, (weights + update) / scale_drift)
    )
    return matrix_model(old, dtype, 0.01), matrix_model(new, dtype, 0.01 * scale_drift)


@pytest.mark.parametrize(("dtype", "scale_drift"), [(INT8, 1.0), (UINT8, 1.07)])
def test_an_update_of_low_rank_costs_much_less_than_another_one(dtype, scale_drift):
    sizes = {}
    for rank in (0, 2):
        old, new = tuned_pair(8, dtype, rank=rank, scale_drift=scale_drift)
        delta = shoal_delta.diff(old, new)
        assert shoal_delta.apply(old, delta) == new
        sizes[rank] = len(delta)
    assert sizes[2] < 0.75 * sizes[0]


def test_a_full_global_block_leaves_the_update_out(monkeypatch):
    old, new = tuned_pair(9, INT8, rank=1)
    small = len(shoal_delta.diff(old, new, profile="fast"))
    monkeypatch.setattr(global_block, "MAX_GLOBAL_BYTES", 100)
    delta = shoal_delta.diff(old, new, profile="fast")
    assert shoal_delta.apply(old, delta) == new
    assert small < len(delta)
