"""What every other tool makes of one pair of files, as JSON: a script of .venv-bench-delta.

Each at its strongest setting; its answer is applied and compared, and one that does not give the new
file back is an error. `bench/delta_pairs.py` starts it: OLD NEW FOLDER.
"""

from __future__ import annotations

import io
import json
import lzma
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import brotli
import detools
import hdiffpatch
import numpy as np
import zstandard

import delta_nncodec

Way = tuple[Callable[[], bytes], Callable[[bytes], bytes]]
TIMEOUT_S = 900.0
# Above this detools and its suffix array with heatshrink behind take too long to wait for; lzma is run.
MAX_HEATSHRINK_BYTES = 8_000_000
# casync cuts into chunks of its own; what travels is the chunks the old file does not have, and the index.
CHUNK_BYTES = 16_384


def main() -> int:
    """One JSON object: {name: {size_bytes, encode_s, apply_s}}, and what is not installed."""
    old, new, folder = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    before, after = old.read_bytes(), new.read_bytes()
    figures: dict[str, dict[str, float]] = {}
    skipped: list[str] = []
    ways = _ways(before, after, old, new, folder)
    for tool in ("bsdiff", "xdelta3", "rdiff", "casync"):
        if shutil.which(tool) is None:
            skipped.append(f"{tool}: not installed (apt-get install {tool})")
            ways = {name: way for name, way in ways.items() if not name.startswith(tool)}
    nncodec = delta_nncodec.way(before, after)
    if nncodec is not None:
        ways["NNCodec on residuals"] = nncodec
    elif delta_nncodec.extension() is None:
        skipped.append(
            "NNCodec: not built (tools/setup-bench-delta --nncodec, needs a C++ compiler)"
        )
    if len(after) > MAX_HEATSHRINK_BYTES:
        del ways["detools heatshrink"]
        skipped.append(f"detools heatshrink: not tried above {MAX_HEATSHRINK_BYTES:,} bytes")
    for name, (encode, apply) in ways.items():
        started = time.perf_counter()
        delta = encode()
        encoded = time.perf_counter()
        if apply(delta) != after:
            print(f"{name} does not give {new} back", file=sys.stderr)
            return 1
        figures[name] = {
            "size_bytes": len(delta),
            "encode_s": encoded - started,
            "apply_s": time.perf_counter() - encoded,
        }
    if shutil.which("casync") is not None:
        figures["casync 16k"] = {"size_bytes": _casync(old, new, folder)}
    print(json.dumps({"figures": figures, "skipped": skipped}))
    return 0


def _ways(before: bytes, after: bytes, old: Path, new: Path, folder: Path) -> dict[str, Way]:
    lzma2 = hdiffpatch.Lzma2Config(level=9)
    strong_zstd = hdiffpatch.ZStdConfig(level=22)
    return {
        "xz -9e, full file": (lambda: _xz(after), lzma.decompress),
        "zstd -22, full file": (
            lambda: zstandard.ZstdCompressor(level=22).compress(after),
            lambda delta: zstandard.ZstdDecompressor().decompress(delta),
        ),
        "brotli -11, full file": (
            lambda: brotli.compress(after, quality=11, lgwin=24),
            brotli.decompress,
        ),
        "bsdiff": _process(
            old, new, folder, ["bsdiff", "OLD", "NEW", "DELTA"], ["bspatch", "OLD", "OUT", "DELTA"]
        ),
        "xdelta3 -9": _process(
            old,
            new,
            folder,
            [
                "xdelta3",
                "-9",
                "-S",
                "lzma",
                "-B",
                "134217728",
                "-e",
                "-f",
                "-s",
                "OLD",
                "NEW",
                "DELTA",
            ],
            ["xdelta3", "-d", "-f", "-B", "134217728", "-s", "OLD", "DELTA", "OUT"],
        ),
        "rdiff + xz": _rdiff(old, new, folder),
        "zstd -19 --patch-from": (
            lambda: _patch_from(before, after),
            lambda delta: zstandard.ZstdDecompressor(
                dict_data=_prefix(before), max_window_size=1 << 31
            ).decompress(delta),
        ),
        "detools lzma": _detools(before, after, "lzma"),
        "detools heatshrink": _detools(before, after, "heatshrink"),
        "hdiffpatch lzma2": (
            lambda: hdiffpatch.diff(before, after, compression=lzma2),
            lambda delta: hdiffpatch.apply(before, delta),
        ),
        "hdiffpatch zstd": (
            lambda: hdiffpatch.diff(before, after, compression=strong_zstd),
            lambda delta: hdiffpatch.apply(before, delta),
        ),
        "subtract + xz -9e": (
            lambda: _xz(_mixed(after, before, -1)),
            lambda delta: _mixed(lzma.decompress(delta), before, 1),
        ),
        "xor + zstd -22": (
            lambda: zstandard.ZstdCompressor(level=22).compress(_mixed(after, before, 0)),
            lambda delta: _mixed(zstandard.ZstdDecompressor().decompress(delta), before, 0),
        ),
    }


