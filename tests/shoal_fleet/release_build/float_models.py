"""Small float models, and ONNX Runtime's quantisers on them: what building a release is tested with."""

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)


def model(nodes, weights, inputs, output):
    graph = helper.make_graph(
        nodes,
        "float",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *output])],
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in weights.items()
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    onnx.checker.check_model(made)
    return made


def convolutional(seed, *, classes=5):
    """Two convolutions and a dense layer over [1, 8, 8]."""
    rng = np.random.default_rng(seed)
    weights = {
        "conv1.weight": rng.normal(0, 0.4, (16, 1, 3, 3)),
        "conv1.bias": rng.normal(0, 0.1, 16),
        "conv2.weight": rng.normal(0, 0.1, (48, 16, 3, 3)),
        "conv2.bias": rng.normal(0, 0.1, 48),
        "dense.weight": rng.normal(0, 0.2, (classes, 48)),
        "dense.bias": rng.normal(0, 0.1, classes),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv1.weight", "conv1.bias"], ["a"], name="conv1"),
        helper.make_node("Relu", ["a"], ["b"], name="relu1"),
        helper.make_node("Conv", ["b", "conv2.weight", "conv2.bias"], ["c"], name="conv2"),
        helper.make_node("Relu", ["c"], ["d"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], name="pool"),
        helper.make_node("Flatten", ["e"], ["f"], name="flat"),
        helper.make_node(
            "Gemm", ["f", "dense.weight", "dense.bias"], ["y"], name="dense", transB=1
        ),
    ]
    return model(nodes, weights, [1, 8, 8], [classes])


def perceptron(seed, *, classes=5):
    """Two dense layers over [96]: no convolution."""
    rng = np.random.default_rng(seed)
    weights = {
        "hidden.weight": rng.normal(0, 0.12, (96, 128)),
        "hidden.bias": rng.normal(0, 0.1, 128),
        "dense.weight": rng.normal(0, 0.12, (128, classes)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "hidden.weight"], ["a"], name="hidden"),
        helper.make_node("Add", ["a", "hidden.bias"], ["b"], name="hidden.add"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("MatMul", ["c", "dense.weight"], ["y"], name="dense"),
    ]
    return model(nodes, weights, [96], [classes])


def tuned(before, seed, drift):
    """The same model with every weight moved by about `drift` of its tensor's spread."""
    rng = np.random.default_rng(seed)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    for tensor in after.graph.initializer:
        value = numpy_helper.to_array(tensor)
        moved = value + drift * value.std() * rng.normal(size=value.shape)
        tensor.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), tensor.name))
    return after


def calibration(shape, count, seed=4):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


class _Reader(CalibrationDataReader):
    def __init__(self, values):
        self._items = iter([{"x": values}])

    def get_next(self):
        return next(self._items, None)


def _saved(float_model, folder):
    # Given the model itself, the quantisers change it.
    path = Path(folder) / "float.onnx"
    onnx.save(float_model, path)
    return path


def static(float_model, items, *, is_narrow=False):
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            _saved(float_model, folder),
            path,
            _Reader(items),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=is_narrow,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"QDQOpTypePerChannelSupportToAxis": {"Gemm": 0, "Conv": 0}},
        )
        return onnx.load(path)


def dynamic(float_model):
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            _saved(float_model, folder), path, per_channel=True, weight_type=QuantType.QInt8
        )
        return onnx.load(path)


def with_loud_channel(float_model, *, at):
    """The same function with one channel 3000 times as loud before layer `at`, and as quiet behind it.

    8 bits over the range of such an activation leave nothing of the other channels.
    """
    loud = onnx.ModelProto()
    loud.CopyFrom(float_model)
    tensors = {t.name: t for t in loud.graph.initializer}

    def scale(name, column, factor):
        value = numpy_helper.to_array(tensors[name]).copy()
        if column is None:
            value[0] *= factor
        else:
            value[..., 0] *= factor
        tensors[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))

    if at == "dense":
        scale("hidden.weight", 0, 3000)
        scale("hidden.bias", 0, 3000)
        scale("dense.weight", None, 1 / 3000)
    else:
        scale("hidden.weight", None, 1 / 3000)
    return loud
