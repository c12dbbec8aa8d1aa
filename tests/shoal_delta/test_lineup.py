"""What becomes of tensors between two releases, and that each way of it is found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shoal_delta.onnx_files import FLOAT, INT8, INT32, UINT8, message, model, node, tensor

import shoal_delta
from shoal_delta.alignment import aligned_axis
from shoal_delta.model_plan import model_plan

FLOAT16, BFLOAT16, INT4 = 10, 16, 22
RNG = np.random.default_rng(7)
WEIGHTS = RNG.laplace(0, 20, (32, 48)).clip(-127, 127).astype(np.int8)


def quantised(name: str, levels, scale=0.01, zero=(), axis=None):
    """(nodes, tensors) of one weight with its scale and zero point."""
    dtype = INT8 if levels.dtype == np.int8 else UINT8
    scales = np.atleast_1d(np.float32(scale))
    zeros = bytes(z & 0xFF for z in np.atleast_1d(zero).astype(int)) or bytes(scales.size)
    tensors = [
        tensor(f"{name}_quantized", dtype, levels.shape, levels.tobytes()),
        tensor(f"{name}_scale", FLOAT, scales.shape, scales.tobytes()),
        tensor(f"{name}_zero_point", dtype, (len(zeros),), zeros),
    ]
    inputs = [f"{name}_{part}" for part in ("quantized", "scale", "zero_point")]
    return [node("DequantizeLinear", inputs, name, axis=axis)], tensors


def file(*parts) -> bytes:
    return model([n for nodes, _ in parts for n in nodes], [t for _, ts in parts for t in ts])


def size(old: bytes, new: bytes) -> int:
    delta = shoal_delta.diff(old, new, workers=1)
    assert shoal_delta.apply(old, delta) == new
    return len(delta)


def moved(levels, seed=1, share=0.1):
    rng = np.random.default_rng(seed)
    step = rng.integers(-1, 2, levels.shape) * (rng.random(levels.shape) < share)
    return (levels.astype(int) + step).clip(-127, 127).astype(levels.dtype)


# What a header, the operations and a graph that changed a little take.
FRAME = 260


def test_a_column_more_costs_the_column():
    column = RNG.integers(-9, 9, (32, 1)).astype(np.int8)
    for position in (48, 20, 0):
        grown = np.insert(WEIGHTS, [position], column, axis=1)
        assert size(file(quantised("w", WEIGHTS)), file(quantised("w", grown))) < FRAME + 40


def test_rows_and_columns_that_are_gone_cost_where_they_were():
    kept = np.sort(RNG.choice(48, 36, replace=False))
    rows = np.sort(RNG.choice(32, 24, replace=False))
    for pruned in (WEIGHTS[:, kept], WEIGHTS[rows]):
        assert size(file(quantised("w", WEIGHTS)), file(quantised("w", pruned))) < FRAME


def convolutions(first, second, third):
    return file(
        quantised("a", first, np.linspace(0.01, 0.03, len(first)), axis=0),
        quantised("b", second, np.linspace(0.02, 0.05, len(second)), axis=0),
        quantised("c", third, np.linspace(0.03, 0.04, len(third)), axis=0),
    )


def test_pruned_channels_line_up_on_both_sides_of_a_convolution_though_it_was_trained_on():
    first = RNG.laplace(0, 20, (32, 16, 3, 3)).clip(-127, 127).astype(np.int8)
    second = RNG.laplace(0, 20, (24, 32, 3, 3)).clip(-127, 127).astype(np.int8)
    third = RNG.laplace(0, 20, (8, 24, 1, 1)).clip(-127, 127).astype(np.int8)
    out, middle = (np.sort(RNG.choice(n, 3 * n // 4, replace=False)) for n in (32, 24))
    after = (moved(first[out]), moved(second[middle][:, out]), moved(third[:, middle]))
    old, new = convolutions(first, second, third), convolutions(*after)
    weights = sum(part.size for part in after)
    assert size(old, new) < 0.15 * weights


def test_a_depthwise_convolution_follows_the_map_of_its_neighbours():
    first = RNG.laplace(0, 20, (64, 24, 1, 1)).clip(-127, 127).astype(np.int8)
    depthwise = RNG.laplace(0, 20, (64, 1, 3, 3)).clip(-127, 127).astype(np.int8)
    third = RNG.laplace(0, 20, (16, 64, 1, 1)).clip(-127, 127).astype(np.int8)
    kept = np.sort(RNG.choice(64, 48, replace=False))
    old = convolutions(first, depthwise, third)
    new = convolutions(first[kept], depthwise[kept], third[:, kept])
    assert size(old, new) < 700


@pytest.mark.parametrize("dtype", [FLOAT, FLOAT16])
def test_floats_that_lost_columns_line_up_too(dtype):
    kind = "<f4" if dtype == FLOAT else "<f2"
    values = RNG.normal(0, 0.1, (24, 40)).astype(kind)
    kept = np.sort(RNG.choice(40, 30, replace=False))
    old, new = (
        model([], [tensor("w", dtype, v.shape, v.tobytes())]) for v in (values, values[:, kept])
    )
    assert size(old, new) < FRAME


@pytest.mark.parametrize("shape", [(32, 48), (40, 40)])
def test_a_turned_matrix_is_copied(shape):
    levels = RNG.integers(-127, 128, shape).astype(np.int8)
    turned = np.ascontiguousarray(levels.T)
    assert size(file(quantised("w", levels)), file(quantised("w", turned))) < FRAME


def test_channels_that_went_last_are_copied():
    levels = RNG.integers(-127, 128, (8, 6, 3, 5)).astype(np.int8)
    last = np.ascontiguousarray(levels.transpose(0, 2, 3, 1))
    assert size(file(quantised("w", levels)), file(quantised("w", last))) < FRAME


def test_a_reshaped_tensor_is_copied():
    flat = WEIGHTS.reshape(-1)
    assert size(file(quantised("w", WEIGHTS)), file(quantised("w", flat))) < FRAME


def test_renamed_reordered_added_and_removed_tensors_cost_what_is_new():
    parts = {name: moved(WEIGHTS, seed, 1) for seed, name in enumerate("abcd")}
    old = file(*(quantised(name, levels) for name, levels in parts.items()))
    fresh = RNG.integers(-127, 128, (4, 16)).astype(np.int8)
    renamed = file(*(quantised(f"model/{name}", levels) for name, levels in parts.items()))
    reordered = file(*(quantised(name, parts[name]) for name in "dbca"))
    fewer = file(*(quantised(name, parts[name]) for name in "abd"))
    more = file(*(quantised(name, parts[name]) for name in "ab"), quantised("new", fresh))
    assert size(old, renamed) < FRAME + 80
    assert size(old, reordered) < FRAME + 80
    assert size(old, fewer) < FRAME
    assert size(old, more) < FRAME + fresh.size


def test_renamed_weights_on_new_scales_take_their_scales_with_them():
    scales = np.linspace(0.01, 0.02, 32).astype(np.float32)
    old = file(quantised("w", WEIGHTS, scales, axis=0))
    shrunk = np.rint(WEIGHTS / 1.25).astype(np.int8)
    new = file(quantised("model/w", shrunk, scales * np.float32(1.25), axis=0))
    info = shoal_delta.inspect(shoal_delta.diff(old, new, workers=1), old)
    assert {"scaled-s8", "gained-s8"} & {mode for part in info.tensors for mode in part.modes}
    assert info.size < FRAME + 100


def test_unsigned_weights_with_a_zero_point_grow_by_a_column_of_zeros():
    levels = (WEIGHTS.astype(int) + 128).clip(0, 255).astype(np.uint8)
    grown = np.concatenate([levels, np.full((32, 1), 128, np.uint8)], axis=1)
    old = file(quantised("w", levels, 0.01, 128))
    assert size(old, file(quantised("w", grown, 0.01, 128))) < FRAME


def test_zero_points_of_their_own_packed_nibbles_and_bfloat16_round_trip():
    nibbles = RNG.integers(0, 256, 600).astype(np.uint8)
    wide = RNG.normal(0, 1, 600).astype("<f4").view("<u4") >> 16

    def release(seed):
        zeros = np.random.default_rng(seed).integers(-5, 5, 32)
        scales = np.linspace(0.01, 0.02, 32)
        nodes, tensors = quantised("w", moved(WEIGHTS, seed), scales, zeros, axis=0)
        packed = tensor("n", INT4, (40, 30), moved(nibbles, seed).tobytes())
        halves = tensor("b", BFLOAT16, (600,), (wide + seed).astype("<u2").tobytes())
        return model(nodes, [*tensors, packed, halves])

    old, new = release(1), release(2)
    assert size(old, new) < 0.35 * len(new)


def test_external_data_goes_by_the_generic_mode_and_its_graph_as_a_graph():
    place = message((1, b"location"), (2, b"w.bin"))
    outside = message((1, 32), (1, 48), (2, INT8), (8, b"w"), (13, place), (14, 1))
    old_graph = model([node("MatMul", ["x", "w"], "y")], [outside])
    new_graph = model([node("MatMul", ["x", "w"], "z")], [outside])
    assert size(old_graph, new_graph) < 150
    assert model_plan(old_graph, new_graph) is not None
    old_data = np.random.default_rng(3).bytes(40_000)
    new_data = old_data[:10_000] + b"moved" + old_data[10_000:]
    assert size(old_data, new_data) < 200


def biases(input_scale: float, growth: float, values) -> bytes:
    """A QDQ convolution's weight and bias, the bias on input scale x weight scale."""
    scales = (np.linspace(0.01, 0.02, 32) * growth).astype(np.float32)
    product = scales * np.float32(input_scale)
    levels = np.rint(values / product).astype("<i4")
    one = np.float32(input_scale)
    return file(
        quantised("w", WEIGHTS, scales, axis=0),
        (
            [
                node("DequantizeLinear", ["b_quantized", "b_scale", "b_zero"], "b", axis=0),
                node("QuantizeLinear", ["x", "x_scale"], "xq"),
            ],
            [
                tensor("x_scale", FLOAT, (), one.tobytes()),
                tensor("b_quantized", INT32, (32,), levels.tobytes()),
                tensor("b_scale", FLOAT, (32,), product.tobytes()),
                tensor("b_zero", INT32, (32,), bytes(128)),
            ],
        ),
    )


