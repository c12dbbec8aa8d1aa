"""The operations a segment is made of: what each stretch of the new file is built from.

Bytes <-> values and the checks that need no file; the arithmetic stands in `arithmetic`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum

from shoal_delta import low_rank as low_ranks
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.float_steps import MAX_CELL, MIN_CELL
from shoal_delta.low_rank import LowRank
from shoal_delta.wire import Cursor, varint, zigzag

MAX_OPERATIONS_BYTES = 1 << 20
MAX_OPERATIONS = 1 << 16
MIN_GAIN_BITS, MAX_GAIN_BITS = 8, 14
_KIND = 0x1F
_EXPLICIT_SOURCE = 0x20
_LOW_RANK = 0x40
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
    STEPPED32 = 13
    """Steps from the prediction of a 32-bit float, in cells of one width: see `float_steps`."""
    PRODUCT = 14
    """Float32 numbers of the global block, each times the same one: the scales of QDQ biases."""
    SCALED_I32 = 15
    """Prediction of an integer from the old one and both scales, + zigzag difference, modulo 2^32."""
    GAINED_S8 = 16
    """Prediction of a signed weight from the old one and its channel's gain, + residual, modulo 256."""
    GAINED_U8 = 17


WIDTH = {
    Kind.INTEGER16: 2,
    Kind.FLOAT16: 2,
    Kind.PLANES16: 2,
    Kind.INTEGER32: 4,
    Kind.FLOAT32: 4,
    Kind.PLANES32: 4,
    Kind.STEPPED32: 4,
    Kind.SCALED_I32: 4,
    Kind.PRODUCT: 4,
}
SCALED = frozenset({Kind.SCALED_S8, Kind.SCALED_U8, Kind.SCALED_I32})
GAINED = frozenset({Kind.GAINED_S8, Kind.GAINED_U8})
PREDICTED = GAINED | {Kind.SCALED_S8, Kind.SCALED_U8, Kind.SUBTRACT, Kind.STEPPED32}
"""What may have a low-rank update."""
FROM_GLOBAL = frozenset({Kind.GLOBAL, Kind.PRODUCT})
FROM_OLD = (
    SCALED
    | GAINED
    | {
        Kind.COPY,
        Kind.SUBTRACT,
        Kind.INTEGER16,
        Kind.INTEGER32,
        Kind.FLOAT16,
        Kind.FLOAT32,
        Kind.STEPPED32,
    }
)
# Their contexts are made before anything else of the segment is.
_CONTEXTS_FROM_GLOBAL = GAINED | {Kind.SCALED_S8, Kind.SCALED_U8}


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
class Gains:
    """By how much each channel of a weight tensor grew: 1 + code / 2^`bits`.

    The codes are signed bytes at `codes` in the global block, one a channel; channels as in `Scaling`.
    """

    first: int
    inner: int
    channels: int
    codes: int
    bits: int
    old_zero_point: int
    new_zero_point: int


@dataclass(frozen=True, slots=True)
class Operation:
    """`size` bytes of output; `source` is an offset in the old file, or in the global block.

    `factor` is where the global block holds the one number of a PRODUCT.
    `columns` is how many elements a row of the tensor has (0: not known), for the coder's choice: it
    is not on the wire.
    """

    kind: Kind
    size: int
    source: int = 0
    scaling: Scaling | None = None
    gains: Gains | None = None
    factor: int = 0
    low_rank: LowRank | None = None
    """Added to the prediction."""
    cell: int = MIN_CELL
    """Of a STEPPED32: a cell's width is 2^(`cell` - 127)."""
    columns: int = field(default=0, compare=False)

    def split(self, size: int) -> tuple[Operation, Operation]:
        """The same work in two: the first `size` bytes, a multiple of the width, and the rest."""
        first = size // WIDTH.get(self.kind, 1)
        scaling, gains, low_rank = self.scaling, self.gains, self.low_rank
        rest = replace(
            self,
            size=self.size - size,
            source=self.source + size,
            scaling=replace(scaling, first=scaling.first + first) if scaling is not None else None,
            gains=replace(gains, first=gains.first + first) if gains is not None else None,
            low_rank=(
                replace(low_rank, first=low_rank.first + first) if low_rank is not None else None
            ),
        )
        return replace(self, size=size), rest


