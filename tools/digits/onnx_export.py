"""The trained network as ONNX, and as INT8: static, per channel, QDQ.

Float weights in, ONNX models out; training stands in `network`, files in `release_files`. Weights are
quantised to 7 bits (`reduce_range`): activations are unsigned 8 bit, and an x86 board without VNNI
multiplies them by VPMADDUBSW, which adds two products in 16 bits and saturates; 2 * 255 * 64 does not.
The logits stay float32: their last bit must not be a step of an 8-bit scale.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from network import CLASSES, SIDE, Floats, Weights
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

INPUT = "image"
OUTPUT = "logits"
OPSET = 17
# What ONNX 1.12 wrote: every ONNX Runtime the project supports reads it.
IR_VERSION = 8
# Symmetric 7-bit weights, as quantize_static makes them with reduce_range.
WEIGHT_LIMIT = 64
LAYERS = ("conv1", "conv2", "dense")
SCALES = {"weight": "weight_scale", "bias": "bias_quantized_scale"}


def float_model(weights: Weights) -> onnx.ModelProto:
    """The float32 network: `image` float32 [batch, 1, 8, 8] -> `logits` float32 [batch, 10]."""
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node(
            "Conv", [INPUT, "conv1.weight", "conv1.bias"], ["map1"], name="conv1", pads=pads
        ),
        helper.make_node("Relu", ["map1"], ["relu1"], name="relu1"),
        helper.make_node(
            "Conv", ["relu1", "conv2.weight", "conv2.bias"], ["map2"], name="conv2", pads=pads
        ),
        helper.make_node("Relu", ["map2"], ["relu2"], name="relu2"),
        helper.make_node(
            "MaxPool", ["relu2"], ["pool"], name="pool", kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flat", axis=1),
        helper.make_node(
            "Gemm", ["flat", "dense.weight", "dense.bias"], [OUTPUT], name="dense", transB=1
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="shoal tools/digits"
    )
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


def quantised(weights: Weights, calibration: Floats) -> onnx.ModelProto:
    """The INT8 network; `calibration` (pictures [N, 1, 8, 8]) sets the activation ranges."""
    with tempfile.TemporaryDirectory(prefix="shoal-digits-") as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            float_model(weights),
            path,
            _Pictures(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
                # The default, conv output channels first, is right; Gemm has transB=1.
                "QDQOpTypePerChannelSupportToAxis": {"Gemm": 0, "Conv": 0},
            },
        )
        model = onnx.load(path)
    model.producer_name = "shoal tools/digits"
    onnx.checker.check_model(model, full_check=True)
    return model


def requantised(model: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """`model` with new weights on its own scales: every scale and zero point stays as it is.

    A weight that outgrew its channel's range is clipped to it. Same grid, same graph: a weight whose
    change is below half a step is the same byte, which is what makes the delta small.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    for layer in LAYERS:
        scales = numpy_helper.to_array(tensors[f"{layer}.weight_scale"]).astype(np.float64)
        weight = weights[f"{layer}.weight"]
        steps = weight / scales.reshape(-1, *[1] * (weight.ndim - 1))
        levels = np.clip(np.rint(steps), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)
        _replace(tensors[f"{layer}.weight_quantized"], levels)
        bias_scales = numpy_helper.to_array(tensors[f"{layer}.bias_quantized_scale"])
        bias = np.rint(weights[f"{layer}.bias"] / bias_scales.astype(np.float64)).astype(np.int32)
        _replace(tensors[f"{layer}.bias_quantized"], bias)
    onnx.checker.check_model(copy, full_check=True)
    return copy


def dequantised(model: onnx.ModelProto) -> Weights:
    """The weights an INT8 model stands for: where fine-tuning the next release starts."""
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights: Weights = {}
    for layer in LAYERS:
        for kind, suffix in SCALES.items():
            levels = tensors[f"{layer}.{kind}_quantized"].astype(np.float64)
            scales = tensors[f"{layer}.{suffix}"].astype(np.float64)
            scales = scales.reshape(-1, *[1] * (levels.ndim - 1))
            weights[f"{layer}.{kind}"] = levels * scales
    return weights


def _replace(tensor: TensorProto, values: np.ndarray) -> None:
    if list(tensor.dims) != list(values.shape):
        raise ValueError(f"{tensor.name}: shape {list(tensor.dims)} became {list(values.shape)}")
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


class _Pictures(CalibrationDataReader):
    """The calibration pictures, a hundred at a time."""

    def __init__(self, pictures: Floats) -> None:
        self._batches: Iterator[Floats] = iter(np.array_split(pictures, -(-len(pictures) // 100)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.astype(np.float32)}
