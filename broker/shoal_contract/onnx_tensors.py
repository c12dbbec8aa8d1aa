"""What the tensors of an ONNX file claim, against what stands there: nothing may be made larger than it came.

Field numbers: TensorProto and SparseTensorProto in onnx.proto of ONNX 1.23.
"""

import math
from dataclasses import dataclass
from typing import Final

from shoal_contract.errors import DecodeError
from shoal_contract.protobuf import Field, Reader, span, varint

MAX_TENSORS: Final = 1 << 17
MAX_DIMENSIONS: Final = 16

_MAX_TEXT_BYTES: Final = 4096
_EXTERNAL: Final = 1
_STRING: Final = 8
# Fields of TensorProto.
_DIMS, _DTYPE, _SEGMENT, _TENSOR_NAME, _RAW, _EXTERNAL_DATA, _LOCATION = 1, 2, 3, 8, 9, 13, 14
_VALUES: Final = (4, 5, 6, 7, _RAW, 10, 11)
_COMPLEX: Final = frozenset({14, 15})
_BITS: Final = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
}
"""Bits of an element, by TensorProto.DataType."""


@dataclass(frozen=True, slots=True)
class External:
    """Where a tensor says that its values are, in a file beside the model. `length` None: to the end."""

    tensor: str
    location: str
    offset: int
    length: int | None


class Tensors:
    """Reads tensors, and holds them to their claims.

    Attributes:
        external: those whose values are not in the file.
    """

    def __init__(self, reader: Reader) -> None:
        self.external: list[External] = []
        self._reader = reader
        self._found = 0

    def read_sparse(self, field: Field) -> None:
        """A SparseTensorProto. Raises DecodeError."""
        for part in self._reader.fields(*span(field, "sparse tensor")):
            match part.number:
                case 1 | 2:
                    self.read(part)
                case 3 if min(self._dims(part), default=0) < 0:
                    raise DecodeError("a sparse tensor has a negative dimension")
                case _:
                    pass

    def read(self, field: Field) -> None:
        """A TensorProto. Raises DecodeError."""
        self._found += 1
        if self._found > MAX_TENSORS:
            raise DecodeError(f"it has more than {MAX_TENSORS} tensors")
        parts: dict[int, list[Field]] = {}
        for part in self._reader.fields(*span(field, "tensor")):
            parts.setdefault(part.number, []).append(part)
        if _SEGMENT in parts:
            raise DecodeError("a tensor is a segment of another one")
        dims = [value for part in parts.get(_DIMS, ()) for value in self._dims(part)]
        names = [
            self._reader.text(p, max_bytes=_MAX_TEXT_BYTES) for p in parts.get(_TENSOR_NAME, ())
        ]
        name = names[-1][:64] if names else ""
        if len(dims) > MAX_DIMENSIONS or min(dims, default=0) < 0:
            raise DecodeError(f"the tensor {name!r} has dimensions {dims[: MAX_DIMENSIONS + 1]}")
        entries = parts.get(_EXTERNAL_DATA, [])
        if entries or any(varint(p) == _EXTERNAL for p in parts.get(_LOCATION, ())):
            self.external.append(self._elsewhere(name, entries))
            return
        dtype = varint(parts[_DTYPE][-1]) if _DTYPE in parts else 0
        values = [part for number in _VALUES for part in parts.get(number, ())]
        self._check_claim(name, math.prod(dims), dtype, values)

    def _dims(self, field: Field) -> list[int]:
        return self._reader.integers(field, max_count=MAX_DIMENSIONS)

    def _check_claim(self, name: str, count: int, dtype: int, values: list[Field]) -> None:
        """What a tensor claims to be is what stands in the file: nothing is made larger than it came."""
        raw_bytes = sum(part.end - part.start for part in values if part.number == _RAW)
        found = sum(self._count(part) for part in values if part.number != _RAW)
        if dtype == _STRING:
            wanted, wanted_bytes = count, 0
        elif (bits := _BITS.get(dtype)) is None:
            raise DecodeError(f"the tensor {name!r} is of type {dtype}")
        else:
            wanted_bytes = -(-count * bits // 8)
            wanted = 2 * count if dtype in _COMPLEX else wanted_bytes if bits < 8 else count  # noqa: PLR2004
        is_all_there = (found, raw_bytes) in {(wanted, 0), (0, wanted_bytes)}
        if not is_all_there or (dtype == _STRING and raw_bytes):
            there = f"{raw_bytes} bytes" if raw_bytes else str(found)
            raise DecodeError(
                f"the tensor {name!r} claims {count} values of type {dtype}; there are {there}"
            )

    def _count(self, field: Field) -> int:
        """Values in a typed field of a tensor."""
        match field.number, field.wire:
            case (6, 2) | (4, 5) | (10, 1):
                return 1
            case (4, 2):
                return (field.end - field.start) // 4
            case (10, 2):
                return (field.end - field.start) // 8
            case (5 | 7 | 11, 0 | 2):
                return self._reader.count_varints(field)
            case _:
                raise DecodeError(f"field {field.number} of a tensor has wire type {field.wire}")

    def _elsewhere(self, name: str, entries: list[Field]) -> External:
        found: dict[str, str] = {}
        for entry in entries:
            texts = {
                part.number: self._reader.text(part, max_bytes=_MAX_TEXT_BYTES)
                for part in self._reader.fields(*span(entry, "entry"))
            }
            found[texts.get(1, "")] = texts.get(2, "")
        numbers = (found.get("offset", "0"), found.get("length", "0"))
        if not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in numbers):  # noqa: PLR2004
            raise DecodeError(f"the tensor {name!r} lies at an offset that is no number")
        length = int(numbers[1]) if "length" in found else None
        return External(name, found.get("location", ""), int(numbers[0]), length)
