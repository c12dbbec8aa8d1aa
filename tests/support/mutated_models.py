"""ONNX files that are nearly right: small models, and thousands of ways to spoil them. The number decides which."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.shoal_agent.inference import tiny_release as tiny

HUGE = (0, -1, 1, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
OPERATORS = (
    *(
        "ConstantOfShape",
        "Expand",
        "Tile",
        "Loop",
        "If",
        "Scan",
        "Reshape",
        "Gather",
        "Range",
        "Pad",
    ),
    *("NonZero", "Resize", "Conv", "Einsum", "Where", "TopK", "SequenceInsert", "Nonsense", ""),
)


def _if_model() -> bytes:
    """y = x @ W, in one branch of an If."""
    w = numpy_helper.from_array(tiny.weights(), "w")
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branches = [
        helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"])], name, [], [out])
        for name in ("then", "else")
    ]
    yes = numpy_helper.from_array(np.array(True), "yes")
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1])
    return tiny.model_of([node], [w, yes])


def _quantised() -> bytes:
    """y = x @ W by way of QuantizeLinear and DequantizeLinear, finely enough for the golden outputs."""
    w = tiny.weights()
    scale = np.float32(np.abs(w).max() / (1 << 30))
    stored = np.round(w.astype(np.float64) / scale).astype(np.int32)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return tiny.model_of(
        nodes, [numpy_helper.from_array(stored, "q"), numpy_helper.from_array(scale, "s")]
    )


def _counted() -> bytes:
    """A loop of three rounds that adds nothing, before y = x @ W."""
    model = onnx.load_from_string(tiny.endless())
    for tensor in model.graph.initializer:
        if tensor.name == "rounds":
            tensor.CopyFrom(numpy_helper.from_array(np.array(0, np.int64), "rounds"))
    return model.SerializeToString()


def _constants() -> bytes:
    """y = x @ W + 0, the zero made by ConstantOfShape, Expand and Tile."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zero"]),
        helper.make_node("Expand", ["zero", "wide"], ["row"]),
        helper.make_node("Tile", ["row", "once"], ["rows"]),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Add", ["z", "rows"], ["y"]),
    ]
    numbers = {"shape": [1], "wide": [3], "once": [1]}
    return tiny.model_of(
        nodes,
        [
            numpy_helper.from_array(tiny.weights(), "w"),
            *(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in numbers.items()),
        ],
    )


def bases() -> list[bytes]:
    """Models that a release made by `tiny_release.write` keeps its promises with."""
    return [tiny.linear(), _if_model(), _quantised(), _counted(), _constants()]


def mutated(base: bytes, number: int) -> bytes:
    """The base, spoilt in the way of this number; the same again for the same number."""
    draw = random.Random(number)  # noqa: S311 - a choice, not a secret
    data = base
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(_WAYS)(data, draw)
    return data