def _xz(content: bytes) -> bytes:
    # Fewer literal bits suit residuals, xz's own choice suits text: the smaller counts.
    return min(
        (
            lzma.compress(
                content,
                filters=[
                    {
                        "id": lzma.FILTER_LZMA2,
                        "preset": 9 | lzma.PRESET_EXTREME,
                        "lc": lc,
                        "lp": 0,
                        "pb": pb,
                    }
                ],
            )
            for lc, pb in ((3, 2), (0, 0))
        ),
        key=len,
    )


def _mixed(content: bytes, old: bytes, sign: int) -> bytes:
    """`content` plus (1), minus (-1) or xor (0) the old file's bytes at equal offsets."""
    out = np.frombuffer(content, np.uint8).copy()
    both = min(len(content), len(old))
    base = np.frombuffer(old, np.uint8)[:both]
    out[:both] = out[:both] ^ base if sign == 0 else out[:both] + base * np.uint8(sign % 256)
    return out.tobytes()


def _patch_from(old: bytes, new: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19,
        source_size=len(old) + len(new),
        window_log=max(10, (len(old) + len(new)).bit_length()),
        enable_ldm=True,
    )
    compressor = zstandard.ZstdCompressor(dict_data=_prefix(old), compression_params=parameters)
    return compressor.compress(new)


def _prefix(old: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _detools(before: bytes, after: bytes, compression: str) -> Way:
    def encode() -> bytes:
        patch = io.BytesIO()
        detools.create_patch(
            io.BytesIO(before),
            io.BytesIO(after),
            patch,
            compression=compression,
            heatshrink_window_sz2=11,
            heatshrink_lookahead_sz2=8,
        )
        return patch.getvalue()

    def apply(delta: bytes) -> bytes:
        out = io.BytesIO()
        detools.apply_patch(io.BytesIO(before), io.BytesIO(delta), out)
        return out.getvalue()

    return encode, apply


def _process(old: Path, new: Path, folder: Path, encode: list[str], apply: list[str]) -> Way:
    """Two commands in which OLD, NEW, DELTA and OUT stand for files."""
    paths = {"OLD": old, "NEW": new, "DELTA": folder / "delta", "OUT": folder / "out"}

    def run(command: list[str]) -> None:
        subprocess.run([paths.get(word, word) for word in command], check=True, timeout=TIMEOUT_S)

    def made() -> bytes:
        run(encode)
        return paths["DELTA"].read_bytes()

    def applied(delta: bytes) -> bytes:
        paths["DELTA"].write_bytes(delta)
        run(apply)
        return paths["OUT"].read_bytes()

    return made, applied


def _rdiff(old: Path, new: Path, folder: Path) -> Way:
    signature = folder / "signature"
    subprocess.run(["rdiff", "-f", "-b", "512", "signature", old, signature], check=True)
    made, applied = _process(
        old,
        new,
        folder,
        ["rdiff", "-f", "delta", str(signature), "NEW", "DELTA"],
        ["rdiff", "-f", "patch", "OLD", "DELTA", "OUT"],
    )
    return (lambda: _xz(made())), (lambda delta: applied(lzma.decompress(delta)))


def _casync(old: Path, new: Path, folder: Path) -> int:
    """The index of the new file, and the chunks of it that are not in the old one's store."""
    stores = []
    for name, path in (("old", old), ("new", new)):
        store = folder / f"{name}.castr"
        shutil.rmtree(store, ignore_errors=True)
        subprocess.run(
            [
                "casync",
                "make",
                f"--store={store}",
                f"--chunk-size={CHUNK_BYTES}",
                folder / f"{name}.caibx",
                path,
            ],
            check=True,
            timeout=TIMEOUT_S,
            stdout=subprocess.DEVNULL,
        )
        stores.append({chunk.name: chunk.stat().st_size for chunk in store.rglob("*.cacnk")})
    chunks = sum(size for name, size in stores[1].items() if name not in stores[0])
    return chunks + (folder / "new.caibx").stat().st_size


if __name__ == "__main__":
    sys.exit(main())
