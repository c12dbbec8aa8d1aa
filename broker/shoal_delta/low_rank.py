"""The low-rank part of a weight matrix's update: two small integer factors and their product.

Fine-tuning moves a matrix by little more than a few outer products (a merged LoRA by nothing else), so
their sum tells where every weight goes, and the residuals only what is left. Here is what stands on
the wire and the product; how factors are found is `low_rank_fit`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal_delta.arithmetic import UPDATE_BITS, Bytes, Drift, Patterns, Updates, rounded
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.wire import Cursor, varint, zigzag

MAX_RANK = 32
MAX_SHIFT = 15
MAX_EXPONENT = 160
MAX_ROWS = 1 << 24
# Rank times columns: what is unpacked to eight bytes each while a segment is made.
MAX_RIGHT = 1 << 18
_MAX_UPDATE = (1 << 15) - 1
# Of larger products a BLAS makes threads, which wait longer than they work.
_BLOCK = 1 << 14
_DIRECTION_STEPS = (2, 4, 7, 10, 14, 19, 25)

Reals = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LowRank:
    """Where the factors of a matrix [`rows`, `columns`] stand in the global block.

    Element `i` of the operation is element `first` + i of the matrix, row by row. At `right`: a shift
    for each of the `rank` components, then its columns' factors [rank, columns]; at `left` its rows'
    factors [rank, rows]. Factors are signed and of `width` bytes (1 or 2), little endian. The update is
    2^`exponent` times the sum over the components of left * right * 2^shift.
    """

    first: int
    rows: int
    columns: int
    rank: int
    width: int
    left: int
    right: int
    exponent: int

    @property
    def left_bytes(self) -> int:
        """Size of what stands at `left`."""
        return self.rank * self.rows * self.width

    @property
    def right_bytes(self) -> int:
        """Size of what stands at `right`, the shifts included."""
        return self.rank * (1 + self.columns * self.width)


def encode(low_rank: LowRank) -> bytes:
    """Its bytes in an operation."""
    out = bytearray()
    for value in (low_rank.first, low_rank.rows, low_rank.columns):
        out += varint(value)
    out += varint(low_rank.rank << 1 | low_rank.width - 1)
    out += varint(low_rank.left) + varint(low_rank.right)
    return bytes(out + varint(zigzag(low_rank.exponent)))


def decode(cursor: Cursor, elements: int, global_size: int) -> LowRank:
    """The next one, for an operation of so many elements.

    Raises:
        CorruptDeltaError: it points outside the matrix or the global block, or is too large.
    """
    first, rows, columns = cursor.number(), cursor.number(), cursor.number()
    rank_and_width = cursor.number()
    rank, width = rank_and_width >> 1, (rank_and_width & 1) + 1
    low_rank = LowRank(
        first, rows, columns, rank, width, cursor.number(), cursor.number(), cursor.signed()
    )
    if (
        not 1 <= rank <= MAX_RANK
        or not 1 <= rows <= MAX_ROWS
        or not 1 <= columns <= MAX_RIGHT // rank
        or first + elements > rows * columns
        or low_rank.left + low_rank.left_bytes > global_size
        or low_rank.right + low_rank.right_bytes > global_size
        or abs(low_rank.exponent) > MAX_EXPONENT
    ):
        raise CorruptDeltaError("a low-rank update is not possible")
    return low_rank


def updates(low_rank: LowRank, elements: int, block: bytes) -> Iterator[tuple[slice, Reals]]:
    """The update of each element of an operation, in blocks: (which elements, their updates).

    Exact, and so the same on every machine: each partial sum of the product is an integer below
    MAX_RANK * 2^15 * 2^15 * 2^MAX_SHIFT = 2^50 in size, and binary64 holds all integers below 2^53,
    whatever the order (or the fused operations) in which a BLAS adds them up. The power of two at the
    end changes the exponent only.
    """
    rank, columns, kind = low_rank.rank, low_rank.columns, f"<i{low_rank.width}"
    shifts = np.frombuffer(block, np.uint8, rank, low_rank.right)
    if shifts.max() > MAX_SHIFT:
        raise CorruptDeltaError("a low-rank update is not possible")
    by_column = np.frombuffer(block, kind, rank * columns, low_rank.right + rank)
    by_row = np.frombuffer(block, kind, rank * low_rank.rows, low_rank.left).reshape(rank, -1)
    scaled = by_column.reshape(rank, -1) * np.ldexp(1.0, shifts[:, None].astype(np.int32))
    position, rows_a_block = low_rank.first, max(1, _BLOCK // max(rank, columns))
    end = position + elements
    while position < end:
        row = position // columns
        stop = min(-(-end // columns), row + rows_a_block)
        product = by_row[:, row:stop].T.astype(np.float64) @ scaled
        part = product.reshape(-1)[position - row * columns : end - row * columns]
        at = position - low_rank.first
        yield slice(at, at + part.size), np.ldexp(part, low_rank.exponent)
        position += part.size


def fixed_updates(low_rank: LowRank, elements: int, block: bytes) -> Updates:
    """The updates of quantised weights in 1/256 of a step: rounded down, limited to 16 bits."""
    out = np.empty(elements, dtype=np.int16)
    for here, update in updates(low_rank, elements, block):
        out[here] = np.clip(np.floor(update), -_MAX_UPDATE, _MAX_UPDATE)
    return out


def moved(old: Patterns, low_rank: LowRank, block: bytes) -> Patterns:
    """Float32 numbers + updates, rounded once to nearest even; what is not finite stays as it is.

    The sum is one of binary64, then converted: IEEE 754 leaves no choice in either.
    """
    numbers, out = old.view("<f4"), old.copy()
    for here, update in updates(low_rank, old.size, block):
        with np.errstate(over="ignore", invalid="ignore"):
            sums = (numbers[here].astype(np.float64) + update).astype("<f4")
        are_finite = np.isfinite(numbers[here]) & np.isfinite(sums)
        out[here] = np.where(are_finite, sums.view("<u4"), old[here])
    return out


def added(old: Bytes, update: Updates) -> tuple[Bytes, Drift]:
    """Old weights + updates modulo 256, and how they were rounded, as from `rescaled`."""
    weight, drift = np.empty_like(old), np.empty(old.size, dtype=np.int16)
    for start in range(0, old.size, _BLOCK):
        here = slice(start, start + _BLOCK)
        whole, drift[here] = rounded(old[here].astype(np.int64) << UPDATE_BITS, update[here])
        weight[here] = whole.astype(np.uint8)
    return weight, drift


def direction_classes(low_rank: LowRank, elements: int, unit: int, block: bytes) -> Bytes:
    """Which way and how far: 7 below two times 2^`unit`, 8 ... 14 above it by steps, 6 ... 0 below 0."""
    out = np.empty(elements, dtype=np.uint8)
    for here, update in updates(low_rank, elements, block):
        far = np.ldexp(update, -unit)
        size = np.searchsorted(_DIRECTION_STEPS, np.abs(far), side="right")
        out[here] = np.where(far < 0, 7 - size, 7 + size)
    return out
