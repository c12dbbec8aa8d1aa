"""The strict reader of ONNX files: what it says of good ones, and why it refuses the others."""

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from shoal_contract import onnx_outline, protobuf
from shoal_contract.errors import DecodeError
from shoal_contract.messages import OperatorSet
from shoal_contract.onnx_outline import outline
from shoal_contract.protobuf import Reader
from shoal_fleet import digits

WEIGHTS = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")


def model(nodes=None, tensors=(WEIGHTS,), *, opsets=(("", 17),), functions=()) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])] if nodes is None else nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        tensors,
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=9)


def nested(depth: int) -> onnx.NodeProto:
    node = helper.make_node("Identity", ["x"], ["y"])
    for _ in range(depth - 1):
        inner = helper.make_graph([node], "inner", [], [])
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
        del node.attribute[1]
    return node


def refusal(data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        outline(data)
    return str(caught.value)


def test_the_operators_of_a_model_are_told_by_domain_and_version():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], domain="ai.onnx"),
        helper.make_node("FusedGemm", ["b"], ["y"], domain="com.microsoft"),
    ]
    found = outline(model(nodes, opsets=(("", 17), ("com.microsoft", 1))).SerializeToString())
    assert found.operator_sets == (
        OperatorSet("", 17, ["MatMul", "Relu"]),
        OperatorSet("com.microsoft", 1, ["FusedGemm"]),
    )
    assert (found.nodes, found.depth, found.external) == (3, 1, ())


def test_operators_within_branches_and_functions_count_too():
    function = helper.make_function(
        "mine", "Twice", ["a"], ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)],
    )  # fmt: skip
    twice = helper.make_node("Twice", ["x"], ["z"], domain="mine")
    found = outline(
        model(
            [nested(3), twice], opsets=(("", 17), ("mine", 1)), functions=[function]
        ).SerializeToString()
    )
    assert found.operator_sets == (
        OperatorSet("", 17, ["Identity", "If"]),
        OperatorSet("", 18, ["Add"]),
        OperatorSet("mine", 1, ["Twice"]),
    )
    assert found.depth == 3


def test_what_is_used_and_not_listed_is_named():
    found = outline(model().SerializeToString())
    assert found.beyond([OperatorSet("", 17, ["MatMul", "Relu"])]) == []
    assert found.beyond([OperatorSet("", 16, ["MatMul"])]) == ["MatMul (ai.onnx 17)"]


@pytest.mark.parametrize("version", [1, 2])
def test_the_digits_models_can_be_read(version):
    data = (digits.release_dir(version) / "model.onnx").read_bytes()
    assert outline(data).nodes == len(onnx.load_from_string(data).graph.node)


@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 3), np.float32),
        np.ones(3, np.int8),
        np.array(7, np.int64),
        np.ones(0, np.float64),
        np.ones(3, bool),
        np.ones(2, np.float16),
        np.ones(2, np.complex64),
        np.array(["a", "b"], dtype=object),
    ],
)
def test_a_tensor_that_the_onnx_library_writes_is_as_large_as_it_claims(array):
    outline(model(tensors=[WEIGHTS, numpy_helper.from_array(array, "t")]).SerializeToString())
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    typed = helper.make_tensor("t", dtype, array.shape, array.reshape(-1).tolist())
    outline(model(tensors=[WEIGHTS, typed]).SerializeToString())


