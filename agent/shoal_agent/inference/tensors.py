"""Tensors as values: a type, a shape and bytes. Pure; computing with them is the worker's matter (numpy)."""

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Final, Self

import msgspec

from shoal_agent.inference.errors import BadInputError

ELEMENT_BYTES: Final = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "float16": 2,
    "uint32": 4,
    "int32": 4,
    "float32": 4,
    "uint64": 8,
    "int64": 8,
    "float64": 8,
}
"""Bytes of one element, by the name that numpy has for the type."""
_FLOATS: Final = {"float16": "<e", "float32": "<f", "float64": "<d"}
MAX_DIMENSIONS: Final = 8
MAX_TENSOR_BYTES: Final = 256 * 1024 * 1024


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """Elements in C order, little-endian. Make one of foreign bytes with `of`, which checks."""

    # Not a dataclass: several are made for each request, and a frozen one takes five times as long to make.

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    @classmethod
    def of(cls, dtype: str, shape: Sequence[int], data: bytes | memoryview) -> Self:
        """A tensor whose bytes are as many as type and shape say.

        Raises:
            BadInputError: they are not, the type is unknown, or it is too large.
        """
        if dtype not in ELEMENT_BYTES:
            raise BadInputError(f"{dtype[:32]!r} is no type of a tensor")
        if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape):
            raise BadInputError(f"a tensor has at most {MAX_DIMENSIONS} dimensions, none negative")
        wanted_bytes = math.prod(shape) * ELEMENT_BYTES[dtype]
        if wanted_bytes > MAX_TENSOR_BYTES:
            raise BadInputError(f"a tensor of {wanted_bytes} bytes is too large")
        if isinstance(data, memoryview):
            data = data.cast("B")
        if len(data) != wanted_bytes:
            raise BadInputError(f"{dtype} {list(shape)} has {wanted_bytes} bytes, not {len(data)}")
        return cls(dtype, tuple(shape), data)

    @property
    def size_bytes(self) -> int:
        """How many bytes the elements have."""
        return len(self.data)


def rows(tensor: Tensor, start: int, stop: int) -> bytes | memoryview:
    """The bytes of some rows (first dimension) of a tensor that has them; all of them cost no copy."""
    count = tensor.shape[0]
    if start == 0 and stop == count:
        return tensor.data
    stride = len(tensor.data) // count
    return memoryview(tensor.data)[start * stride : stop * stride]


def padded_rows(
    tensor: Tensor, start: int, stop: int, length: int, pad: int
) -> list[bytes | memoryview]:
    """The bytes of some rows [n, length, ...], each filled up with `pad` to the length given."""
    missing = length - tensor.shape[1]
    if not missing:
        return [rows(tensor, start, stop)]
    stride = len(tensor.data) // tensor.shape[0]
    filling = element(tensor.dtype, pad) * (missing * math.prod(tensor.shape[2:]))
    data = memoryview(tensor.data)
    chunks: list[bytes | memoryview] = []
    for row in range(start, stop):
        chunks += (data[row * stride : (row + 1) * stride], filling)
    return chunks


def element(dtype: str, value: int) -> bytes:
    """One element, little-endian; a value that the type does not hold is cut off."""
    if dtype in _FLOATS:
        return struct.pack(_FLOATS[dtype], value)
    size_bytes = ELEMENT_BYTES[dtype]
    if dtype == "bool":
        value = bool(value)
    return (value % (1 << 8 * size_bytes)).to_bytes(size_bytes, "little")


def joined(parts: Iterable[Tensor]) -> Tensor:
    """Tensors of equal type and row shape, one below the other."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    count = sum(part.shape[0] for part in parts)
    first = parts[0]
    return Tensor(first.dtype, (count, *first.shape[1:]), b"".join(part.data for part in parts))
