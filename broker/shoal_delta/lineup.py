"""The base of each new tensor: the old one as it stands, or seen through a view when its axes changed.

`tensor_match` says which old tensor belongs to which new one, `alignment` which rows are still there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from math import prod

import numpy as np
import numpy.typing as npt

from shoal_delta.alignment import Numbers, aligned_axis, end_map, seen_through
from shoal_delta.arithmetic import as_bytes, differences, planes
from shoal_delta.onnx_wire import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    INT8,
    INT16,
    INT32,
    UINT8,
    UINT16,
    Model,
    Tensor,
)
from shoal_delta.plan import cost_bits
from shoal_delta.views import MAX_MAPPED, MAX_TURNED_BYTES, MAX_VIEWS, AxisMap, View, Views

_ELEMENTS = {
    FLOAT: "<u4",
    UINT8: "u1",
    INT8: "i1",
    UINT16: "<u2",
    INT16: "<i2",
    INT32: "<i4",
    FLOAT16: "<u2",
    BFLOAT16: "<u2",
}
_FLOATS = frozenset({FLOAT, FLOAT16, BFLOAT16})
_VIEW_COST_BITS = 8 * 8
_MAX_TURNED_RANK = 4
_MAX_CHANGED_AXES = 2
_INTEGER_RANGE = 1 << 30

Elements = npt.NDArray[np.generic]
_Way = tuple[tuple[int, AxisMap], ...]


def lined_up(
    files: tuple[bytes, bytes], after: Model, matches: Mapping[int, Tensor]
) -> tuple[dict[int, Tensor], Views]:
    """The base of each new tensor (by its offset) that has one, and the views that some of them are in.

    A base has the new tensor's shape, unless it is only a beginning of it.
    """
    work = _LineUp(files, after)
    bases: dict[int, Tensor] = {}
    # What has many numbers a row tells best which rows are there; the others follow it.
    for tensor in sorted(after.tensors, key=lambda t: _order(t, matches.get(t.offset))):
        match = matches.get(tensor.offset)
        if match is not None:
            bases[tensor.offset] = work.base(tensor, match)
    return bases, Views(tuple(work.views), len(files[0]))


def _order(tensor: Tensor, match: Tensor | None) -> tuple[int, int, int]:
    changed = len(_changed_axes(tensor, match)) if match is not None else 0
    features = tensor.size // max(1, max(tensor.dims, default=1))
    return int(len(tensor.dims) < 2), changed, -features  # noqa: PLR2004


def _changed_axes(tensor: Tensor, match: Tensor) -> list[int]:
    if len(tensor.dims) != len(match.dims):
        return []
    pairs = zip(match.dims, tensor.dims, strict=True)
    return [axis for axis, (old, new) in enumerate(pairs) if old != new]


@dataclass(slots=True)
class _LineUp:
    files: tuple[bytes, bytes]
    after: Model
    views: list[View] = field(default_factory=list)
    _end: int = 0
    _maps: dict[tuple[int, int], list[AxisMap]] = field(default_factory=dict)
    _mapped: int = 0

    def base(self, tensor: Tensor, match: Tensor) -> Tensor:
        """`match`, or a view of it that is nearer to `tensor`."""
        kind = _ELEMENTS.get(tensor.dtype)
        if kind is None or match.dtype != tensor.dtype or len(self.views) >= MAX_VIEWS:
            return match
        shown = [
            _shaped(file, t, kind) for file, t in zip(self.files, (match, tensor), strict=True)
        ]
        old, new = shown
        if old is None or new is None:
            return match
        plain = _plain_bits(old, new, tensor.dtype)
        fresh = _bits(None, new, tensor.dtype)
        if tensor.dims == match.dims and 8 * plain < 7 * fresh:
            return match
        return self._nearest(tensor, match, (old, new), min(plain, fresh) - _VIEW_COST_BITS)

    def _nearest(
        self, tensor: Tensor, match: Tensor, arrays: tuple[Elements, Elements], limit: int
    ) -> Tensor:
        old, new = arrays
        view, best = None, limit
        for order in _turns(tensor, match):
            bits = _bits(old.transpose(order), new, tensor.dtype)
            if bits < best:
                axes = match.dims
                view, best = View(match.offset, old.itemsize, axes, 0, order), bits
        chosen: _Way = ()
        for way in self._ways(tensor, match, arrays):
            seen = old
            for axis, each in way:
                seen = seen_through(seen, axis, each)
            bits = _bits(seen, new, tensor.dtype)
            if bits < best:
                view, best = _view(match, old.itemsize, way, self._fill(tensor)), bits
                chosen = way
        if view is None or not self._remember(tensor, match, chosen):
            return match
        self.views.append(view)
        self._end += view.size
        offset = len(self.files[0]) + self._end - view.size
        return replace(match, offset=offset, size=tensor.size, dims=tensor.dims)

    def _ways(
        self, tensor: Tensor, match: Tensor, arrays: tuple[Elements, Elements]
    ) -> Iterator[_Way]:
        """What may have become of the axes: maps that other tensors have shown, and this one's own."""
        changed = _changed_axes(tensor, match)
        if not 1 <= len(changed) <= _MAX_CHANGED_AXES:
            return
        known = [self._known(match.dims[axis], tensor.dims[axis]) for axis in changed]
        if len(changed) == 1:
            yield from (((changed[0], each),) for each in known[0])
            own = _own(arrays, tensor.dtype, changed[0])
            if own is not None and not _is_among(own, known[0]):
                yield ((changed[0], own),)
            return
        for first, second in (changed, changed[::-1]):
            for each in known[changed.index(first)]:
                part = seen_through(arrays[0], first, each)
                yield from (
                    ((first, each), (second, other)) for other in known[changed.index(second)]
                )
                own = _own((part, arrays[1]), tensor.dtype, second)
                if own is not None and not _is_among(own, known[changed.index(second)]):
                    yield ((first, each), (second, own))

    def _known(self, old_length: int, new_length: int) -> list[AxisMap]:
        return [*self._maps.get((old_length, new_length), ()), end_map(old_length, new_length)]

    def _remember(self, tensor: Tensor, match: Tensor, way: _Way) -> bool:
        """Keep the maps for other tensors; False when there is no room for them."""
        for axis, each in way:
            maps = self._maps.setdefault((match.dims[axis], tensor.dims[axis]), [])
            if each not in maps:
                self._mapped += each.indices.size
                if max(self._mapped, each.old_length) > MAX_MAPPED:
                    return False
                maps.append(each)
        return True

    def _fill(self, tensor: Tensor) -> int:
        """What stands for a weight that is zero."""
        values = self.after.integers.get(tensor.zero_point, ()) if tensor.zero_point else ()
        return values[0] & 0xFF if tensor.dtype == UINT8 and len(set(values)) == 1 else 0