def test_the_scales_of_biases_are_products_and_biases_follow_their_scales():
    values = RNG.normal(0, 1, 32)
    old, new = biases(0.02, 1, values), biases(0.023, 1, values)
    info = shoal_delta.inspect(shoal_delta.diff(old, new, workers=1), old)
    modes = {part.name: part.modes for part in info.tensors}
    assert modes["b_quantized"] == ("scaled-i32",)
    # Nothing of 32 biases and 32 scales is sent, only the input's scale.
    assert info.size < FRAME + 20


@given(st.integers(2, 20), st.integers(1, 30), st.data())
@settings(max_examples=40)
def test_any_rows_kept_in_order_are_found_again(rows, columns, data):
    old = np.random.default_rng(rows * 31 + columns).normal(0, 1, (rows, columns + 20))
    kept = sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1)))
    found = aligned_axis(old, old[kept], 0)
    assert found is not None
    assert found.indices.tolist() == kept


@given(st.data())
@settings(max_examples=25)
def test_any_change_of_axes_round_trips(data):
    dims = [data.draw(st.integers(1, 7)) for _ in range(data.draw(st.integers(1, 4)))]
    levels = np.random.default_rng(sum(dims)).integers(-128, 128, dims).astype(np.int8)
    after = levels
    for axis in range(len(dims)):
        kept = sorted(data.draw(st.sets(st.integers(0, dims[axis] - 1), min_size=1)))
        after = np.take(after, kept, axis)
    if data.draw(st.booleans()):
        after = after.transpose(data.draw(st.permutations(range(len(dims)))))
    after = moved(np.ascontiguousarray(after), share=data.draw(st.sampled_from([0, 0.5])))
    scales = data.draw(st.sampled_from([0.01, 0.02]))
    size(file(quantised("w", levels)), file(quantised("w", after, scales)))
