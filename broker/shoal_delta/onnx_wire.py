"""Where the tensors stand in an ONNX file: a small strict walker of its protobuf, nothing more.

It finds the initializers whose values stand in one piece (raw_data, packed float_data), and which
scale and zero point belong to which weight. It never raises: what it cannot read is not a model,
and the encoder takes the file as bytes. Field numbers: onnx.proto of ONNX 1.23.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

FLOAT, UINT8, INT8, UINT16, INT16, INT32 = 1, 2, 3, 4, 5, 6
FLOAT16, BFLOAT16 = 10, 16
SCALED_TYPES = frozenset({INT8, UINT8})

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_FIELDS = 1 << 20
_MAX_DIMENSIONS = 16
_MORE = 0x80

# node inputs (values, scale, zero point) and, where the operator fixes it, the channel axis
_QUANTISED_INPUTS = {
    "DequantizeLinear": ((0, 1, 2, None),),
    "QLinearConv": ((3, 4, 5, 0),),
    "QLinearMatMul": ((3, 4, 5, -1), (0, 1, 2, -1)),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An initializer: its values are the file's `size` bytes at `offset`.

    `scale` and `zero_point` name other initializers; `axis` is the channels' axis as the node names
    it, None when it does not.
    """

    name: str
    dtype: int
    dims: tuple[int, ...]
    offset: int
    size: int
    scale: str = ""
    zero_point: str = ""
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """An initializer's whole field: what stands from `start` to `end` in the file."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Model:
    """The tensors of a file in file order, and the small integers among the initializers."""

    tensors: tuple[Tensor, ...]
    by_name: dict[str, Tensor]
    integers: dict[str, tuple[int, ...]]
    """The values of int8/uint8 initializers that do not stand in one piece (zero points often), by name."""
    messages: tuple[Message, ...]
    """All initializers in file order."""


class _NotAModelError(Exception):
    """The bytes are not protobuf, or not in the shape of an ONNX model."""


def walk(data: bytes) -> Model | None:
    """The model in `data`, or None when it is none (or has no initializer)."""
    try:
        return _model(data)
    except (_NotAModelError, UnicodeDecodeError):
        return None


def _model(data: bytes) -> Model | None:
    tensors: list[Tensor] = []
    integers: dict[str, tuple[int, ...]] = {}
    quantised: dict[str, tuple[str, str, int | None]] = {}
    messages: list[Message] = []
    for number, kind, _, start, end in _fields(data, 0, len(data)):
        if (number, kind) != (7, _BYTES):  # ModelProto.graph
            continue
        begin = start
        for inner, inner_kind, _, at, stop in _fields(data, start, end):
            if (inner, inner_kind) == (5, _BYTES):  # GraphProto.initializer
                name = _tensor(data, at, stop, tensors, integers)
                messages.append(Message(name, begin, stop))
            elif (inner, inner_kind) == (1, _BYTES):  # GraphProto.node
                _node(data, at, stop, quantised)
            begin = stop
    if not messages:
        return None
    found = []
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        scale, zero_point, axis = quantised.get(tensor.name) or _by_name(tensor.name)
        found.append(
            Tensor(
                tensor.name,
                tensor.dtype,
                tensor.dims,
                tensor.offset,
                tensor.size,
                scale,
                zero_point,
                axis,
            )
        )
    by_name = {tensor.name: tensor for tensor in found}
    return Model(tuple(found), by_name, integers, tuple(messages))


def _by_name(name: str) -> tuple[str, str, int | None]:
    """MatMulInteger and ConvInteger carry no scale; ONNX Runtime's names tell."""
    stem = name.removesuffix("_quantized")
    return ("", "", None) if stem == name else (stem + "_scale", stem + "_zero_point", None)


def _tensor(
    data: bytes,
    start: int,
    end: int,
    tensors: list[Tensor],
    integers: dict[str, tuple[int, ...]],
) -> str:
    dims: list[int] = []
    values: list[int] = []
    dtype, name, span = 0, "", (0, 0)
    for number, kind, value, at, stop in _fields(data, start, end):
        match number:
            case 1:  # dims
                dims += _integers(data, kind, value, at, stop)
            case 2:  # data_type
                dtype = value
            case 5:  # int32_data
                values += _integers(data, kind, value, at, stop)
            case 8:  # name
                name = data[at:stop].decode()
            case 4 | 9 if kind == _BYTES:  # float_data, packed; raw_data
                span = (at, stop - at)
            case _:
                pass
    if len(dims) > _MAX_DIMENSIONS:
        raise _NotAModelError
    if span[1]:
        tensors.append(Tensor(name, dtype, tuple(dims), *span))
    elif values and dtype in {INT8, UINT8}:
        integers[name] = tuple(_signed(value) for value in values)
    return name


def _node(
    data: bytes, start: int, end: int, quantised: dict[str, tuple[str, str, int | None]]
) -> None:
    inputs: list[str] = []
    operator, axis = "", None
    for number, kind, _, at, stop in _fields(data, start, end):
        match number, kind:
            case (1, 2):
                inputs.append(data[at:stop].decode())
            case (4, 2):
                operator = data[at:stop].decode()
            case (5, 2):
                axis = _axis(data, at, stop, axis)
            case _:
                pass
    for values, scale, zero_point, fixed in _QUANTISED_INPUTS.get(operator, ()):
        if len(inputs) > scale:
            zero = inputs[zero_point] if len(inputs) > zero_point else ""
            where = fixed if fixed is not None else axis
            quantised.setdefault(inputs[values], (inputs[scale], zero, where))


def _axis(data: bytes, start: int, end: int, otherwise: int | None) -> int | None:
    """The attribute's integer when it is the one called axis."""
    name, integer = b"", 0
    for number, kind, value, at, stop in _fields(data, start, end):
        if (number, kind) == (1, _BYTES):
            name = data[at:stop]
        elif (number, kind) == (3, _VARINT):
            integer = _signed(value)
    return integer if name == b"axis" else otherwise


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Each field of a message: (number, wire type, varint value, content start, content end)."""
    position = start
    for _ in range(_MAX_FIELDS):
        if position == end:
            return
        tag, position = _number(data, position, end)
        number, kind, value, at = tag >> 3, tag & 7, 0, position
        match kind:
            case 0:
                value, position = _number(data, position, end)
            case 1:
                position += 8
            case 2:
                size, at = _number(data, position, end)
                position = at + size
            case 5:
                position += 4
            case _:
                raise _NotAModelError
        if number == 0 or position > end:
            raise _NotAModelError
        yield number, kind, value, at, position
    raise _NotAModelError


def _integers(data: bytes, kind: int, value: int, position: int, end: int) -> list[int]:
    """A repeated integer field: one value, or a packed run of them."""
    if kind == _VARINT:
        return [value]
    values: list[int] = []
    while position < end and len(values) < _MAX_FIELDS:
        number, position = _number(data, position, end)
        values.append(number)
    return values


def _number(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < _MORE:
            return value, position
    raise _NotAModelError


def _signed(value: int) -> int:
    """A varint as protobuf's two's complement int64."""
    return value - (1 << 64) if value >> 63 else value