def _shaped(file: bytes, tensor: Tensor, kind: str) -> Elements | None:
    elements = np.dtype(kind)
    if prod(tensor.dims) * elements.itemsize != tensor.size:
        return None
    flat = np.frombuffer(file, elements, tensor.size // elements.itemsize, tensor.offset)
    return flat.reshape(tensor.dims)


def _own(arrays: tuple[Elements, Elements], dtype: int, axis: int) -> AxisMap | None:
    before, after = (_numbers(array, dtype) for array in arrays)
    return aligned_axis(before, after, axis)


def _is_among(own: AxisMap, known: list[AxisMap]) -> bool:
    return any(np.array_equal(own.indices, each.indices) for each in known)


def _numbers(array: Elements, dtype: int) -> Numbers:
    """What the elements stand for, as far as likeness goes."""
    if dtype == BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    elif dtype in _FLOATS:
        array = array.view(
            np.float32 if array.itemsize == np.dtype(np.float32).itemsize else np.float16
        )
    values = array.astype(np.float64)
    if dtype == UINT8:
        values = values - np.median(values)
    return np.clip(np.nan_to_num(values), -_INTEGER_RANGE, _INTEGER_RANGE)


def _plain_bits(old: Elements, new: Elements, dtype: int) -> int:
    """What it takes with the old tensor as it stands, and the rest fresh."""
    size = min(old.size, new.size)
    flat = new.reshape(-1)
    bits = _bits(old.reshape(-1)[:size], flat[:size], dtype)
    return bits + (_bits(None, flat[size:], dtype) if size < flat.size else 0)


def _bits(old: Elements | None, new: Elements, dtype: int) -> int:
    """About how many bits `new` takes with `old` as its base."""
    width = new.itemsize
    after = np.ascontiguousarray(new).tobytes()
    if old is None:
        return sum(cost_bits(plane) for plane in planes(after, width))
    before = np.ascontiguousarray(old).tobytes()
    if width == 1:
        return cost_bits(as_bytes(after) - as_bytes(before))
    parts = differences(before, after, width, is_float=dtype in _FLOATS)
    return sum(cost_bits(plane) for plane in parts)


def _turns(tensor: Tensor, match: Tensor) -> Iterator[tuple[int, ...]]:
    """The orders of the old axes that have the new tensor's shape."""
    rank = len(match.dims)
    if rank != len(tensor.dims) or rank > _MAX_TURNED_RANK or match.size > MAX_TURNED_BYTES:
        return
    if sorted(match.dims) != sorted(tensor.dims):
        return
    for order in permutations(range(rank)):
        moved = [axis for axis in order if match.dims[axis] > 1]
        if moved != sorted(moved) and tuple(match.dims[axis] for axis in order) == tensor.dims:
            yield order


def _view(match: Tensor, width: int, way: _Way, fill: int) -> View:
    """The view with neighbouring axes that did not change joined."""
    maps = dict(way)
    axes: list[int | AxisMap] = []
    for axis, length in enumerate(match.dims):
        each = maps.get(axis)
        if each is not None:
            axes.append(each)
        elif axes and isinstance(last := axes[-1], int):
            axes[-1] = last * length
        else:
            axes.append(length)
    cell = width
    if isinstance(last := axes[-1], int):
        cell *= last
        axes.pop()
    return View(match.offset, cell, tuple(axes), fill)
