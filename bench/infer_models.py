"""Generates the networks of area `infer`, as releases: random weights, fixed seed, FP32, one input and one output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

GOLDEN = 8
OUTPUTS = 10


class _Graph:
    """Collects nodes and weights."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last = "x"
        self._draw = np.random.default_rng(seed)

    def add(self, operator: str, *shape: int, **attributes: object) -> None:
        """A node behind the last one, with weights of this shape, if it has any."""
        name = f"t{len(self.nodes)}"
        inputs = [self.last]
        if shape:
            fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
            values = self._draw.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)
            self.weights.append(numpy_helper.from_array(values, f"{name}.w"))
            inputs.append(f"{name}.w")
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        self.last = name


def mlp(widths: list[int], seed: int) -> _Graph:
    """Dense layers with ReLU between."""
    graph = _Graph(seed)
    for inner, outer in pairwise(widths):
        if graph.nodes:
            graph.add("Relu")
        graph.add("MatMul", inner, outer)
    return graph


def cnn(seed: int) -> _Graph:
    """Three convolutions of 3 x 3 on 32 x 32 grey pixels, strides of two, a dense layer."""
    graph = _Graph(seed)
    channels = [1, 32, 64, 128]
    for inner, outer in pairwise(channels):
        stride = 1 if inner == 1 else 2
        graph.add(
            "Conv",
            outer,
            inner,
            3,
            3,
            pads=[1, 1, 1, 1],
            strides=[stride, stride],
            kernel_shape=[3, 3],
        )
        graph.add("Relu")
    graph.add("GlobalAveragePool")
    graph.add("Flatten")
    graph.add("MatMul", channels[-1], OUTPUTS)
    return graph


MODELS: dict[str, tuple[tuple[int, ...], Callable[[int], _Graph], str]] = {
    "micro": ((256,), lambda seed: mlp([256, 512, 512, OUTPUTS], seed), "MLP 256-512-512-10"),
    "mlp": ((784,), lambda seed: mlp([784, 2048, 2048, OUTPUTS], seed), "MLP 784-2048-2048-10"),
    "cnn": ((1, 32, 32), cnn, "CNN of three 3x3 convolutions, 32x32 pixels"),
}
"""By name: shape of an input, the network of a seed, and what it is in words."""


def write(directory: Path, name: str, seed: int = 0) -> bytes:
    """Write a release directory; returns a release id."""
    shape, build, _ = MODELS[name]
    graph = build(seed)
    output = helper.make_tensor_value_info(graph.last, TensorProto.FLOAT, ["n", OUTPUTS])
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
            [output],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    data = model.SerializeToString()
    text = f"""\
name = "{name}"
version = "1.0.{seed}"
[model]
file = "model.onnx"
[[inputs]]
name = "x"
dtype = "float32"
shape = {list(shape)}
[[outputs]]
name = "{graph.last}"
dtype = "float32"
shape = [{OUTPUTS}]
[golden]
file = "golden.npz"
tolerance = 0.001
[quality]
metric = "none"
value = 0.0
evaluated_on = "random weights"
"""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(data)
    (directory / "release.toml").write_text(text, encoding="utf-8")
    inputs = rows(name, GOLDEN)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"x": inputs})
    arrays = {"inputs.x": inputs, f"outputs.{graph.last}": outputs}
    np.savez(directory / "golden.npz", **arrays)
    return hashlib.sha256(data).digest()


def rows(name: str, count: int) -> np.ndarray:
    """Inputs: every row another one."""
    return np.random.default_rng(1).normal(size=(count, *MODELS[name][0])).astype(np.float32)


def inputs(directory: Path, name: str, count: int) -> dict[str, np.ndarray]:
    """Inputs by name, `count` rows: generated ones, or what lies beside a model that is none of ours."""
    if name in MODELS:
        return {"x": rows(name, count)}
    with np.load(directory / "inputs.npz") as arrays:
        return {
            key: np.resize(arrays[key], (count, *arrays[key].shape[1:])) for key in arrays.files
        }
