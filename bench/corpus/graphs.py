"""The corpus' networks as float ONNX graphs: what a training framework's exporter hands to the quantiser.

Batch normalisation stays a node with its running statistics; folding it is the quantiser's first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import convolutional
import numpy as np
import onnx
import recurrent
import transformer
from convolutional import Convolution
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Arrays = Mapping[str, NDArray[np.float32]]
OPSET = 17
IR_VERSION = 8


def convolution_graph(layers: Sequence[Convolution], weights: Arrays) -> onnx.ModelProto:
    """Both MobileNets."""
    named = {name: np.asarray(array) for name, array in weights.items()}
    named |= {f"to{layer.clip}": np.float32(layer.clip) for layer in layers if _is_clipped(layer)}
    if any(_is_clipped(layer) for layer in layers):
        named["zero"] = np.float32(0)
    nodes, value, block = [], "input", "input"
    for layer in layers:
        name, channels = layer.name, len(weights[f"{layer.name}.weight"])
        if layer.begins_block:
            block = value
        nodes += [
            helper.make_node(
                "Conv",
                [value, f"{name}.weight"],
                [f"{name}.conv"],
                name=f"{name}.conv",
                strides=[layer.stride, layer.stride],
                pads=[layer.side // 2] * 4,
                group=channels if layer.is_depthwise else 1,
            ),
            helper.make_node(
                "BatchNormalization",
                [f"{name}.conv", *(f"{name}.{k}" for k in ("gain", "shift", "mean", "variance"))],
                [f"{name}.out"],
                name=f"{name}.norm",
                epsilon=convolutional.EPSILON,
            ),
        ]
        value = f"{name}.out"
        if _is_clipped(layer):
            limits = [value, "zero", f"to{layer.clip}"]
            nodes.append(helper.make_node("Clip", limits, [f"{name}.clip"], name=f"{name}.clip"))
            value = f"{name}.clip"
        elif layer.clip:
            nodes.append(helper.make_node("Relu", [value], [f"{name}.relu"], name=f"{name}.relu"))
            value = f"{name}.relu"
        if layer.adds_block:
            nodes.append(
                helper.make_node("Add", [block, value], [f"{name}.sum"], name=f"{name}.sum")
            )
            value = f"{name}.sum"
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flat"),
        _dense("flat"),
    ]
    side = convolutional.PICTURE_SIDE
    inputs = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, side, side])
    return _model(nodes, named, inputs, ["batch", len(weights["dense.bias"])])


def _is_clipped(layer: Convolution) -> bool:
    return bool(0 < layer.clip < np.inf)


def gru_graph(weights: Arrays) -> onnx.ModelProto:
    """Conv1d twice, GRU, dense."""
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
            hidden_size=weights["gru.hidden"].shape[1],
            linear_before_reset=1,
        ),
        helper.make_node("Squeeze", ["state", "axes"], ["last"], name="last"),
        _dense("last"),
    ]
    shape = ["batch", recurrent.SENSORS, recurrent.SAMPLES]
    inputs = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    axes = {"axes": np.array([0])}
    return _model(nodes, named | axes, inputs, ["batch", len(weights["dense.bias"])])


def transformer_graph(weights: Arrays) -> onnx.ModelProto:
    """The language model."""
    width, heads, context = weights["embedding"].shape[1], transformer.HEADS, transformer.CONTEXT
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
    for layer in range(transformer.layer_count(weights)):
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


def _dense(value: str) -> onnx.NodeProto:
    return helper.make_node(
        "Gemm", [value, "dense.weight", "dense.bias"], ["logits"], name="dense", transB=1
    )
