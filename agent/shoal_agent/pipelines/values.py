"""What a message of any program says, as the item that a model takes. Pure: bytes in, bytes out.

JSON and CBOR are searched with paths (`shoal_contract.json_path`). What a path leads to is a number, true or
false (1 and 0), or a list of those; for a model of texts it is a text.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from shoal_agent.errors import PayloadError
from shoal_agent.inference import texts
from shoal_agent.inference.errors import BadInputError
from shoal_contract import cbor
from shoal_contract.errors import DecodeError
from shoal_contract.json_path import Path
from shoal_contract.pipelines import Format
from shoal_contract.release import Encoding
from shoal_contract.units import Conversion

MAX_PAYLOAD_BYTES: Final = 1024 * 1024
MAX_VALUES: Final = 256 * 1024
_U5_BITS: Final = 5
_BYTE_BITS: Final = 8
_LARGEST: Final = {"u5": 31, "u8": 255}

Number = int | float


@dataclass(frozen=True, slots=True)
class ItemReader:
    """Turns messages of one format into items of one encoding; "raw" ones are items already."""

    format: Format
    paths: tuple[Path, ...]
    encoding: Encoding | Literal["text"]

    def item(self, payload: bytes, conversions: Sequence[Conversion | None] = ()) -> bytes:
        """The item that the message holds, with the values of each path in another unit; of a text its row, [1, bytes].

        Raises:
            PayloadError: it holds none.
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise PayloadError(f"{len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} are read")
        if self.encoding == "text":
            return _row(self._text(payload))
        if self.format == "raw":
            return payload
        message = _json(payload) if self.format == "json" else _cbor(payload)
        numbers: list[Number] = []
        for place, path in enumerate(self.paths):
            change = conversions[place] if conversions else None
            for number in _numbers(_found(path, message), path):
                numbers.append(number if change is None else change(number))
                if len(numbers) > MAX_VALUES:
                    raise PayloadError(f"more than {MAX_VALUES} values")
        return encoded(numbers, self.encoding)

    def _text(self, payload: bytes) -> bytes:
        """All of a raw message, or what the paths lead to, with blanks between."""
        if self.format == "raw":
            return payload
        message = _json(payload) if self.format == "json" else _cbor(payload)
        found = [_found(path, message) for path in self.paths]
        for path, value in zip(self.paths, found, strict=True):
            if not isinstance(value, str):
                raise PayloadError(f"{path.text} leads to {_named(value)}, not to a text")
        return " ".join(found).encode("utf-8", "replace")


def _row(text: bytes) -> bytes:
    try:
        return bytes(texts.text_tensor([text]).data)
    except BadInputError as exc:
        raise PayloadError(str(exc)) from exc


def encoded(numbers: Sequence[Number], encoding: Encoding) -> bytes:
    """The item of these values, as the release's [input] `encoding` says.

    Raises:
        PayloadError: a value that it cannot hold.
    """
    if encoding == "f32":
        try:
            return struct.pack(f"<{len(numbers)}f", *numbers)
        except (OverflowError, struct.error) as exc:
            raise PayloadError("a value is too large for a float of 32 bits") from exc
    largest = _LARGEST[encoding]
    whole = [int(number) for number in numbers]
    for number, integer in zip(numbers, whole, strict=True):
        if number != integer or not 0 <= integer <= largest:
            raise PayloadError(f"{number:g} is no integer from 0 to {largest}")
    if encoding == "u8":
        return bytes(whole)
    return b"".join(
        _packed(whole[start : start + _BYTE_BITS]) for start in range(0, len(whole), _BYTE_BITS)
    )


def _packed(values: Sequence[int]) -> bytes:
    """At most eight values of five bits, the last byte filled up with zeros."""
    bits = 0
    for value in values:
        bits = bits << _U5_BITS | value
    size = -(-len(values) * _U5_BITS // _BYTE_BITS)
    return (bits << (size * _BYTE_BITS - len(values) * _U5_BITS)).to_bytes(size, "big")


def _json(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise PayloadError(f"not JSON: {exc}") from exc


def _cbor(payload: bytes) -> object:
    try:
        return cbor.decode(payload, max_bytes=MAX_PAYLOAD_BYTES)
    except DecodeError as exc:
        raise PayloadError(str(exc)) from exc


def _found(path: Path, message: Any) -> Any:
    try:
        return path.find(message)
    except LookupError as exc:
        raise PayloadError(f"there is no {path.text}") from exc


def _numbers(value: Any, path: Path) -> Iterator[Number]:
    """Every number in the value, lists in lists one after the other."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case bool() as flag:
                yield int(flag)
            case int() | float() as number:
                try:
                    is_finite = math.isfinite(number)
                except OverflowError:
                    is_finite = False
                if not is_finite:
                    raise PayloadError(f"{path.text} is not a finite number")
                yield number
            case list() as values:
                waiting += reversed(values)
            case other:
                raise PayloadError(f"{path.text} leads to {_named(other)}, not to a number")


def _named(value: object) -> str:
    names = {str: "text", dict: "an object", bytes: "bytes", type(None): "null"}
    return names.get(type(value), type(value).__name__)
