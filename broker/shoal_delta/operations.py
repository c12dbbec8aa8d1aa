"""The operations a segment is made of: what each stretch of the new file is built from.

Bytes <-> values and the checks that need no file; the arithmetic stands in `arithmetic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from shoal_delta.errors import CorruptDeltaError
from shoal_delta.wire import Cursor, varint, zigzag

MAX_OPERATIONS_BYTES = 1 << 20
MAX_OPERATIONS = 1 << 16
_EXPLICIT_SOURCE = 0x10


class Kind(IntEnum):
    """What an operation does. Numbers are on the wire."""

    COPY = 0
    """Bytes of the old file as they are."""
    LITERAL = 1
    """Bytes from the literal stream: graph, names, text."""
    FRESH = 2
    """Bytes from the fresh stream: weights without a base."""
    SUBTRACT = 3
    """Old byte + residual, modulo 256."""
    INTEGER16 = 4
    """Old little-endian integer + zigzag difference from the byte planes, modulo 2^16."""
    INTEGER32 = 5
    FLOAT16 = 6
    """The same on the monotone integer map of a float (also bfloat16)."""
    FLOAT32 = 7
    PLANES16 = 8
    """Elements without a base, byte plane by byte plane."""
    PLANES32 = 9
    SCALED_S8 = 10
    """Prediction of a signed weight from the old one and both scales, + residual, modulo 256."""
    SCALED_U8 = 11
    GLOBAL = 12
    """Bytes of the global block."""


WIDTH = {
    Kind.INTEGER16: 2,
    Kind.FLOAT16: 2,
    Kind.PLANES16: 2,
    Kind.INTEGER32: 4,
    Kind.FLOAT32: 4,
    Kind.PLANES32: 4,
}
SCALED = frozenset({Kind.SCALED_S8, Kind.SCALED_U8})
FROM_OLD = SCALED | {
    Kind.COPY,
    Kind.SUBTRACT,
    Kind.INTEGER16,
    Kind.INTEGER32,
    Kind.FLOAT16,
    Kind.FLOAT32,
}


@dataclass(frozen=True, slots=True)
class Scaling:
    """Where a weight tensor's scales stand: float32, little endian, one a channel.

    The element `i` of the operation belongs to channel ((`first` + i) // `inner`) % `channels`.
    Old scales are read at `old_scales` in the old file, new ones at `new_scales` in the global block.
    """

    first: int
    inner: int
    channels: int
    old_scales: int
    new_scales: int
    old_zero_point: int
    new_zero_point: int


@dataclass(frozen=True, slots=True)
class Operation:
    """`size` bytes of output; `source` is an offset in the old file, or in the global block."""

    kind: Kind
    size: int
    source: int = 0
    scaling: Scaling | None = None


def encode(operations: list[Operation], start: int) -> bytes:
    """Operations as bytes; `start` is the output offset, where both cursors begin."""
    out = bytearray()
    cursors = {True: start, False: 0}
    for operation in operations:
        old = operation.kind in FROM_OLD
        has_source = old or operation.kind is Kind.GLOBAL
        moved = has_source and operation.source != cursors[old]
        out.append(operation.kind | (_EXPLICIT_SOURCE if moved else 0))
        out += varint(operation.size)
        if moved:
            out += varint(zigzag(operation.source - cursors[old]))
        if has_source:
            cursors[old] = operation.source + operation.size
        if (scaling := operation.scaling) is not None:
            for value in (scaling.first, scaling.inner, scaling.channels):
                out += varint(value)
            out += varint(zigzag(scaling.old_scales - operation.source))
            out += varint(scaling.new_scales)
            out += varint(zigzag(scaling.old_zero_point))
            out += varint(zigzag(scaling.new_zero_point))
    return bytes(out)


def decode(data: bytes, start: int, size: int, old_size: int, global_size: int) -> list[Operation]:
    """The operations in `data`, which make `size` bytes at `start`.

    Raises:
        CorruptDeltaError: anything points outside the files or does not add up.
    """
    cursor = Cursor(data)
    operations: list[Operation] = []
    cursors, made = {True: start, False: 0}, 0
    limits = {True: old_size, False: global_size}
    while cursor.remaining:
        code = cursor.byte()
        try:
            kind = Kind(code & ~_EXPLICIT_SOURCE)
        except ValueError as exc:
            raise CorruptDeltaError(f"operation {code} is not known") from exc
        length = cursor.number()
        made += length
        if len(operations) == MAX_OPERATIONS:
            raise CorruptDeltaError("a segment has too many operations")
        if length == 0 or made > size or length % WIDTH.get(kind, 1):
            raise CorruptDeltaError("an operation's size is not possible")
        source, old = 0, kind in FROM_OLD
        if old or kind is Kind.GLOBAL:
            source = cursors[old] + (cursor.signed() if code & _EXPLICIT_SOURCE else 0)
            if not 0 <= source <= limits[old] - length:
                raise CorruptDeltaError("an operation reads outside its source")
            cursors[old] = source + length
        elif code & _EXPLICIT_SOURCE:
            raise CorruptDeltaError("an operation without a source names one")
        scaling = _scaling(cursor, kind, source, limits) if kind in SCALED else None
        operations.append(Operation(kind, length, source, scaling))
    if made != size:
        raise CorruptDeltaError("the operations do not fill their segment")
    return operations


def _scaling(cursor: Cursor, kind: Kind, source: int, limits: dict[bool, int]) -> Scaling:
    first, inner, channels = cursor.number(), cursor.number(), cursor.number()
    old_scales, new_scales = source + cursor.signed(), cursor.number()
    old_zero_point, new_zero_point = cursor.signed(), cursor.signed()
    low, high = value_range(kind)
    if (
        inner == 0
        or channels == 0
        or max(first, inner) > max(limits.values())
        or not 0 <= old_scales <= limits[True] - 4 * channels
        or new_scales > limits[False] - 4 * channels
        or not low <= min(old_zero_point, new_zero_point)
        or not max(old_zero_point, new_zero_point) <= high
    ):
        raise CorruptDeltaError("a weight tensor's scales are not possible")
    return Scaling(first, inner, channels, old_scales, new_scales, old_zero_point, new_zero_point)


def value_range(kind: Kind) -> tuple[int, int]:
    """The least and the greatest weight of a SCALED kind."""
    return (-128, 127) if kind is Kind.SCALED_S8 else (0, 255)
