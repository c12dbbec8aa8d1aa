"""Generates a sentence encoder of MiniLM's shape in INT8, as a release.

What it weighs and takes to run does not depend on what the weights say; all-MiniLM-L6-v2 itself need not be there.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

NAME = "minilm-shape"
ABOUT = "of MiniLM's shape: 6 layers of 384, a vocabulary of 30 522, dynamic INT8; random weights"
LAYERS, WIDTH, HEADS, INNER, WORDS, POSITIONS = 6, 384, 12, 1536, 30_522, 512
TOKENS = 16
GOLDEN = 4


class _Encoder:
    """Collects nodes and weights; each method gives the name of what it adds."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._draw = np.random.default_rng(0)

    def number(self, name: str, value: object) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def matrix(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        values = self._draw.normal(0, 0.02, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def dense(self, value: str, wide: int, narrow: int) -> str:
        return self.add(
            "Add", self.add("MatMul", value, self.matrix(wide, narrow)), self.matrix(narrow)
        )

    def normalised(self, value: str) -> str:
        scale = self.number(f"one{len(self.nodes)}", np.ones(WIDTH, np.float32))
        return self.add("LayerNormalization", value, scale, self.matrix(WIDTH))

    def heads(self, value: str, perm: list[int]) -> str:
        split = self.add("Reshape", self.dense(value, WIDTH, WIDTH), "split")
        return self.add("Transpose", split, perm=perm)

    def layer(self, value: str) -> str:
        asked = self.heads(value, [0, 2, 1, 3])
        keys = self.heads(value, [0, 2, 3, 1])
        values = self.heads(value, [0, 2, 1, 3])
        scores = self.add("Div", self.add("MatMul", asked, keys), "root")
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), values)
        joined = self.add("Reshape", self.add("Transpose", mixed, perm=[0, 2, 1, 3]), "join")
        value = self.normalised(self.add("Add", value, self.dense(joined, WIDTH, WIDTH)))
        inner = self.dense(value, WIDTH, INNER)
        bent = self.add("Mul", inner, self.add("Sigmoid", inner))
        return self.normalised(self.add("Add", value, self.dense(bent, INNER, WIDTH)))


def write(directory: Path) -> bytes:
    """Write a release directory; returns a release id."""
    encoder = _Encoder()
    for name, value in (
        ("split", np.array([0, 0, HEADS, WIDTH // HEADS])),
        ("join", np.array([0, 0, WIDTH])),
        ("root", np.float32((WIDTH // HEADS) ** 0.5)),
    ):
        encoder.number(name, value)
    value = encoder.normalised(encoder.add("Gather", encoder.matrix(WORDS, WIDTH), "ids"))
    # Positions are in the file and in memory, and nobody looks them up: all texts have one length here.
    value = encoder.add("Add", value, encoder.matrix(1, TOKENS, WIDTH))
    for _ in range(LAYERS):
        value = encoder.layer(value)
    mean = encoder.add("ReduceMean", value, axes=[1], keepdims=0)
    graph = helper.make_graph(
        encoder.nodes,
        NAME,
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", TOKENS])],
        [helper.make_tensor_value_info(mean, TensorProto.FLOAT, ["n", WIDTH])],
        encoder.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / "model.onnx"
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        whole = Path(folder) / "float.onnx"
        onnx.save(model, whole)
        logging.getLogger().setLevel(logging.ERROR)  # it advises what would change nothing here
        quantize_dynamic(whole, target, weight_type=QuantType.QInt8)
    _write_rest(directory, mean)
    return hashlib.sha256(target.read_bytes()).digest()


def ids(count: int) -> np.ndarray:
    """Inputs: every row another one."""
    return np.random.default_rng(1).integers(0, WORDS, (count, TOKENS))


def _write_rest(directory: Path, output: str) -> None:
    text = f"""\
name = "{NAME}"
version = "1.0.0"
[model]
file = "model.onnx"
[[inputs]]
name = "ids"
dtype = "int64"
shape = [{TOKENS}]
[[outputs]]
name = "{output}"
dtype = "float32"
shape = [{WIDTH}]
[golden]
file = "golden.npz"
tolerance = 0.01
[quality]
metric = "none"
value = 0.0
evaluated_on = "random weights"
"""
    (directory / "release.toml").write_text(text, encoding="utf-8")
    session = ort.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"ids": ids(GOLDEN)})
    arrays = {"inputs.ids": ids(GOLDEN), f"outputs.{output}": outputs}
    np.savez(directory / "golden.npz", **arrays)