@pytest.mark.parametrize(("dtype", "count"), [(TensorProto.INT4, 3), (TensorProto.UINT4, 4)])
def test_values_of_half_a_byte_are_counted_in_pairs(dtype, count):
    typed = helper.make_tensor("t", dtype, [count], [1] * count)
    outline(model(tensors=[WEIGHTS, typed]).SerializeToString())
    raw = onnx.TensorProto(dims=[count], data_type=dtype, raw_data=bytes(-(-count // 2)), name="t")
    outline(model(tensors=[WEIGHTS, raw]).SerializeToString())


def spoilt(**fields: object) -> bytes:
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3])
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(tensor, name)[:] = value
        else:
            setattr(tensor, name, value)
    return model(tensors=[tensor]).SerializeToString()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "claims 12 values of type 1; there are 0"),
        ({"raw_data": bytes(47)}, "there are 47 bytes"),
        ({"dims": [1 << 62], "raw_data": bytes(48)}, "claims 4611686018427387904 values"),
        ({"dims": [-1], "raw_data": bytes(4)}, r"has dimensions \[-1\]"),
        ({"dims": [1] * 17, "raw_data": bytes(4)}, "has dimensions"),
        ({"float_data": [1.0] * 11}, "there are 11"),
        ({"raw_data": bytes(48), "data_type": 99}, "is of type 99"),
        ({"raw_data": bytes(48), "data_type": TensorProto.STRING}, "there are 48 bytes"),
    ],
)
def test_a_tensor_that_claims_more_than_there_is_is_refused(fields, reason):
    with pytest.raises(DecodeError, match=reason):
        outline(spoilt(**fields))


def test_a_constant_within_a_node_is_held_to_its_claim_too():
    tensor = onnx.TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1 << 40])
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    assert "claims 1099511627776 values" in refusal(model([node]).SerializeToString())


def test_tensors_that_lie_elsewhere_are_told_with_their_place():
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4, 3], data_location=1)
    for key, value in (("location", "../w.bin"), ("offset", "8"), ("length", "48")):
        tensor.external_data.add(key=key, value=value)
    (external,) = outline(model(tensors=[tensor]).SerializeToString()).external
    assert (external.location, external.offset, external.length) == ("../w.bin", 8, 48)
    tensor.external_data[1].value = "-8"
    assert "at an offset that is no number" in refusal(model(tensors=[tensor]).SerializeToString())


def training() -> bytes:
    found = model()
    found.training_info.add()
    return found.SerializeToString()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no ONNX model"),
        (b"plain text", "ends behind its message"),
        (b"\x3b", "wire type 3"),
        (b"\x02\x00", "number 0"),
        (model().SerializeToString()[:-20], "ends behind its message"),
        (model().SerializeToString() * 2, "more than one graph"),
        (training(), "training information"),
        (model([nested(9)]).SerializeToString(), "nest deeper than 8"),
        (model(opsets=(("", 0),)).SerializeToString(), "names opset 0"),
        (model(opsets=(("", 17), ("ai.onnx", 18))).SerializeToString(), "two opsets"),
        (
            model([helper.make_node("A", [], [], domain="no")]).SerializeToString(),
            "'A' is of 'no', of which no opset is named",
        ),
        (model([onnx.NodeProto(output=["y"])]).SerializeToString(), "name one operator"),
        (model([onnx.NodeProto(op_type="a\nb")]).SerializeToString(), "not printable"),
        (model([onnx.NodeProto(op_type="a" * 129)]).SerializeToString(), "at most 128 bytes"),
    ],
)
def test_what_is_not_served_is_refused_with_the_reason(data, reason):
    assert reason in refusal(data)


def test_a_long_run_of_packed_integers_is_counted_in_pieces(monkeypatch):
    monkeypatch.setattr(protobuf, "_PIECE_BYTES", 7)
    values = [1, 300, 1 << 20, (1 << 63) - 1] * 5
    typed = helper.make_tensor("t", TensorProto.INT64, [len(values)], values)
    outline(model(tensors=[WEIGHTS, typed]).SerializeToString())
    typed.dims[0] += 1
    assert "claims 21 values of type 7; there are 20" in refusal(
        model(tensors=[WEIGHTS, typed]).SerializeToString()
    )


def test_a_file_of_fields_without_end_is_given_up(monkeypatch):
    with pytest.raises(DecodeError, match="too many fields"):
        list(Reader(b"\x08\x01" * 101, max_fields=100).fields(0, 202))
    monkeypatch.setattr(onnx_outline, "MAX_NODES", 3)
    assert "more than 3 nodes" in refusal(model([nested(1)] * 4).SerializeToString())


@given(st.binary(max_size=64))
def test_any_bytes_end_in_an_outline_or_a_decode_error(data):
    with contextlib.suppress(DecodeError):
        outline(data)
