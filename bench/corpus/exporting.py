"""The corpus' networks as INT8 ONNX files, by ONNX Runtime's own quantisers: static QDQ and dynamic.

Float weights in, files out. The CNN and the GRU are calibrated (QDQ, a scale a channel; the GRU cell
itself stays float32, as ONNX Runtime has no INT8 one), the transformer is dynamic INT8.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import networks
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

Arrays = Mapping[str, NDArray[np.float32]]
OPSET = 17
IR_VERSION = 8
PRODUCER = "corpus"


def exported(
    name: str, weights: Arrays, calibration: NDArray[np.float32], *, producer: str = PRODUCER
) -> bytes:
    """The INT8 file of the network called `name`; `calibration` are inputs [N, ...]."""
    logging.disable(logging.WARNING)
    graph = {"cnn": _cnn, "gru": _gru, "transformer": _transformer}[name]
    model = graph(weights, calibration)
    with tempfile.TemporaryDirectory(prefix="shoal-corpus-") as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, before)
        if name == "transformer":
            quantize_dynamic(before, after, weight_type=QuantType.QInt8)
        else:
            quantize_static(
                before,
                after,
                _Inputs(calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"QDQOpTypePerChannelSupportToAxis": {"Gemm": 0, "Conv": 0}},
            )
        quantised = onnx.load(after)
    quantised.producer_name = producer
    return bytes(quantised.SerializeToString(deterministic=True))


def renamed(file: bytes) -> bytes:
    """The same model with every node and value called something else."""
    model = onnx.load_from_string(file)
    names = {value.name for value in (*model.graph.input, *model.graph.output)}

    def new(name: str) -> str:
        return name if not name or name in names else f"model/{name.replace('.', '/')}:0"

    for tensor in model.graph.initializer:
        tensor.name = new(tensor.name)
    for node in model.graph.node:
        node.name = new(node.name)
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    del model.graph.value_info[:]
    return bytes(model.SerializeToString(deterministic=True))


def re_exported(file: bytes) -> bytes:
    """The same model by another exporter: producer, versions, order and storage of the initialisers."""
    model = onnx.load_from_string(file)
    model.producer_name, model.producer_version, model.ir_version = "another exporter", "2.9", 9
    tensors = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
        node.doc_string = f"line {number}"
    return bytes(model.SerializeToString(deterministic=True))


def _model(
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, NDArray[np.generic]],
    inputs: onnx.ValueInfoProto,
    output: list[str | int],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "corpus",
        [inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


def _cnn(weights: Arrays, calibration: NDArray[np.float32]) -> onnx.ModelProto:
    seen = networks.cnn_statistics(dict(weights), calibration)
    folded: dict[str, NDArray[np.generic]] = {}
    nodes, value = [], "input"
    for name, stride, is_depthwise in networks.cnn_layers():
        kernel = np.asarray(weights[f"{name}.weight"])
        mean, variance = (np.asarray(part) for part in seen[name])
        ratio = np.asarray(weights[f"{name}.gain"]) / np.sqrt(variance + 1e-3)
        folded[f"{name}.weight"] = (kernel * ratio[:, None, None, None]).astype(np.float32)
        folded[f"{name}.bias"] = (np.asarray(weights[f"{name}.shift"]) - mean * ratio).astype(
            np.float32
        )
        nodes += [
            helper.make_node(
                "Conv",
                [value, f"{name}.weight", f"{name}.bias"],
                [f"{name}.out"],
                name=name,
                strides=[stride, stride],
                pads=[kernel.shape[2] // 2] * 4,
                group=kernel.shape[0] if is_depthwise else 1,
            ),
            helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"], name=f"{name}.relu"),
        ]
        value = f"{name}.relu"
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flat"),
        _dense("flat"),
    ]
    for name in ("dense.weight", "dense.bias"):
        folded[name] = np.asarray(weights[name])
    side = networks.PICTURE_SIDE
    inputs = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, side, side])
    return _model(nodes, folded, inputs, ["batch", len(weights["dense.bias"])])


def _gru(weights: Arrays, _calibration: NDArray[np.float32]) -> onnx.ModelProto:
    named = {name: np.asarray(array) for name, array in weights.items()}
    for name in ("gru.input", "gru.hidden", "gru.bias"):
        named[name] = named[name][None]
    nodes, value = [], "input"
    for name in ("conv1", "conv2"):
        nodes += [
            helper.make_node(
                "Conv",
                [value, f"{name}.weight", f"{name}.bias"],
                [f"{name}.out"],
                name=name,
                strides=[2],
                pads=[2, 2],
            ),
            helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"], name=f"{name}.relu"),
        ]
        value = f"{name}.relu"
    nodes += [
        helper.make_node("Transpose", [value], ["steps"], name="steps", perm=[2, 0, 1]),
        helper.make_node(
            "GRU",
            ["steps", "gru.input", "gru.hidden", "gru.bias"],
            ["", "state"],
            name="gru",
            hidden_size=networks.GRU_UNITS,
            linear_before_reset=1,
        ),
        helper.make_node("Squeeze", ["state", "axes"], ["last"], name="last"),
        _dense("last"),
    ]
    shape = ["batch", networks.SENSORS, networks.SAMPLES]
    inputs = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    axes = {"axes": np.array([0])}
    return _model(nodes, named | axes, inputs, ["batch", len(weights["dense.bias"])])


def _transformer(weights: Arrays, _calibration: NDArray[np.float32]) -> onnx.ModelProto:
    width, heads, context = networks.WIDTH, networks.HEADS, networks.CONTEXT
    constants: dict[str, NDArray[np.generic]] = {
        "split": np.array([0, context, heads, width // heads]),
        "join": np.array([0, context, width]),
        "mask": np.triu(np.full((context, context), -1e9), 1).astype(np.float32),
        "root": np.float32(np.sqrt(width // heads)),
        "epsilon": np.float32(1e-6),
        "two": np.float32(2),
    }
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, inputs: list[str], out: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [out], name=f"{out}.node", **attributes))
        return out

    def normed(value: str, out: str, gain: str) -> str:
        square = add("Pow", [value, "two"], f"{out}.square")
        mean = add("ReduceMean", [square], f"{out}.mean", axes=[-1])
        root = add("Sqrt", [add("Add", [mean, "epsilon"], f"{out}.sum")], f"{out}.root")
        scaled = add("Div", [value, root], f"{out}.scaled")
        return add("Mul", [scaled, gain], out) if gain else scaled

    hidden = add("Gather", ["embedding", "input"], "embedded")
    hidden = add("Add", [hidden, "position"], "placed")
    for layer in range(networks.LAYERS):
        at = f"layer{layer}"
        value = normed(hidden, f"{at}.normed1", f"{at}.norm1")
        parts = {}
        for part, order in (
            ("query", [0, 2, 1, 3]),
            ("key", [0, 2, 3, 1]),
            ("value", [0, 2, 1, 3]),
        ):
            flat = add("MatMul", [value, f"{at}.{part}"], f"{at}.{part}.flat")
            split = add("Reshape", [flat, "split"], f"{at}.{part}.split")
            parts[part] = add("Transpose", [split], f"{at}.{part}.heads", perm=order)
        scores = add("MatMul", [parts["query"], parts["key"]], f"{at}.scores")
        scores = add("Div", [scores, "root"], f"{at}.tempered")
        scores = add("Add", [scores, "mask"], f"{at}.masked")
        chances = add("Softmax", [scores], f"{at}.chances", axis=-1)
        mixed = add("MatMul", [chances, parts["value"]], f"{at}.mixed")
        mixed = add("Transpose", [mixed], f"{at}.turned", perm=[0, 2, 1, 3])
        mixed = add("Reshape", [mixed, "join"], f"{at}.joined")
        mixed = add("MatMul", [mixed, f"{at}.mix"], f"{at}.mix.out")
        hidden = add("Add", [hidden, mixed], f"{at}.attended")
        value = normed(hidden, f"{at}.normed2", f"{at}.norm2")
        value = add("Relu", [add("MatMul", [value, f"{at}.up"], f"{at}.up.out")], f"{at}.relu")
        value = add("MatMul", [value, f"{at}.down"], f"{at}.down.out")
        hidden = add("Add", [hidden, value], f"{at}.out")
    add("MatMul", [normed(hidden, "last", ""), "out.weight"], "logits")
    arrays = {name: np.asarray(array) for name, array in weights.items()}
    inputs = helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", context])
    classes = weights["out.weight"].shape[1]
    return _model(nodes, arrays | constants, inputs, ["batch", context, classes])


def _dense(value: str) -> onnx.NodeProto:
    return helper.make_node(
        "Gemm", [value, "dense.weight", "dense.bias"], ["logits"], name="dense", transB=1
    )


class _Inputs(CalibrationDataReader):
    """The calibration inputs in one batch."""

    def __init__(self, inputs: NDArray[np.float32]) -> None:
        self._batches: Iterator[NDArray[np.float32]] = iter([inputs])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}
