"""What an update changed: of each tensor both models have, how many elements moved and how far.

It compares two files; how a delta says it is `inspection`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoal_delta.onnx_wire import (
    FLOAT,
    FLOAT16,
    INT8,
    INT16,
    INT32,
    UINT8,
    UINT16,
    Tensor,
    walk,
)

_TYPES = {
    FLOAT: "<f4",
    FLOAT16: "<f2",
    INT8: "<i1",
    INT16: "<i2",
    INT32: "<i4",
    UINT8: "<u1",
    UINT16: "<u2",
}


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor, by name: `moved` of its `elements` have another value.

    `mean_move` and `largest_move` are of those, in the element's own unit (levels of a weight); NaN and
    infinities are left out of them. `is_new`: the old model has no such tensor, or of another size.
    """

    name: str
    elements: int
    moved: int
    mean_move: float
    largest_move: float
    is_new: bool = False


def changes(old: bytes, new: bytes) -> tuple[TensorChange, ...]:
    """The tensors of `new` that are not the same as before; none when a file is no model."""
    before, after = walk(old), walk(new)
    if before is None or after is None:
        return ()
    found = (_change(old, new, before.by_name.get(t.name), t) for t in after.tensors)
    return tuple(change for change in found if change.is_new or change.moved)


def _change(old: bytes, new: bytes, before: Tensor | None, after: Tensor) -> TensorChange:
    kind = np.dtype(_TYPES.get(after.dtype, "<u1"))
    elements = after.size // kind.itemsize
    if before is None or (before.dtype, before.size) != (after.dtype, after.size):
        return TensorChange(after.name, elements, elements, 0.0, 0.0, is_new=True)
    was, now = (
        np.frombuffer(file, kind, elements, tensor.offset)
        for file, tensor in ((old, before), (new, after))
    )
    # Bytes, not values: a NaN that stays the same has not moved.
    bits = np.dtype(f"<u{kind.itemsize}")
    moved = was.view(bits) != now.view(bits)
    with np.errstate(all="ignore"):
        move = np.abs(now[moved].astype(np.float64) - was[moved].astype(np.float64))
    move = move[np.isfinite(move)]
    mean, largest = (float(move.mean()), float(move.max())) if move.size else (0.0, 0.0)
    return TensorChange(after.name, elements, int(np.count_nonzero(moved)), mean, largest)
