"""ONNX files written by hand, byte by byte: what the delta's tests compare."""

from dataclasses import dataclass

import numpy as np

FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6


def number(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(*fields: tuple[int, bytes | int]) -> bytes:
    out = bytearray()
    for tag, value in fields:
        if isinstance(value, int):
            out += number(tag << 3) + number(value)
        else:
            out += number(tag << 3 | 2) + number(len(value)) + value
    return bytes(out)


def tensor(name: str, dtype: int, dims: tuple[int, ...], raw: bytes) -> bytes:
    return message(*((1, dim) for dim in dims), (2, dtype), (8, name.encode()), (9, raw))


def node(operator: str, inputs: list[str], output: str, axis: int | None = None) -> bytes:
    attributes = [] if axis is None else [(5, message((1, b"axis"), (3, axis), (20, 2)))]
    return message(
        *((1, name.encode()) for name in inputs),
        (2, output.encode()),
        (3, f"{output}_node".encode()),
        (4, operator.encode()),
        *attributes,
    )


def model(nodes: list[bytes], tensors: list[bytes]) -> bytes:
    graph = message(
        *((1, node) for node in nodes), (2, b"graph"), *((5, tensor) for tensor in tensors)
    )
    return message((1, 8), (2, b"tests"), (7, graph), (8, message((2, 17))))


@dataclass(frozen=True)
class Layer:
    """One quantised convolution."""

    channels: int = 16
    inner: int = 72


def network(
    seed: int,
    *,
    drift: float = 0.0,
    own_scales: bool = False,
    layers: tuple[Layer, ...] = (Layer(), Layer(32, 144)),
    prefix: str = "layer",
) -> bytes:
    """A QDQ network: the same weights for every seed, moved by `drift` in a way the seed decides."""
    base, moved = np.random.default_rng(0), np.random.default_rng(seed)
    nodes, tensors = [], []
    for index, layer in enumerate(layers):
        name = f"{prefix}{index}"
        shape = (layer.channels, layer.inner)
        weights = base.laplace(0, 0.1, shape)
        tuned = weights + drift * moved.normal(0, 1, shape)
        scales = np.abs(tuned if own_scales else weights).max(axis=1) / 127
        levels = np.clip(np.rint(tuned / scales[:, None]), -127, 127).astype(np.int8)
        bias = base.integers(-2000, 2000, layer.channels)
        bias += moved.integers(-9, 10, layer.channels) if drift else 0
        dims = (layer.channels, layer.inner // 9, 3, 3)
        tensors += [
            tensor(f"{name}.weight_quantized", INT8, dims, levels.tobytes()),
            tensor(f"{name}.weight_scale", FLOAT, dims[:1], scales.astype("<f4").tobytes()),
            tensor(f"{name}.weight_zero_point", INT8, dims[:1], bytes(layer.channels)),
            tensor(f"{name}.bias_quantized", INT32, dims[:1], bias.astype("<i4").tobytes()),
        ]
        inputs = [f"{name}.weight_{part}" for part in ("quantized", "scale", "zero_point")]
        nodes += [
            node("DequantizeLinear", inputs, f"{name}.weight", axis=0),
            node("Conv", [f"in{index}", f"{name}.weight"], f"in{index + 1}"),
        ]
    return model(nodes, tensors)
