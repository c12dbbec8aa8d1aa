"""Protobuf's wire format, read strictly and without a schema. What the fields mean is the caller's matter.

Source: protobuf.dev, "Encoding". Groups (wire types 3 and 4) are refused: no file that is read here has any.
"""

from collections.abc import Iterator
from mmap import mmap
from typing import Final, NamedTuple

from shoal_contract.errors import DecodeError

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5
MAX_FIELDS: Final = 1 << 21
"""Of a whole file, over all its messages: a few seconds of reading."""

_MORE: Final = 0x80
_MAX_VARINT_BYTES: Final = 10
_MAX_NUMBER: Final = (1 << 29) - 1
_LOW_BYTES: Final = bytes(range(_MORE))
_PIECE_BYTES: Final = 1 << 20


class Field(NamedTuple):
    """One field of a message: its number, how it is written, its value (varints only), where its content stands."""

    number: int
    wire: int
    value: int
    start: int
    end: int


class Reader:
    """Reads messages in `data`.

    Args:
        data: the whole file.
        max_fields: so many are read in all, over every message.
    """

    def __init__(self, data: bytes | mmap, *, max_fields: int = MAX_FIELDS) -> None:
        self.data = data
        self._left = max_fields

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message that stands there.

        Raises:
            DecodeError: it is no message, or there are too many fields.
        """
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise DecodeError("it has too many fields")
            tag, at = self._varint(position, end)
            number, wire, value = tag >> 3, tag & 7, 0
            match wire:
                case 0:
                    value, position = self._varint(at, end)
                case 1:
                    position = at + 8
                case 2:
                    size, at = self._varint(at, end)
                    position = at + size
                case 5:
                    position = at + 4
                case _:
                    raise DecodeError(f"a field has wire type {wire}")
            if not 1 <= number <= _MAX_NUMBER:
                raise DecodeError(f"a field has number {number}")
            if position > end:
                raise DecodeError("a field ends behind its message")
            yield Field(number, wire, value, at, position)

    def text(self, field: Field, *, max_bytes: int) -> str:
        """A string field.

        Raises:
            DecodeError: it is none, or too long.
        """
        if field.wire != BYTES or field.end - field.start > max_bytes:
            raise DecodeError(f"field {field.number} is no text of at most {max_bytes} bytes")
        try:
            return self.data[field.start : field.end].decode()
        except UnicodeDecodeError as exc:
            raise DecodeError(f"field {field.number} is not UTF-8") from exc

    def integers(self, field: Field, *, max_count: int) -> list[int]:
        """A repeated integer field: one value, or a packed run of them. 64 bits, two's complement.

        Raises:
            DecodeError: it is none, or too long.
        """
        if field.wire == VARINT:
            return [signed(field.value)]
        if field.wire != BYTES:
            raise DecodeError(f"field {field.number} holds no integers")
        values: list[int] = []
        position = field.start
        while position < field.end:
            value, position = self._varint(position, field.end)
            values.append(signed(value))
            if len(values) > max_count:
                raise DecodeError(f"field {field.number} holds more than {max_count} integers")
        return values

    def count_varints(self, field: Field) -> int:
        """How many integers a packed run has; nothing is made of them."""
        if field.wire == VARINT:
            return 1
        # Each of them ends with a byte below 128. In pieces: a field may be half a gigabyte.
        count = 0
        for start in range(field.start, field.end, _PIECE_BYTES):
            piece = self.data[start : min(start + _PIECE_BYTES, field.end)]
            count += len(piece) - len(piece.translate(None, _LOW_BYTES))
        return count

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        data = self.data
        value = shift = 0
        while position < end and shift < 7 * _MAX_VARINT_BYTES:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < _MORE:
                return value, position
            shift += 7
        raise DecodeError("a number has no end")


def signed(value: int) -> int:
    """A varint as protobuf's int64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def span(field: Field, what: str) -> tuple[int, int]:
    """Where the message in a field stands; DecodeError names `what` it should have been."""
    part = message(field, what)
    return part.start, part.end


def message(field: Field, what: str) -> Field:
    """The field, if it can hold a message. Raises DecodeError."""
    if field.wire != BYTES:
        raise DecodeError(f"a {what} has wire type {field.wire}")
    return field


def varint(field: Field) -> int:
    """The number in a field. Raises DecodeError."""
    if field.wire != VARINT:
        raise DecodeError(f"field {field.number} is no number")
    return field.value
