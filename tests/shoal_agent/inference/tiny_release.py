"""Releases small enough to build in a test: y = x @ W, and ways to break them."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

VALUES = 4
LABELS = ["zero", "one", "two"]


def weights(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(VALUES, len(LABELS))).astype(np.float32)


def item(*values: int) -> bytes:
    return bytes(values or (1, 2, 3, 4))


def expected_label(data: bytes, seed: int = 0) -> str:
    return LABELS[int((np.frombuffer(data, np.uint8) @ weights(seed)).argmax())]


def model_of(nodes: list, initializers: list = (), *, batch: object = "n", **names: str) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(names.get("x", "x"), TensorProto.FLOAT, [batch, VALUES])],
        [helper.make_tensor_value_info(names.get("y", "y"), TensorProto.FLOAT, [batch, 3])],
        list(initializers),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def linear(seed: int = 0, **options: object) -> bytes:
    node = helper.make_node("MatMul", [options.get("x", "x"), "w"], ["y"])
    return model_of([node], [onnx.numpy_helper.from_array(weights(seed), "w")], **options)


def quantised() -> bytes:
    """The same with weights of 8 bits, which the tolerance has to allow."""
    scale = float(np.abs(weights()).max() / 127)
    q = np.clip(np.round(weights() / scale), -127, 127).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    array = onnx.numpy_helper.from_array
    return model_of(nodes, [array(q, "q"), array(np.array(scale, np.float32), "scale")])


def wide(width: int, seed: int = 0) -> bytes:
    """y = x @ A @ B with A @ B = W: the answers of `linear`, in 28 bytes of weights an inner value."""
    first = np.random.default_rng(7).normal(size=(VALUES, width)).astype(np.float32)
    second = (np.linalg.pinv(first.astype(np.float64)) @ weights(seed)).astype(np.float32)
    return model_of(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"]),
            helper.make_node("MatMul", ["h", "b"], ["y"]),
        ],
        [onnx.numpy_helper.from_array(first, "a"), onnx.numpy_helper.from_array(second, "b")],
    )


def endless() -> bytes:
    """A loop of 2**62 rounds in front of the multiplication."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["a", "a"], ["b"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
        ],
    )
    rounds = onnx.numpy_helper.from_array(np.array(2**62, np.int64), "rounds")
    w = onnx.numpy_helper.from_array(weights(), "w")
    loop = helper.make_node("Loop", ["rounds", "", "x"], ["z"], body=body)
    return model_of([loop, helper.make_node("MatMul", ["z", "w"], ["y"])], [rounds, w])


def memory_bomb(elements: int = 1 << 34) -> bytes:
    """Wants 64 GiB, or four bytes an element, for a tensor that it sums up."""
    shape = onnx.numpy_helper.from_array(np.array([elements], np.int64), "shape")
    w = onnx.numpy_helper.from_array(weights(), "w")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Add", ["z", "sum"], ["y"]),
    ]
    return model_of(nodes, [shape, w])


def write(
    directory: Path,
    *,
    seed: int = 0,
    model: bytes | None = None,
    spec: dict[str, str] | None = None,
) -> bytes:
    """Write a release directory; returns a release id. `spec` replaces text in release.toml."""
    directory.mkdir(parents=True, exist_ok=True)
    text = f"""\
name = "tiny"
version = "1.0.{seed}"

[model]
file = "model.onnx"

[input]
name = "x"
dtype = "float32"
shape = [{VALUES}]
encoding = "u8"
units = "none"

[output]
name = "y"
dtype = "float32"
shape = [{len(LABELS)}]
decode = "softmax-argmax"
labels = {LABELS!r}
units = "logit"

[golden]
file = "golden.npz"
tolerance = 0.001

[quality]
metric = "none"
value = 1.0
evaluated_on = "nothing"
"""
    for old, new in (spec or {}).items():
        assert old in text
        text = text.replace(old, new)
    (directory / "release.toml").write_text(text)
    data = linear(seed) if model is None else model
    (directory / "model.onnx").write_bytes(data)
    inputs = np.arange(5 * VALUES, dtype=np.uint8).reshape(5, VALUES)
    outputs = inputs.astype(np.float32) @ weights(seed)
    np.savez(directory / "golden.npz", inputs=inputs, outputs=outputs)
    return hashlib.sha256(data + text.encode()).digest()