def encode(operations: list[Operation], start: int) -> bytes:
    """Operations as bytes; `start` is the output offset, where both cursors begin.

    Like stands with like, which packs better: all codes, then all sizes but the last one, then
    sources, then what else an operation has.
    """
    codes, sizes, sources, details = bytearray(), bytearray(), bytearray(), bytearray()
    cursors = {True: start, False: 0}
    for index, operation in enumerate(operations):
        old = operation.kind in FROM_OLD
        has_source = old or operation.kind in FROM_GLOBAL
        moved = has_source and operation.source != cursors[old]
        flags = _EXPLICIT_SOURCE if moved else 0
        flags |= 0 if operation.low_rank is None else _LOW_RANK
        is_last = index == len(operations) - 1
        codes.append(operation.kind | flags | (_LAST if is_last else 0))
        if not is_last:
            sizes += varint(operation.size)
        if moved:
            sources += varint(zigzag(operation.source - cursors[old]))
        if has_source:
            cursors[old] = operation.source + operation.size
        details += _details(operation)
    return bytes(codes + sizes + sources + details)


def _details(operation: Operation) -> bytes:
    """What stands behind all sources: scaling, gains, factor, cell, low-rank update."""
    out = bytearray()
    if (scaling := operation.scaling) is not None:
        for value in (scaling.first, scaling.inner, scaling.channels):
            out += varint(value)
        out += varint(zigzag(scaling.old_scales - operation.source)) + varint(scaling.new_scales)
        out += varint(zigzag(scaling.old_zero_point)) + varint(zigzag(scaling.new_zero_point))
    if (gains := operation.gains) is not None:
        for value in (gains.first, gains.inner, gains.channels, gains.codes, gains.bits):
            out += varint(value)
        out += varint(zigzag(gains.old_zero_point)) + varint(zigzag(gains.new_zero_point))
    if operation.kind is Kind.PRODUCT:
        out += varint(operation.factor)
    if operation.kind is Kind.STEPPED32:
        out.append(operation.cell)
    if operation.low_rank is not None:
        out += low_ranks.encode(operation.low_rank)
    return bytes(out)


def decode(
    data: bytes, start: int, size: int, old_size: int, global_size: int | None
) -> list[Operation]:
    """The operations in `data`, which make `size` bytes at `start`.

    A `global_size` of None: they make the global block, and find in it what they have made so far.

    Raises:
        CorruptDeltaError: anything points outside the files or does not add up.
    """
    cursor = Cursor(data)
    is_global = global_size is None
    codes = _codes(cursor)
    sizes = [cursor.number() for _ in codes[1:]]
    sizes.append(size - sum(sizes))
    cursors, made = {True: start, False: 0}, 0
    placed: list[tuple[int, Operation, dict[bool, int]]] = []
    for code, length in zip(codes, sizes, strict=True):
        kind = _kind(code, is_global=is_global)
        limits = {True: old_size, False: made if global_size is None else global_size}
        made += length
        if length < 1 or length % WIDTH.get(kind, 1):
            raise CorruptDeltaError("an operation's size is not possible")
        source, old = 0, kind in FROM_OLD
        if old or kind in FROM_GLOBAL:
            source = cursors[old] + (cursor.signed() if code & _EXPLICIT_SOURCE else 0)
            if not 0 <= source <= limits[old] - length:
                raise CorruptDeltaError("an operation reads outside its source")
            cursors[old] = source + length
        elif code & _EXPLICIT_SOURCE:
            raise CorruptDeltaError("an operation without a source names one")
        placed.append((code, Operation(kind, length, source), limits))
    operations = [_completed(cursor, *place) for place in placed]
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


