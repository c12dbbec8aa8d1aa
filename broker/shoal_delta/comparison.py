"""Our delta of two files beside what xz and zstd alone make of them: `shoal-delta bench`.

Only what needs nothing installed; the wider comparison is the project's `make bench-delta`.
"""

from __future__ import annotations

import lzma
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import zstandard

from shoal_delta.apply import Progress, apply
from shoal_delta.arithmetic import as_bytes
from shoal_delta.encode import diff

_XZ_PRESET = 9 | lzma.PRESET_EXTREME
_ZSTD_LEVEL = 19


@dataclass(frozen=True, slots=True)
class Comparison:
    """One pair: names, the new file's size, and what travels in each way, in bytes."""

    old: str
    new: str
    new_size: int
    delta_size: int
    subtract_xz_size: int
    zstd_patch_size: int
    xz_size: int
    zstd_size: int
    diff_s: float
    apply_s: float

    @property
    def best_other_size(self) -> int:
        """The smallest of the other ways."""
        return min(self.subtract_xz_size, self.zstd_patch_size, self.xz_size, self.zstd_size)


def neighbours(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The files of `folder` in the order of their names, each with the next one."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    yield from pairwise(files)


def compare(old: Path, new: Path, progress: Progress | None = None) -> Comparison:
    """Make the delta and the others; `diff` has applied it and compared before it returns.

    Raises:
        OSError: a file cannot be read.
        DeltaError: the delta cannot be made.
    """
    before, after = old.read_bytes(), new.read_bytes()
    started = time.perf_counter()
    delta = diff(before, after, progress=progress)
    made = time.perf_counter()
    apply(before, delta, max_output_bytes=len(after))
    applied = time.perf_counter()
    return Comparison(
        old=old.name,
        new=new.name,
        new_size=len(after),
        delta_size=len(delta),
        subtract_xz_size=len(_xz(_subtracted(before, after))),
        zstd_patch_size=len(_zstd_patch(before, after)),
        xz_size=len(_xz(after)),
        zstd_size=len(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(after)),
        diff_s=made - started,
        apply_s=applied - made,
    )


def _xz(content: bytes) -> bytes:
    return lzma.compress(content, preset=_XZ_PRESET)


def _subtracted(old: bytes, new: bytes) -> bytes:
    out = np.frombuffer(new, dtype=np.uint8).copy()
    both = min(len(old), len(new))
    out[:both] -= as_bytes(old)[:both]
    return out.tobytes()


def _zstd_patch(old: bytes, new: bytes) -> bytes:
    if not old:
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(new)
    size = len(old) + len(new)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _ZSTD_LEVEL,
        source_size=size,
        window_log=min(max(10, size.bit_length()), zstandard.WINDOWLOG_MAX),
        enable_ldm=True,
    )
    prefix = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=prefix).compress(new)
