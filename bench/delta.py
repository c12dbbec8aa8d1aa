"""Area `delta`: the model delta against what else makes a new file out of an old one. Digits v1 -> v2.

Every contender's answer is applied and compared: one that does not give the new file back ends the run.
"""

from __future__ import annotations

import importlib.util
import lzma
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import zstandard

import measure
import shoal_delta
from measure import BenchError, Column, Options, Rounds, Row, Table
from shoal_fleet import digits

OURS = "shoal_delta"
SETTINGS = (
    "pair: shoal_fleet.digits v1 -> v2, model.onnx (INT8 QDQ, a small CNN)",
    "xz: liblzma, .xz container, preset 9 extreme; zstd: level 19 of python-zstandard",
    "patch-from: the old file as raw-content dictionary, level 19, long-distance matching",
    "subtract + xz: new - old byte by byte at equal offsets, then xz -9e",
)
# Runs a round: these take milliseconds, and a clock's tick must not decide.
REPEATS = 5
TIMEOUT_S = 30.0
COLUMNS = (
    Column("size_bytes", "bytes", spread=False),
    Column("share_percent", "% of new", 1, spread=False),
    Column("encode_ms", "encode ms", 1),
    Column("apply_ms", "apply ms", 2),
)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to send the new file: `encode(old, new)` and `apply(old, delta)`."""

    encode: Callable[[bytes, bytes], bytes]
    apply: Callable[[bytes, bytes], bytes]


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Measure every contender that is installed."""
    old, new = ((digits.release_dir(n) / "model.onnx").read_bytes() for n in (1, 2))
    contenders = _contenders(options.folder)
    rounds = Rounds(options)
    rounds.run(
        {name: partial(_sample, name, way, old, new) for name, way in contenders.items()}, say=say
    )
    rows = [Row(name, name == OURS, rounds.figures(name)) for name in contenders]
    rows.sort(key=lambda row: row.figures["size_bytes"].median)
    best = next(row.name for row in rows if not row.is_ours)
    ratio = measure.ratio_text(rounds.ratios("size_bytes", OURS, best))
    whole = min(("xz -9e, whole file", "zstd -19, whole file"), key=_size_of(rounds))
    against_whole = measure.ratio_text(rounds.ratios("size_bytes", OURS, whole))
    return Table(
        title=f"delta: {len(old):,} -> {len(new):,} bytes",
        columns=COLUMNS,
        rows=tuple(rows),
        settings=SETTINGS,
        notes=(
            f"size, ours / best peer ({best}): {ratio}",
            f"size, ours / best compression of the whole file ({whole}): {against_whole}",
        ),
        skipped=_skipped(),
    )


def _sample(name: str, way: Contender, old: bytes, new: bytes) -> Mapping[str, float]:
    encode_ms: list[float] = []
    apply_ms: list[float] = []
    delta = b""
    for _ in range(REPEATS):
        started = time.perf_counter()
        delta = way.encode(old, new)
        encoded = time.perf_counter()
        again = way.apply(old, delta)
        apply_ms.append((time.perf_counter() - encoded) * 1e3)
        encode_ms.append((encoded - started) * 1e3)
        if again != new:
            raise BenchError(f"{name} does not give the new file back")
    return {
        "size_bytes": len(delta),
        "share_percent": 100 * len(delta) / len(new),
        "encode_ms": measure.percentile(encode_ms, 0.5),
        "apply_ms": measure.percentile(apply_ms, 0.5),
    }


def _contenders(folder: Path) -> dict[str, Contender]:
    ways = {
        OURS: Contender(shoal_delta.diff, shoal_delta.apply),
        "xz -9e, whole file": Contender(lambda _, new: _xz(new), lambda _, d: lzma.decompress(d)),
        "zstd -19, whole file": Contender(
            lambda _, new: zstandard.ZstdCompressor(level=19).compress(new),
            lambda _, delta: zstandard.ZstdDecompressor().decompress(delta),
        ),
        "zstd -19 --patch-from": Contender(_patch_from, _patch_apply),
        "subtract + xz -9e": Contender(_subtract, _add),
    }
    if importlib.util.find_spec("bsdiff4") is not None:
        bsdiff4 = importlib.import_module("bsdiff4")
        ways["bsdiff4"] = Contender(bsdiff4.diff, bsdiff4.patch)
    if _has_bsdiff():
        ways["bsdiff (process)"] = Contender(
            partial(_bsdiff_encode, folder), partial(_bsdiff_apply, folder)
        )
    return ways


def _skipped() -> tuple[str, ...]:
    if _has_bsdiff() or importlib.util.find_spec("bsdiff4") is not None:
        return ()
    return ("bsdiff: not installed (apt-get install bsdiff)",)


def _size_of(rounds: Rounds) -> Callable[[str], float]:
    return lambda name: rounds.figures(name)["size_bytes"].median


def _xz(content: bytes) -> bytes:
    return lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)


def _patch_from(old: bytes, new: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19,
        source_size=len(old) + len(new),
        window_log=max(10, (len(old) + len(new)).bit_length()),
        enable_ldm=True,
    )
    return zstandard.ZstdCompressor(dict_data=_prefix(old), compression_params=parameters).compress(
        new
    )


def _patch_apply(old: bytes, delta: bytes) -> bytes:
    return zstandard.ZstdDecompressor(dict_data=_prefix(old)).decompress(delta)


def _prefix(old: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _subtract(old: bytes, new: bytes) -> bytes:
    return _xz(_shifted(new, old, -1))


def _add(old: bytes, delta: bytes) -> bytes:
    return _shifted(lzma.decompress(delta), old, 1)


def _shifted(content: bytes, old: bytes, sign: int) -> bytes:
    """`content` plus or minus the old file's bytes at equal offsets, modulo 256."""
    shifted = np.frombuffer(content, np.uint8).copy()
    both = min(len(content), len(old))
    shifted[:both] += np.frombuffer(old, np.uint8)[:both] * np.uint8(sign % 256)
    return shifted.tobytes()


def _has_bsdiff() -> bool:
    return shutil.which("bsdiff") is not None and shutil.which("bspatch") is not None


def _bsdiff_encode(folder: Path, old: bytes, new: bytes) -> bytes:
    if not old:
        # Debian's maps the file, which an empty one cannot be.
        return new
    before, after, patch = (folder / name for name in ("old", "new", "patch"))
    before.write_bytes(old)
    after.write_bytes(new)
    subprocess.run(["bsdiff", before, after, patch], check=True, timeout=TIMEOUT_S)
    return patch.read_bytes()


def _bsdiff_apply(folder: Path, old: bytes, delta: bytes) -> bytes:
    if not old:
        return delta
    before, after, patch = (folder / name for name in ("old", "again", "patch"))
    before.write_bytes(old)
    patch.write_bytes(delta)
    subprocess.run(["bspatch", before, after, patch], check=True, timeout=TIMEOUT_S)
    return after.read_bytes()
