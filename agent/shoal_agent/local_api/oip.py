"""Inference requests and answers of Open Inference Protocol v2: bytes to values and back. Pure.

Both forms: JSON alone, and JSON followed by the tensors' bytes (the binary tensor data extension).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from shoal_agent.inference import texts
from shoal_agent.inference.errors import BadInputError
from shoal_agent.inference.tensors import Tensor
from shoal_agent.local_api.errors import TOO_LARGE, ApiError
from shoal_agent.local_api.tensor_json import (
    DATATYPES,
    TEXTS,
    dtype_of,
    from_json,
    texts_from_json,
    to_list,
)

MAX_TENSORS: Final = 64
MAX_JSON_BYTES: Final = 1 << 20
"""Reading more would keep the agent from everything else for longer than a control loop bears."""
MAX_TIMEOUT_S: Final = 60.0
HIGH, NORMAL, LOW = 2, 1, 0
_MICROSECONDS: Final = 1_000_000
_NO_DATA: Final = msgspec.Raw(b"")

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
_Parameters = Annotated[dict[str, Any], msgspec.Meta(max_length=64)]


class _InputPart(msgspec.Struct, frozen=True):
    name: _Name
    shape: Annotated[list[_Size], msgspec.Meta(max_length=8)]
    datatype: str
    parameters: _Parameters = {}
    data: msgspec.Raw = _NO_DATA


class _OutputPart(msgspec.Struct, frozen=True):
    name: _Name
    parameters: _Parameters = {}


class _Request(msgspec.Struct, frozen=True):
    inputs: Annotated[list[_InputPart], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    id: Annotated[str, msgspec.Meta(max_length=256)] = ""
    parameters: _Parameters = {}
    outputs: Annotated[list[_OutputPart], msgspec.Meta(max_length=MAX_TENSORS)] = []
    # Over WebSocket they stand here; over HTTP they stand in the path.
    model_name: Annotated[str, msgspec.Meta(max_length=256)] = ""
    model_version: Annotated[str, msgspec.Meta(max_length=64)] = ""


class _AnswerPart(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_AnswerPart]
    id: str = ""
    parameters: dict[str, Any] = {}


_REQUESTS: Final = msgspec.json.Decoder(_Request)
_ANSWERS: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Call:
    """One inference that is asked for.

    Attributes:
        outputs: the names of those wanted; none: all.
        binary: which outputs are wanted as bytes; None: all those that `not_binary` lacks.
        timeout_s: None unless the request says so.
        stream_rows: answer so many rows at a time (WebSocket only); 0: all at once.
    """

    id: str
    model: str
    version: str
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    binary: frozenset[str] | None
    not_binary: frozenset[str]
    priority: int
    timeout_s: float | None
    stream_rows: int

    def is_binary(self, output: str) -> bool:
        """Whether this output is wanted as bytes."""
        return output not in self.not_binary if self.binary is None else output in self.binary


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer: its JSON and the bytes that follow it."""

    header: bytes
    tensors: tuple[bytes | memoryview, ...] = ()

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return len(self.header) + sum(len(part) for part in self.tensors)


def decode(
    body: bytes | bytearray, header_bytes: int | None = None, *, model: str = "", version: str = ""
) -> Call:
    """The inference that a body asks for.

    Args:
        body: the JSON, and behind it the bytes of tensors.
        header_bytes: how long the JSON is; None: all of it.
        model: whose inference it is; empty: the one that it names, in the version that it names.
        version: of that model.

    Raises:
        BadInputError: it is no request, or not one that can be served.
        ApiError: 413, there is too much JSON.
    """
    view = memoryview(body)
    header, rest = (view, view[:0]) if header_bytes is None else _cut(view, header_bytes)
    if len(header) > MAX_JSON_BYTES:
        raise ApiError(
            TOO_LARGE, f"JSON has at most {MAX_JSON_BYTES} bytes: send tensors as binary data"
        )
    try:
        request = _REQUESTS.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadInputError(f"no inference request: {exc}") from exc
    inputs: dict[str, Tensor] = {}
    for part in request.inputs:
        if part.name in inputs:
            raise BadInputError(f"input {part.name!r} is there twice")
        inputs[part.name], rest = _tensor(part, rest)
    if len(rest):
        raise BadInputError(f"{len(rest)} bytes follow that are no tensor's")
    if not model:
        model, version = request.model_name, request.model_version
    return _call(request, inputs, model, version)


