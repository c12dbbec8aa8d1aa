"""Tensors as Open Inference Protocol writes them: names of types, and elements as JSON. Pure, no numpy."""

import math
import sys
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from shoal_agent.inference import texts
from shoal_agent.inference.errors import BadInputError
from shoal_agent.inference.tensors import ELEMENT_BYTES, MAX_DIMENSIONS, Tensor
from shoal_agent.local_api.errors import BAD_REQUEST, FAILED, ApiError

DTYPES: Final = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
TEXTS: Final = "BYTES"
"""Of texts, which only inputs are; they are no elements of one size."""
DATATYPES: Final = {dtype: datatype for datatype, dtype in DTYPES.items()}
# Of array and memoryview; float16 has none.
_CODES: Final = {
    "bool": "B",
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "uint64": "Q",
    "int64": "q",
    "float32": "f",
    "float64": "d",
}
_FLOATS: Final = frozenset({"float16", "float32", "float64"})
MAX_ELEMENTS: Final = 1 << 17
"""Of one output as JSON; more takes too long to write."""
_BLANKS: Final = b" \t\r\n"


def dtype_of(datatype: str) -> str:
    """The engine's name of a type. Raises BadInputError."""
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise BadInputError(
            f"datatype {datatype[:32]!r} is not served; {', '.join((*DTYPES, TEXTS))} are"
        )
    return dtype


def from_json(dtype: str, shape: Sequence[int], data: msgspec.Raw) -> Tensor:
    """The tensor whose elements stand in a JSON array, flat or nested as its shape.

    Raises:
        BadInputError: they are others than type and shape say.
    """
    code = _CODES.get(dtype)
    if code is None:
        raise BadInputError("FP16 has no form in JSON: send it as binary data")
    text = memoryview(data)
    depth = _depth(text, limit=max(1, len(shape)))
    try:
        elements: Any = _decoder(_kind(dtype), depth).decode(text)
    except msgspec.MsgspecError as exc:
        raise BadInputError(f"data of {DATATYPES[dtype]} {list(shape)}: {exc}") from exc
    if depth > 1:
        elements = _flat(elements, shape)
    try:
        values = array(code, elements)
    except (OverflowError, ValueError) as exc:
        raise BadInputError(f"data of {DATATYPES[dtype]}: {exc}") from exc
    # The sum is infinite exactly if an element went beyond what 32 bits can hold.
    if code == "f" and not math.isfinite(sum(values)):
        raise BadInputError("data of FP32: a number is too large")
    if sys.byteorder == "big":
        values.byteswap()
    return Tensor.of(dtype, shape, values.tobytes())


def texts_from_json(shape: Sequence[int], data: msgspec.Raw) -> Tensor:
    """The texts in a JSON array of strings, flat or nested as its shape, as a model takes them.

    Raises:
        BadInputError: they are others than the shape says, or too many.
    """
    count = texts.count_in(shape)
    try:
        elements: Any = _decoder(str, _depth(memoryview(data), limit=len(shape))).decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise BadInputError(f"data of {TEXTS} {list(shape)}: {exc}") from exc
    if elements and isinstance(elements[0], list):
        elements = _flat(elements, shape)
    if len(elements) != count:
        raise BadInputError(f"data has {len(elements)} texts; its shape says {count}")
    try:
        return texts.text_tensor([text.encode() for text in elements])
    except UnicodeEncodeError as exc:
        raise BadInputError(f"data of {TEXTS}: {exc}") from exc


def to_list(name: str, tensor: Tensor) -> list[Any]:
    """Its elements, flat, as JSON can write them. Raises ApiError: JSON cannot."""
    code = _CODES.get(tensor.dtype)
    if code is None:
        raise ApiError(FAILED, f"output {name!r} is FP16, which JSON lacks: ask for binary data")
    if len(tensor.data) > MAX_ELEMENTS * ELEMENT_BYTES[tensor.dtype]:
        raise ApiError(
            BAD_REQUEST, f"output {name!r} has too many elements for JSON: ask for binary data"
        )
    values = array(code)
    values.frombytes(tensor.data)
    if sys.byteorder == "big":
        values.byteswap()
    if (
        tensor.dtype in _FLOATS
        and not math.isfinite(sum(values))
        and not all(map(math.isfinite, values))
    ):
        raise ApiError(
            FAILED, f"output {name!r} is not finite, which JSON lacks: ask for binary data"
        )
    return list(map(bool, values)) if tensor.dtype == "bool" else values.tolist()


def _kind(dtype: str) -> type:
    if dtype == "bool":
        return bool
    return float if dtype in _FLOATS else int


@lru_cache(maxsize=64)
def _decoder(kind: type, depth: int) -> msgspec.json.Decoder[Any]:
    form: Any = kind
    for _ in range(depth):
        form = list[form]
    return msgspec.json.Decoder(form)


def _depth(text: memoryview, *, limit: int) -> int:
    """How deep the arrays are: 1 is flat. Beyond the limit it does not matter."""
    depth = 0
    for byte in text[: limit * 64]:
        if byte == ord("["):
            depth += 1
        elif byte not in _BLANKS:
            break
    if depth > min(limit, MAX_DIMENSIONS):
        raise BadInputError(f"data is nested {depth} deep; its shape has {limit} dimensions")
    return max(1, depth)


def _flat(elements: list[Any], shape: Sequence[int]) -> list[Any]:
    """Nested as its shape says, or BadInputError."""
    level = elements
    wanted = math.prod(shape[:1])
    if len(level) != wanted:
        raise BadInputError(f"data has {len(level)} rows; its shape says {wanted}")
    for size in shape[1:]:
        if any(len(row) != size for row in level):
            raise BadInputError(f"data is not nested as its shape {list(shape)} says")
        level = [item for row in level for item in row]
    return level
