import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tests.shoal_delta.onnx_files import INT8, message, model, network, tensor

from shoal_delta.onnx_wire import walk


def by_onnx(extra=()):
    """A model as the onnx library writes it: raw, float_data and int32_data tensors."""
    weights = np.arange(-60, 60, dtype=np.int8).reshape(4, 5, 6)
    tensors = [
        numpy_helper.from_array(weights, "w"),
        helper.make_tensor("s", TensorProto.FLOAT, [4], [0.5, 0.25, 2.0, 1e-3]),
        helper.make_tensor("z", TensorProto.INT8, [4], [-3, -3, -3, -3]),
        helper.make_tensor("shape", TensorProto.INT64, [2], [1, -1]),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"], axis=-3),
        helper.make_node("Neg", ["y"], ["out"]),
        *extra,
    ]
    graph = helper.make_graph(
        nodes, "g", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)], tensors
    )
    return helper.make_model(graph).SerializeToString(), weights


def test_tensors_are_found_where_the_onnx_library_put_them():
    data, weights = by_onnx()
    found = walk(data)
    by_name = {t.name: t for t in found.tensors}
    assert set(by_name) == {"w", "s"}
    w, s = by_name["w"], by_name["s"]
    assert data[w.offset : w.offset + w.size] == weights.tobytes()
    assert (w.dims, w.dtype, w.scale, w.zero_point, w.axis) == ((4, 5, 6), INT8, "s", "z", -3)
    assert np.frombuffer(data[s.offset : s.offset + s.size], "<f4").tolist() == [
        np.float32(v) for v in (0.5, 0.25, 2.0, 1e-3)
    ]
    assert found.integers == {"z": (-3, -3, -3, -3)}


def test_fixed_axes_of_qlinear_operators_and_names_of_dynamic_ones_are_known():
    inputs = ["x", "xs", "xz", "w", "s", "z", "ys", "yz"]
    data, _ = by_onnx([helper.make_node("QLinearConv", inputs, ["q"])])
    assert walk(data).by_name["w"].axis == -3  # the first node that says something counts
    plain = walk(model([], [tensor("fc_quantized", INT8, (3, 4), bytes(12))])).tensors[0]
    assert (plain.scale, plain.zero_point) == ("fc_scale", "fc_zero_point")


def test_what_is_no_model_is_none():
    for junk in (
        b"",
        b"plain text",
        bytes(100),
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\xff" * 30,
        message((7, message((1, b"x")))),
        model([], [message((8, b"\xff\xfe"), (9, b"abc"))]),
        model([], [message(*[(1, 1)] * 17, (9, b"abc"))]),
    ):
        assert walk(junk) is None


def test_every_prefix_and_every_flipped_byte_of_a_model_is_survived():
    data = network(1)[:1500]
    for size in range(0, len(data), 7):
        walk(data[:size])
    for position in range(len(data)):
        walk(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_survived_and_spans_stay_inside_the_file(data):
    found = walk(b"\x3a" + bytes([len(data) & 0x7F]) + data[: len(data) & 0x7F])
    for one in found.tensors if found else ():
        assert 0 < one.offset <= one.offset + one.size <= len(data) + 2


def test_the_hand_written_models_of_these_tests_are_onnx():
    assert len(onnx.load_from_string(network(1)).graph.initializer) == 8