def growing(operator: str) -> bytes:
    """Wants two gigabytes for what an operator makes of one number, and sums it up."""
    many = onnx.numpy_helper.from_array(np.array([1 << 29], np.int64), "many")
    one = onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")
    w = onnx.numpy_helper.from_array(weights(), "w")
    inputs = {"Expand": ["one", "many"], "Tile": ["one", "many"], "Pad": ["one", "pads"]}
    pads = onnx.numpy_helper.from_array(np.array([0, 1 << 29], np.int64), "pads")
    nodes = [
        helper.make_node(operator, inputs[operator], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Add", ["z", "sum"], ["y"]),
    ]
    return model_of(nodes, [many, one, w, pads])


def _count_rounds() -> onnx.GraphProto:
    one = onnx.numpy_helper.from_array(np.array([[1]], np.int64), "step")
    return helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["count", "step"], ["counted"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count", TensorProto.INT64, [1, 1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("counted", TensorProto.INT64, [1, 1]),
        ],
        [one],
    )


def pair_model(
    *, batch: bool = True, gather: bool = False, hungry: bool = False, looping: bool = False
) -> bytes:
    """y = a @ W and total = sum of n; `gather`: of ten times n, looked up in a table of 16; `hungry`: n ones;
    `looping`: n times one.
    """
    rows = ["n"] if batch else []
    nodes, initializers = [], [onnx.numpy_helper.from_array(weights(), "w")]
    counted = "n"
    if gather:
        nodes.append(helper.make_node("Gather", ["table", "n"], ["looked"]))
        initializers.append(onnx.numpy_helper.from_array(np.arange(16) * 10, "table"))
        counted = "looked"
    if looping:
        nodes += [
            helper.make_node("Reshape", ["n", "scalar"], ["rounds"]),
            helper.make_node("Loop", ["rounds", "", "zero"], ["looked"], body=_count_rounds()),
        ]
        initializers += [
            onnx.numpy_helper.from_array(np.array([], np.int64), "scalar"),
            onnx.numpy_helper.from_array(np.array([[0]], np.int64), "zero"),
        ]
        counted = "looked"
    if hungry:
        shape = onnx.numpy_helper.from_array(np.array([-1], np.int64), "flat")
        one = onnx.numpy_helper.from_array(np.array([1], np.int64), "one")
        nodes.append(helper.make_node("Reshape", ["n", "flat"], ["size"]))
        nodes.append(helper.make_node("ConstantOfShape", ["size"], ["big"], value=one))
        nodes.append(helper.make_node("Reshape", ["big", "row"], ["looked"]))
        initializers += [shape, onnx.numpy_helper.from_array(np.array([1, -1], np.int64), "row")]
        counted = "looked"
    axis = onnx.numpy_helper.from_array(np.array([-1], np.int64), "axis")
    keep = 0 if batch else 1
    nodes.append(helper.make_node("MatMul", ["a", "w"], ["y"]))
    nodes.append(helper.make_node("ReduceSum", [counted, "axis"], ["total"], keepdims=keep))
    total = rows if batch else [1]
    graph = helper.make_graph(
        nodes,
        "pair",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [*rows, VALUES]),
            helper.make_tensor_value_info("n", TensorProto.INT64, [*rows, "length"]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [*rows, 3]),
            helper.make_tensor_value_info("total", TensorProto.INT64, total),
        ],
        [*initializers, axis],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def write_tensors(
    directory: Path,
    *,
    batch: bool = True,
    gather: bool = False,
    hungry: bool = False,
    looping: bool = False,
    pad: int | None = None,
) -> bytes:
    """Write a release of two inputs and two outputs; returns a release id."""
    directory.mkdir(parents=True, exist_ok=True)
    total = "[]" if batch else "[1]"
    text = f"""\
name = "pair"
version = "1.0.0"
batch = {str(batch).lower()}

[model]
file = "model.onnx"

[[inputs]]
name = "a"
dtype = "float32"
shape = [{VALUES}]

[[inputs]]
name = "n"
dtype = "int64"
shape = [-1]
{"" if pad is None else f"pad = {pad}"}

[[outputs]]
name = "y"
dtype = "float32"
shape = [3]

[[outputs]]
name = "total"
dtype = "int64"
shape = {total}

[golden]
file = "golden.npz"
tolerance = 0.001

[quality]
metric = "none"
value = 1.0
evaluated_on = "nothing"
"""
    (directory / "release.toml").write_text(text)
    data = pair_model(batch=batch, gather=gather, hungry=hungry, looping=looping)
    (directory / "model.onnx").write_bytes(data)
    is_one = hungry or looping
    count = 1 if is_one else 3
    a = np.arange(count * VALUES, dtype=np.float32).reshape(count, VALUES)
    n = np.arange(count * 2).reshape(count, 2) if not is_one else np.array([[2]])
    total = n.sum(axis=1) * (10 if gather else 1)
    arrays = {"inputs.a": a, "inputs.n": n, "outputs.y": a @ weights()}
    np.savez(
        directory / "golden.npz", **arrays, **{"outputs.total": total if batch else total[:, None]}
    )
    return hashlib.sha256(data + text.encode()).digest()
