"""Views: old tensors as the new model has them, with rows, columns or channels gone, come or turned.

A view is read like the old file itself, at offsets from the old file's end on, so every operation works
on it. Offsets of views are known from their table alone; what they show is gathered when it is read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod

import numpy as np
import numpy.typing as npt

from shoal_delta.arithmetic import Bytes, Integers
from shoal_delta.coders import Reader, pack, unpack
from shoal_delta.errors import CorruptDeltaError, LimitError
from shoal_delta.wire import Cursor, varint, zigzag

MAX_TABLE_BYTES = 1 << 18
MAX_VIEWS = 4096
MAX_AXES = 8
MAX_MAPPED = 1 << 19
"""The lengths of all maps together: what is allocated for them is four times that."""
MAX_TURNED_BYTES = 4 << 20
"""An old tensor whose axes change places is read whole."""
_FRESH = -1
# A segment begins with the mode of its operations, and none is this.
_MARK = 0xFF
_BLOCK_CELLS = 1 << 16
# A gather reads at most this many times the bytes it wants, and a page.
_MAX_SPARSENESS = 64
_PAGE_BYTES = 4096
# So few cells that lie far apart are read one by one.
_FEW_CELLS = 16
_MAX_ADDRESS = 1 << 50


@dataclass(frozen=True, slots=True, eq=False)
class AxisMap:
    """Which old index each new index of an axis has: increasing, -1 for what is new.

    Axes that changed in the same way share one map, the very same object.
    """

    old_length: int
    indices: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class View:
    """An old tensor seen with other axes.

    `axes` are the old tensor's, outermost first: a length (unchanged) or a map; then each element is
    `cell` bytes. `order` lists the axes in the view's order; None leaves them. What is new is `fill`.
    """

    source: int
    cell: int
    axes: tuple[int | AxisMap, ...]
    fill: int = 0
    order: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """How many bytes it shows."""
        return self.cell * prod(
            axis if isinstance(axis, int) else axis.indices.size for axis in self.axes
        )

    @property
    def old_size(self) -> int:
        """How many bytes of the old file it may read, from `source` on."""
        return self.cell * prod(
            axis if isinstance(axis, int) else axis.old_length for axis in self.axes
        )


_Steps = list[tuple[int | AxisMap, int]]


@dataclass(frozen=True)
class Views:
    """All the views of a delta, one after the other behind the old file."""

    views: tuple[View, ...] = ()
    old_size: int = 0

    @cached_property
    def starts(self) -> list[int]:
        """Where each view begins, and where the last one ends."""
        return list(accumulate((view.size for view in self.views), initial=self.old_size))

    @property
    def end(self) -> int:
        """The size of the old file with everything behind it."""
        return self.starts[-1]

    def reader(self, old: Reader) -> Reader:
        """Reads the old file, and the views behind it."""
        if not self.views:
            return old

        def read(offset: int, size: int) -> bytes:
            if offset + size <= self.old_size:
                return old(offset, size)
            pieces = [old(offset, self.old_size - offset)] if offset < self.old_size else []
            index = max(0, bisect_right(self.starts, offset) - 1)
            while index < len(self.views) and (start := self.starts[index]) < offset + size:
                first, last = max(offset, start) - start, offset + size - start
                view = self.views[index]
                pieces.append(_shown(view, first, min(last, view.size), old))
                index += 1
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)

        return read

    def origin(self, offset: int) -> int:
        """Where the old tensor begins that is seen at `offset`; of the old file `offset` itself."""
        for view, (start, end) in zip(self.views, pairwise(self.starts), strict=True):
            if start <= offset < end:
                return view.source
        return offset


def _shown(view: View, first: int, last: int, old: Reader) -> bytes:
    """The bytes `first` to `last` of a view."""
    steps = _steps(view)
    from_cell, to_cell = first // view.cell, -(-last // view.cell)
    if view.cell >= _PAGE_BYTES:
        return _parts(view, steps, first, last, old)
    pieces = []
    for start in range(from_cell, to_cell, _BLOCK_CELLS):
        cells = np.arange(start, min(start + _BLOCK_CELLS, to_cell), dtype=np.int64)
        pieces.append(_gathered(view, _offsets(steps, cells), old).tobytes())
    skip = first - from_cell * view.cell
    return b"".join(pieces)[skip : skip + last - first]


def _parts(view: View, steps: _Steps, first: int, last: int, old: Reader) -> bytes:
    """The same of large cells: of the first and the last one only what is asked for is read."""
    cells = np.arange(first // view.cell, -(-last // view.cell), dtype=np.int64)
    pieces = []
    for cell, offset in zip(cells.tolist(), _offsets(steps, cells).tolist(), strict=True):
        start, end = (max(0, min(at - cell * view.cell, view.cell)) for at in (first, last))
        if offset == _FRESH:
            pieces.append(bytes([view.fill]) * (end - start))
        else:
            pieces.append(old(view.source + offset + start, end - start))
    return b"".join(pieces)


def _offsets(steps: _Steps, cells: Integers) -> Integers:
    """Where each cell of the view stands in the old tensor; -1: new."""
    offsets, is_fresh = np.zeros_like(cells), np.zeros(cells.size, dtype=np.bool_)
    for axis, stride in steps:
        if isinstance(axis, int):
            cells, position = np.divmod(cells, axis)
            offsets += position * stride
        else:
            cells, position = np.divmod(cells, axis.indices.size)
            index = axis.indices[position]
            is_fresh |= index < 0
            offsets += index.astype(np.int64) * stride
    offsets[is_fresh] = _FRESH
    return offsets


def _steps(view: View) -> _Steps:
    """Each axis and its stride in the old tensor, innermost first, in the view's order."""
    steps: _Steps = []
    stride = view.cell
    for axis in reversed(view.axes):
        steps.append((axis, stride))
        stride *= axis if isinstance(axis, int) else axis.old_length
    if view.order is None:
        return steps
    return [steps[len(steps) - 1 - axis] for axis in reversed(view.order)]