# ------------------------------------------------------------------ on the bytes
def _flip(data: bytes, draw: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        if spoilt:
            spoilt[draw.randrange(len(spoilt))] ^= 1 << draw.randrange(8)
    return bytes(spoilt)


def _truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _splice(data: bytes, draw: random.Random) -> bytes:
    """A piece goes, comes twice, or gives way to noise."""
    start, stop = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    piece = data[start:stop]
    return data[:start] + draw.choice((b"", piece * 2, draw.randbytes(stop - start))) + data[stop:]


# ------------------------------------------------------------------ on the message
def _on_message(change: Callable[[onnx.ModelProto, random.Random], None]):
    def way(data: bytes, draw: random.Random) -> bytes:
        model = onnx.ModelProto()
        try:
            model.ParseFromString(data)
            change(model, draw)
            return model.SerializeToString()
        except Exception:  # noqa: BLE001 - what an earlier way made is no message any more
            return _flip(data, draw)

    return way


def _places(message) -> list:
    """Every field of the message and of those in it that is there."""
    found = []
    for field, value in message.ListFields():
        found.append((message, field))
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                found += _places(inner)
    return found


def _remove(model: onnx.ModelProto, draw: random.Random) -> None:
    message, field = draw.choice(_places(model))
    value = getattr(message, field.name)
    if field.is_repeated and draw.random() < 0.7:
        del value[draw.randrange(len(value))]
    else:
        message.ClearField(field.name)


def _repeat(model: onnx.ModelProto, draw: random.Random) -> None:
    repeated = [(m, f) for m, f in _places(model) if f.is_repeated]
    message, field = draw.choice(repeated)
    value = getattr(message, field.name)
    value.extend([value[draw.randrange(len(value))]] * draw.choice((1, 2, 1000)))


def _number(model: onnx.ModelProto, draw: random.Random) -> None:
    """An integer becomes one that nobody expects: dimensions, types, attributes, versions."""
    kinds = ("CPPTYPE_INT32", "CPPTYPE_INT64", "CPPTYPE_UINT64", "CPPTYPE_ENUM")
    numbers = [
        (m, f) for m, f in _places(model) if f.cpp_type in {getattr(f, kind) for kind in kinds}
    ]
    message, field = draw.choice(numbers)
    wanted = draw.choice((*HUGE, draw.randrange(40), draw.randrange(40)))
    if field.cpp_type == field.CPPTYPE_UINT64:
        wanted %= 1 << 64
    elif field.cpp_type in {field.CPPTYPE_INT32, field.CPPTYPE_ENUM}:
        wanted = max(-(2**31), min(wanted, 2**31 - 1))
    if field.is_repeated:
        value = getattr(message, field.name)
        value[draw.randrange(len(value))] = wanted
    else:
        setattr(message, field.name, wanted)


def _shuffle_names(model: onnx.ModelProto, draw: random.Random) -> None:
    """Inputs and outputs of nodes are joined otherwise, also in circles."""
    nodes = [m for m, f in _places(model) if isinstance(m, onnx.NodeProto)]
    names = [name for node in nodes for name in (*node.input, *node.output)]
    node = draw.choice(nodes)
    side = draw.choice([s for s in (node.input, node.output) if s])
    side[draw.randrange(len(side))] = draw.choice(names)


def _operator(model: onnx.ModelProto, draw: random.Random) -> None:
    node = draw.choice([m for m, f in _places(model) if isinstance(m, onnx.NodeProto)])
    node.op_type = draw.choice(OPERATORS)
    if draw.random() < 0.2:
        node.domain = draw.choice(("com.microsoft", "ai.onnx.ml", "nowhere", "ai.onnx"))


def _amount(model: onnx.ModelProto, draw: random.Random) -> None:
    """An initializer's values are huge: shapes, repeats, rounds."""
    whole = [t for t in model.graph.initializer if t.data_type == TensorProto.INT64]
    if not whole:
        _number(model, draw)
        return
    tensor = draw.choice(whole)
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[draw.randrange(values.size)] = draw.choice(HUGE)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _claim(model: onnx.ModelProto, draw: random.Random) -> None:
    tensor = draw.choice(model.graph.initializer)
    tensor.dims[:] = [draw.choice(HUGE) for _ in range(draw.randint(0, 20))]


def _swap_types(model: onnx.ModelProto, draw: random.Random) -> None:
    value = draw.choice([*model.graph.input, *model.graph.output])
    shape = value.type.tensor_type.shape
    if draw.random() < 0.5 and shape.dim:
        shape.dim.extend(reversed([shape.dim.pop() for _ in range(len(shape.dim))]))
    else:
        value.type.tensor_type.elem_type = draw.randrange(30)


def _external(model: onnx.ModelProto, draw: random.Random) -> None:
    tensor = draw.choice(model.graph.initializer)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    places = ("/etc/passwd", "../../blobs", "golden.npz", "weights.bin", "", "model.onnx", "a\0b")
    for key, value in (
        ("location", draw.choice(places)),
        ("offset", str(draw.choice(HUGE))),
        ("length", str(draw.choice(HUGE))),
    ):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _nest(model: onnx.ModelProto, draw: random.Random) -> None:
    """The graph stands in a branch of an If of a graph, over and over."""
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    for _ in range(draw.choice((2, 7, 9, 30))):
        outer = onnx.GraphProto()
        outer.CopyFrom(model.graph)
        del outer.node[:]
        node = outer.node.add(op_type="If", input=["yes"], output=["y"])
        for branch in ("then_branch", "else_branch")[: draw.choice((1, 1, 2)) if _ < 6 else 1]:
            node.attribute.add(name=branch, type=onnx.AttributeProto.GRAPH).g.CopyFrom(graph)
        graph = outer
    model.graph.CopyFrom(graph)


_WAYS = (
    *(_flip, _truncate, _splice),
    *map(
        _on_message,
        (
            *(_remove, _repeat, _number, _number, _shuffle_names, _operator, _amount, _amount),
            *(_claim, _swap_types, _external, _nest),
        ),
    ),
)


def release_of(directory: Path, model: bytes) -> None:
    """A release directory around the model."""
    tiny.write(directory, model=model)
