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
_KIND = 0x1F
_EXPLICIT_SOURCE = 0x20
_LAST = 0x80


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
    """Operations as bytes; `start` is the output offset, where both cursors begin.

    Like stands with like, which packs better: all codes, then all sizes but the last one, then
    sources, then scalings.
    """
    codes, sizes, sources, scalings = bytearray(), bytearray(), bytearray(), bytearray()
    cursors = {True: start, False: 0}
    for index, operation in enumerate(operations):
        old = operation.kind in FROM_OLD
        has_source = old or operation.kind is Kind.GLOBAL
        moved = has_source and operation.source != cursors[old]
        is_last = index == len(operations) - 1
        codes.append(
            operation.kind | (_EXPLICIT_SOURCE if moved else 0) | (_LAST if is_last else 0)
        )
        if not is_last:
            sizes += varint(operation.size)
        if moved:
            sources += varint(zigzag(operation.source - cursors[old]))
        if has_source:
            cursors[old] = operation.source + operation.size
        if (scaling := operation.scaling) is not None:
            for value in (scaling.first, scaling.inner, scaling.channels):
                scalings += varint(value)
            scalings += varint(zigzag(scaling.old_scales - operation.source))
            scalings += varint(scaling.new_scales)
            scalings += varint(zigzag(scaling.old_zero_point))
            scalings += varint(zigzag(scaling.new_zero_point))
    return bytes(codes + sizes + sources + scalings)


def decode(data: bytes, start: int, size: int, old_size: int, global_size: int) -> list[Operation]:
    """The operations in `data`, which make `size` bytes at `start`.

    Raises:
        CorruptDeltaError: anything points outside the files or does not add up.
    """
    cursor = Cursor(data)
    codes = _codes(cursor)
    sizes = [cursor.number() for _ in codes[1:]]
    sizes.append(size - sum(sizes))
    cursors, limits = {True: start, False: 0}, {True: old_size, False: global_size}
    placed: list[tuple[Kind, int, int]] = []
    for code, length in zip(codes, sizes, strict=True):
        kind = _kind(code)
        if length < 1 or length % WIDTH.get(kind, 1):
            raise CorruptDeltaError("an operation's size is not possible")
        source, old = 0, kind in FROM_OLD
        if old or kind is Kind.GLOBAL:
            source = cursors[old] + (cursor.signed() if code & _EXPLICIT_SOURCE else 0)
            if not 0 <= source <= limits[old] - length:
                raise CorruptDeltaError("an operation reads outside its source")
            cursors[old] = source + length
        elif code & _EXPLICIT_SOURCE:
            raise CorruptDeltaError("an operation without a source names one")
        placed.append((kind, length, source))
    operations = [
        Operation(
            kind,
            length,
            source,
            _scaling(cursor, kind, source, limits) if kind in SCALED else None,
        )
        for kind, length, source in placed
    ]
    if cursor.remaining:
        raise CorruptDeltaError("something follows a segment's operations")
    return operations


def _codes(cursor: Cursor) -> list[int]:
    codes = [cursor.byte()]
    while codes[-1] < _LAST:
        if len(codes) == MAX_OPERATIONS:
            raise CorruptDeltaError("a segment has too many operations")
        codes.append(cursor.byte())
    return codes


def _kind(code: int) -> Kind:
    try:
        kind = Kind(code & _KIND)
    except ValueError as exc:
        raise CorruptDeltaError(f"operation {code} is not known") from exc
    if code & ~(_KIND | _EXPLICIT_SOURCE | _LAST):
        raise CorruptDeltaError(f"operation {code} is not known")
    return kind


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
