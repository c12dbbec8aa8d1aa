"""Numbers on the wire: LEB128 varints, zigzag, and a cursor that refuses to run past the end.

It knows bytes and integers, nothing of what they mean.
"""

from shoal_delta.errors import CorruptDeltaError

# Nine groups of seven bits: every size and offset a file can have, and no bignum.
VARINT_MAX_BYTES = 9
_MORE = 0x80


def varint(value: int) -> bytes:
    """`value` >= 0 as an unsigned LEB128 number."""
    out = bytearray()
    while value >= _MORE:
        out.append(value & 0x7F | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(value: int) -> int:
    """A signed number as an unsigned one: 0, -1, 1, -2 ... -> 0, 1, 2, 3 ..."""
    return value << 1 if value >= 0 else (-value << 1) - 1


def unzigzag(value: int) -> int:
    """The inverse of `zigzag`."""
    return -((value + 1) >> 1) if value & 1 else value >> 1


class Cursor:
    """Reads `data` from the front; every failure is a `CorruptDeltaError`."""

    __slots__ = ("_data", "position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self.position

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > self.remaining:
            raise CorruptDeltaError("the delta ends in the middle of a field")
        start = self.position
        self.position = start + size
        return self._data[start : self.position]

    def peek(self) -> int | None:
        """The next byte, which stays; None at the end."""
        return self._data[self.position] if self.remaining else None

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def number(self) -> int:
        """The next varint, in its shortest form only."""
        value = 0
        for index in range(VARINT_MAX_BYTES):
            byte = self.byte()
            value |= (byte & 0x7F) << (7 * index)
            if byte < _MORE:
                if byte == 0 and index:
                    raise CorruptDeltaError("a number is not in its shortest form")
                return value
        raise CorruptDeltaError("a number is too long")

    def signed(self) -> int:
        """The next zigzag varint."""
        return unzigzag(self.number())