def _gathered(view: View, offsets: Integers, old: Reader) -> Bytes:
    """Cells of the old tensor at `offsets` (-1: new), uint8 [cells, cell]."""
    known = offsets[offsets >= 0]
    out = np.full((offsets.size, view.cell), view.fill, dtype=np.uint8)
    if known.size == 0:
        return out
    low, high = int(known.min()), int(known.max()) + view.cell
    if known.size > 1 and high - low > _MAX_SPARSENESS * known.size * view.cell + _PAGE_BYTES:
        if known.size <= _FEW_CELLS:
            cells = b"".join(old(view.source + offset, view.cell) for offset in known.tolist())
            out[offsets >= 0] = np.frombuffer(cells, np.uint8).reshape(-1, view.cell)
            return out
        middle = offsets.size // 2
        halves = [_gathered(view, part, old) for part in (offsets[:middle], offsets[middle:])]
        return np.concatenate(halves)
    span = np.frombuffer(old(view.source + low, high - low), dtype=np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(span, view.cell)
    out[offsets >= 0] = windows[known - low]
    return out


def encode(views: Views) -> bytes:
    """The table of views, packed, to stand before a segment; nothing when there is none."""
    if not views.views:
        return b""
    maps: list[AxisMap] = []
    for view in views.views:
        maps += [axis for axis in view.axes if isinstance(axis, AxisMap) and axis not in maps]
    out = bytearray(varint(len(maps)))
    for each in maps:
        out += _encoded_map(each)
    out += varint(len(views.views))
    end = 0
    for view in views.views:
        out += varint(zigzag(view.source - end)) + varint(view.cell) + bytes([view.fill])
        out += varint(len(view.axes) << 1 | (view.order is not None))
        for axis in view.axes:
            if isinstance(axis, int):
                out += bytes([0]) + varint(axis)
            else:
                out += varint(1 + maps.index(axis))
        out += bytes(view.order or ())
        end = view.source + view.old_size
    packed = pack(bytes(out))
    return bytes([_MARK]) + varint(len(out)) + varint(len(packed)) + packed


def decode(cursor: Cursor, old_size: int) -> Views:
    """The views of a delta whose old file has `old_size` bytes; none when `cursor` is at a segment.

    Raises:
        CorruptDeltaError: the table is damaged, or a view reads outside the old file.
        LimitError: it asks for more than the limits allow.
    """
    if cursor.peek() != _MARK:
        return Views((), old_size)
    cursor.byte()
    raw_size = cursor.number()
    if raw_size > MAX_TABLE_BYTES:
        raise LimitError(
            f"the delta's views claim {raw_size} bytes; {MAX_TABLE_BYTES} is the limit"
        )
    table = Cursor(unpack(cursor.take(cursor.number()), raw_size, _no_old_file))
    maps = _maps(table)
    count, end = table.number(), 0
    if count > MAX_VIEWS:
        raise LimitError(f"the delta claims {count} views; {MAX_VIEWS} is the limit")
    views: list[View] = []
    for _ in range(count):
        view = _view(table, maps, end)
        end = view.source + view.old_size
        if view.source < 0 or end > old_size:
            raise CorruptDeltaError("a view reads outside the old file")
        views.append(view)
    found = Views(tuple(views), old_size)
    if table.remaining or found.end > _MAX_ADDRESS:
        raise CorruptDeltaError("the delta's views are not possible")
    return found


def _encoded_map(each: AxisMap) -> bytes:
    """Runs: how many old indices are left out, how many are new, how many are kept."""
    runs: list[list[int]] = []
    position = 0
    for index in each.indices.tolist():
        if not runs or (index != position and runs[-1][2]):
            runs.append([0, 0, 0])
        if index == _FRESH:
            runs[-1][1] += 1
            continue
        runs[-1][0] += index - position
        runs[-1][2] += 1
        position = index + 1
    out = varint(len(runs)) + b"".join(varint(number) for run in runs for number in run)
    return out + varint(each.old_length - position)


def _maps(table: Cursor) -> list[AxisMap]:
    maps: list[AxisMap] = []
    count, total = table.number(), 0
    if count > table.remaining:
        raise CorruptDeltaError("the delta's views have too many maps")
    for _ in range(count):
        indices, position = array("i"), 0
        for _ in range(table.number()):
            position += table.number()
            fresh, kept = table.number(), table.number()
            total += fresh + kept
            if max(total, position + kept) > MAX_MAPPED:
                raise LimitError(f"the delta's maps are longer than {MAX_MAPPED}")
            indices.extend([_FRESH] * fresh)
            indices.extend(range(position, position + kept))
            position += kept
        maps.append(AxisMap(position + table.number(), np.array(indices, dtype=np.int32)))
    return maps


def _view(table: Cursor, maps: Sequence[AxisMap], end: int) -> View:
    source, cell, fill = end + table.signed(), table.number(), table.byte()
    count = table.number()
    is_turned, count = bool(count & 1), count >> 1
    if not 1 <= count <= MAX_AXES or cell == 0:
        raise CorruptDeltaError("a view's axes are not possible")
    axes: list[int | AxisMap] = []
    for _ in range(count):
        number = table.number()
        if number > len(maps):
            raise CorruptDeltaError("a view asks for a map that is not there")
        axes.append(maps[number - 1] if number else table.number())
    order = tuple(table.take(count)) if is_turned else None
    if order is not None and sorted(order) != list(range(count)):
        raise CorruptDeltaError("a view's axes are not possible")
    view = View(source, cell, tuple(axes), fill, order)
    if view.size == 0 or view.old_size == 0:
        raise CorruptDeltaError("a view is empty")
    if is_turned and view.old_size > MAX_TURNED_BYTES:
        raise LimitError(f"a view turns a tensor of more than {MAX_TURNED_BYTES} bytes")
    return view


def _no_old_file(_offset: int, _size: int) -> bytes:
    raise CorruptDeltaError("the table of views asks for the old file")