def encode(
    call: Call,
    outputs: Mapping[str, Tensor],
    *,
    model: str,
    version: str,
    parameters: Mapping[str, Any],
) -> Encoded:
    """The answer to a call. Raises ApiError when JSON lacks what an output holds."""
    parts: list[_AnswerPart] = []
    tensors: list[bytes | memoryview] = []
    for name, tensor in outputs.items():
        datatype, shape = DATATYPES[tensor.dtype], list(tensor.shape)
        if call.is_binary(name):
            size = {"binary_data_size": tensor.size_bytes}
            parts.append(_AnswerPart(name, datatype, shape, size))
            tensors.append(tensor.data)
        else:
            parts.append(_AnswerPart(name, datatype, shape, {}, to_list(name, tensor)))
    answer = _Answer(model, version, parts, call.id, dict(parameters))
    return Encoded(_ANSWERS.encode(answer), tuple(tensors))


def _cut(view: memoryview, header_bytes: int) -> tuple[memoryview, memoryview]:
    if not 0 <= header_bytes <= len(view):
        raise BadInputError(f"the JSON cannot have {header_bytes} of {len(view)} bytes")
    return view[:header_bytes], view[header_bytes:]


def _tensor(part: _InputPart, rest: memoryview) -> tuple[Tensor, memoryview]:
    """One input, and what is left of the bytes behind the JSON."""
    is_texts = part.datatype == TEXTS
    dtype = "" if is_texts else dtype_of(part.datatype)
    size = part.parameters.get("binary_data_size")
    if size is None:
        if part.data is _NO_DATA:
            raise BadInputError(f"input {part.name!r} has no data")
        if is_texts:
            return texts_from_json(part.shape, part.data), rest
        return from_json(dtype, part.shape, part.data), rest
    if part.data is not _NO_DATA:
        raise BadInputError(f"input {part.name!r} has data twice: as JSON and as bytes")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise BadInputError(f"input {part.name!r}: there are not binary_data_size bytes")
    data, rest = rest[:size], rest[size:]
    if is_texts:
        return texts.text_tensor(texts.split(data, texts.count_in(part.shape))), rest
    return Tensor.of(dtype, part.shape, data), rest


def _call(request: _Request, inputs: Mapping[str, Tensor], model: str, version: str) -> Call:
    parameters, outputs = request.parameters, request.outputs
    if _is_set(parameters.get("sequence_id")):
        raise BadInputError("sequences are not served")
    wanted: list[str] = []
    refused: list[str] = []
    for part in outputs:
        if _is_set(part.parameters.get("classification")):
            raise BadInputError("the classification extension is not served")
        as_bytes = _flag(part.parameters, "binary_data")
        if as_bytes is not None:
            (wanted if as_bytes else refused).append(part.name)
    by_default = _flag(parameters, "binary_data_output") is True
    return Call(
        id=request.id,
        model=model,
        version=version,
        inputs=inputs,
        outputs=tuple([part.name for part in outputs]),
        binary=None if by_default else frozenset(wanted),
        not_binary=frozenset(refused),
        priority=_priority(parameters) if parameters else NORMAL,
        timeout_s=_timeout_s(parameters) if parameters else None,
        stream_rows=_count(parameters, "stream_rows") if parameters else 0,
    )


def _is_set(value: object) -> bool:
    """Clients send what they do not use as nothing, too."""
    return value not in (None, 0, "")


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise BadInputError(f"parameter {name} is true or false")


def _count(parameters: Mapping[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise BadInputError(f"parameter {name} is a whole number, not negative")
    return value


def _priority(parameters: Mapping[str, Any]) -> int:
    """Triton's numbers: 1 is the most urgent, 0 the default."""
    match _count(parameters, "priority"):
        case 0 | 2:
            return NORMAL
        case 1:
            return HIGH
        case _:
            return LOW


def _timeout_s(parameters: Mapping[str, Any]) -> float | None:
    timeout_us = _count(parameters, "timeout")
    return min(timeout_us / _MICROSECONDS, MAX_TIMEOUT_S) if timeout_us else None


def error_body(message: str) -> bytes:
    """What stands in the answer to a request that is not served."""
    return msgspec.json.encode({"error": message})
