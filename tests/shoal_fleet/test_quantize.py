"""Quantising a transformer: what is refused everywhere, and the real thing where optimum is installed."""

import importlib.util
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from shoal_fleet.quantize import QuantizeError, quantize

_missing = pytest.mark.skipif(
    importlib.util.find_spec("optimum") is None,
    reason="optimum-onnx is not installed: pip install 'shoal[quantize]'",
)


def needs_optimum(test):
    return pytest.mark.optional(_missing(test))


def save(path, nodes, weights, shapes):
    graph = helper.make_graph(
        nodes,
        "float",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes[0])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes[1])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


@pytest.fixture
def attention(tmp_path):
    """One head of attention over [batch, tokens, 64] and its projection, in float."""
    rng = np.random.default_rng(11)
    weights = {n: rng.normal(0, 0.1, (64, 64)).astype(np.float32) for n in ("q", "k", "v", "o")}
    nodes = [helper.make_node("MatMul", ["x", n], [f"{n}x"], name=n) for n in ("q", "k", "v")]
    nodes += [
        helper.make_node("Transpose", ["kx"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["qx", "kt"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["chances"], axis=-1),
        helper.make_node("MatMul", ["chances", "vx"], ["mixed"], name="mixed"),
        helper.make_node("MatMul", ["mixed", "o"], ["y"], name="o"),
    ]
    shape = ["batch", "tokens", 64]
    return save(tmp_path / "float" / "attention.onnx", nodes, weights, (shape, shape))


@pytest.fixture
def convolution(tmp_path):
    weights = {"w": np.ones((4, 1, 3, 3), np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    shapes = (["batch", 1, 8, 8], ["batch", 4, 6, 6])
    return save(tmp_path / "float" / "conv.onnx", nodes, weights, shapes)


def answers(path, values):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": values})[0]


@pytest.mark.parametrize("missing", ["onnx", "optimum.onnxruntime"])
def test_a_missing_optimum_is_one_line_that_names_the_extra(
    attention, tmp_path, monkeypatch, missing
):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(QuantizeError, match=r"pip install 'shoal\[quantize\]'"):
        quantize(attention, tmp_path / "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["float"]


def test_dynamic_quantisation_of_conv_is_refused_with_the_reason(convolution, tmp_path):
    with pytest.raises(QuantizeError, match=r"1 Conv nodes.*4 to 6 times slower.*calibration"):
        quantize(convolution, tmp_path / "int8")


def test_conv_inside_a_branch_is_found_too(convolution, tmp_path):
    inner = onnx.load(convolution).graph
    del inner.input[:]
    outer = helper.make_node("If", ["sure"], ["y"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph([outer], "branch", [], [inner.output[0]])
    onnx.save(helper.make_model(graph), convolution)
    with pytest.raises(QuantizeError, match="2 Conv nodes"):
        quantize(convolution, tmp_path / "int8")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08" * 40])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(QuantizeError, match=r"model\.onnx"):
        quantize(path, tmp_path / "int8")


def test_sources_that_say_nothing_are_refused(attention, tmp_path):
    with pytest.raises(QuantizeError, match="neither a file nor a directory"):
        quantize(tmp_path / "absent", tmp_path / "int8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(QuantizeError, match=r"neither an ONNX file nor a .*config\.json"):
        quantize(tmp_path / "empty", tmp_path / "int8")
    (attention.parent / "other.onnx").write_bytes(attention.read_bytes())
    with pytest.raises(QuantizeError, match=r"several ONNX files \(attention.onnx, other.onnx\)"):
        quantize(attention.parent, tmp_path / "int8")


def test_an_output_directory_in_use_is_not_touched(attention, tmp_path):
    with pytest.raises(QuantizeError, match="not empty"):
        quantize(attention, attention.parent)
    assert [path.name for path in attention.parent.iterdir()] == ["attention.onnx"]
    with pytest.raises(QuantizeError, match="cannot be made"):
        quantize(attention, attention / "below" / "a file")


def test_an_unknown_target_and_no_calibration_items_are_refused(attention, tmp_path):
    with pytest.raises(QuantizeError, match="'z80' is none of arm64"):
        quantize(attention, tmp_path / "int8", target="z80")
    with pytest.raises(QuantizeError, match="at least one calibration item"):
        quantize(attention, tmp_path / "int8", calibration=[])


@needs_optimum
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_a_transformer_becomes_int8_and_answers_alike(attention, tmp_path, mode):
    rng = np.random.default_rng(2)
    values = rng.normal(size=(16, 12, 64)).astype(np.float32)
    calibration = [{"x": item} for item in values] if mode == "static" else None
    report = quantize(attention, tmp_path / "int8", calibration=calibration)
    assert (report.mode, report.model) == (mode, tmp_path / "int8" / "model.onnx")
    assert (report.int8_nodes, report.float_matmuls) == (6, 0)
    assert report.source_bytes == attention.stat().st_size
    assert report.model_bytes == report.model.stat().st_size < 0.5 * report.source_bytes
    before, after = answers(attention, values).ravel(), answers(report.model, values).ravel()
    assert before @ after / np.linalg.norm(before) / np.linalg.norm(after) > 0.99


@needs_optimum
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore")
def test_conv_is_quantised_statically(convolution, tmp_path):
    items = [{"x": np.full((1, 8, 8), n, np.float32)} for n in (0, 1)]
    report = quantize(convolution, tmp_path / "int8", calibration=items)
    assert report.int8_nodes == 1