def _kind(code: int, *, is_global: bool) -> Kind:
    try:
        kind = Kind(code & _KIND)
    except ValueError as exc:
        raise CorruptDeltaError(f"operation {code} is not known") from exc
    if is_global and (kind in _CONTEXTS_FROM_GLOBAL or code & _LOW_RANK):
        raise CorruptDeltaError("the global block holds weights")
    if code & _LOW_RANK and kind not in PREDICTED:
        raise CorruptDeltaError("an operation that predicts nothing has a low-rank update")
    return kind


def _completed(cursor: Cursor, code: int, bare: Operation, limits: dict[bool, int]) -> Operation:
    """The operation with what stands behind all sources."""
    operation = _with_details(cursor, bare, limits)
    if not code & _LOW_RANK:
        return operation
    elements = operation.size // WIDTH.get(operation.kind, 1)
    return replace(operation, low_rank=low_ranks.decode(cursor, elements, limits[False]))


def _with_details(cursor: Cursor, bare: Operation, limits: dict[bool, int]) -> Operation:
    kind = bare.kind
    if kind in SCALED:
        return replace(bare, scaling=_scaling(cursor, kind, bare.source, limits))
    if kind in GAINED:
        return replace(bare, gains=_gains(cursor, kind, limits))
    if kind is Kind.PRODUCT:
        factor = cursor.number()
        if factor > limits[False] - 4:
            raise CorruptDeltaError("a product's factor is not in the global block")
        return replace(bare, factor=factor)
    if kind is Kind.STEPPED32:
        cell = cursor.byte()
        if not MIN_CELL <= cell <= MAX_CELL:
            raise CorruptDeltaError("a float's cell is not possible")
        return replace(bare, cell=cell)
    return bare


def _scaling(cursor: Cursor, kind: Kind, source: int, limits: dict[bool, int]) -> Scaling:
    first, inner, channels = cursor.number(), cursor.number(), cursor.number()
    old_scales, new_scales = source + cursor.signed(), cursor.number()
    old_zero_point, new_zero_point = cursor.signed(), cursor.signed()
    if (
        inner == 0
        or channels == 0
        or max(first, inner) > max(limits.values())
        or not 0 <= old_scales <= limits[True] - 4 * channels
        or new_scales > limits[False] - 4 * channels
        or not _are_zero_points(kind, old_zero_point, new_zero_point)
    ):
        raise CorruptDeltaError("a weight tensor's scales are not possible")
    return Scaling(first, inner, channels, old_scales, new_scales, old_zero_point, new_zero_point)


def _gains(cursor: Cursor, kind: Kind, limits: dict[bool, int]) -> Gains:
    first, inner, channels = cursor.number(), cursor.number(), cursor.number()
    codes, bits = cursor.number(), cursor.number()
    old_zero_point, new_zero_point = cursor.signed(), cursor.signed()
    if (
        inner == 0
        or channels == 0
        or max(first, inner) > limits[True]
        or codes > limits[False] - channels
        or not MIN_GAIN_BITS <= bits <= MAX_GAIN_BITS
        or not _are_zero_points(kind, old_zero_point, new_zero_point)
    ):
        raise CorruptDeltaError("a weight tensor's gains are not possible")
    return Gains(first, inner, channels, codes, bits, old_zero_point, new_zero_point)


def _are_zero_points(kind: Kind, *values: int) -> bool:
    low, high = value_range(kind)
    return all(low <= value <= high for value in values)


def value_range(kind: Kind) -> tuple[int, int]:
    """The least and the greatest zero point of a SCALED or GAINED kind."""
    if kind is Kind.SCALED_I32:
        return 0, 0
    return (-128, 127) if kind in {Kind.SCALED_S8, Kind.GAINED_S8} else (0, 255)
