"""A calibration set: real inputs by input name, with labels if there are any, from an .npz. Numpy only."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shoal_fleet.errors import ReleaseBuildError

LABELS: Final = "labels"
MAX_SET_BYTES: Final = 2 << 30
MAX_ARRAYS: Final = 16
HELD_OUT_EVERY: Final = 4
"""Without a set of its own the evaluation gets every fourth item, which is then not calibrated on."""

MIN_ITEMS: Final = 8


@dataclass(frozen=True, slots=True)
class Items:
    """Inputs [n, ...] by name, and labels [n] if known."""

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """How many items."""
        return len(next(iter(self.inputs.values())))

    def take(self, rows: NDArray[np.intp] | slice) -> "Items":
        """Some of the items."""
        return Items(
            {name: values[rows] for name, values in self.inputs.items()},
            None if self.labels is None else self.labels[rows],
        )


def read_items(path: Path) -> Items:
    """The items of an .npz: row k of every array is item k; an array called `labels` is no input.

    Raises:
        ReleaseBuildError: it is none, is too large unpacked, or the arrays do not go together.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [entry.file_size for entry in archive.infolist()]
        if len(sizes) > MAX_ARRAYS or sum(sizes) > MAX_SET_BYTES:
            raise ReleaseBuildError(
                f"{path}: {len(sizes)} arrays of {sum(sizes)} bytes are too many"
                f" (at most {MAX_ARRAYS}, {MAX_SET_BYTES} bytes)"
            )
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: np.asarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        raise ReleaseBuildError(f"{path}: is not an .npz of inputs: {exc}") from exc
    labels = found.pop(LABELS, None)
    counts = {len(values) if values.ndim else 0 for values in found.values()}
    if len(counts) != 1 or 0 in counts:
        raise ReleaseBuildError(f"{path}: the inputs do not have the same number of items")
    (count,) = counts
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu"):
        raise ReleaseBuildError(f"{path}: labels are not {count} whole numbers")
    for name, values in found.items():
        if values.dtype.kind not in "fiub" or not np.isfinite(values).all():
            raise ReleaseBuildError(f"{path}: {name} has values that are no finite numbers")
    return Items(found, None if labels is None else labels.astype(np.int64))


def split(items: Items) -> tuple[Items, Items]:
    """To calibrate with, and to judge by: no item is in both.

    Raises:
        ReleaseBuildError: too few items for two sets.
    """
    if len(items) < MIN_ITEMS:
        raise ReleaseBuildError(
            f"{len(items)} items are too few to calibrate with some and judge by others: at least"
            f" {MIN_ITEMS}, or a second set (--evaluation)"
        )
    rows = np.arange(len(items))
    is_held_out = rows % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return items.take(rows[~is_held_out]), items.take(rows[is_held_out])
