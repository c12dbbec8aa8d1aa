"""What must cost next to nothing, for delta_pairs.py: a byte changed, nothing changed, a bomb.

As a script: prints one JSON object. It needs nothing but the library.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np

import shoal_delta
from shoal_delta.container import Layout, Segment, encode_header

BOMB_BYTES, BOMB_CLAIMS_BYTES = 4096, 4 << 30
BOMB_SEGMENT_BYTES = 4 << 20
FIRMWARE_BYTES = 262_144


def main() -> int:
    """MODEL FOLDER: also writes FOLDER/one-byte-{model,firmware}/{old,new}.onnx for the peers."""
    model, folder = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
    figures = {"equal_bytes": float(len(shoal_delta.diff(model, model)))}
    for name, old in (("model", model), ("firmware", firmware())):
        new = one_byte_changed(old)
        pair = folder / f"one-byte-{name}"
        pair.mkdir()
        for part, content in (("old", old), ("new", new)):
            (pair / f"{part}.onnx").write_bytes(content)
        delta = shoal_delta.diff(old, new)
        if shoal_delta.apply(old, delta) != new:
            print(f"{name}: the delta does not give the new file back", file=sys.stderr)
            return 1
        figures[f"one_byte_{name}_bytes"] = float(len(delta))
    figures["bomb_ms"] = bomb_ms()
    print(json.dumps(figures))
    return 0


def firmware() -> bytes:
    """Bytes that no model is made of, and that no tool compresses."""
    return np.random.default_rng(1).bytes(FIRMWARE_BYTES)


def one_byte_changed(old: bytes) -> bytes:
    """The byte in the middle is another one."""
    middle = len(old) // 2
    return old[:middle] + bytes([old[middle] ^ 1]) + old[middle + 1 :]


def bomb_ms() -> float:
    """How long 4 KB that claim 4 GB take to be refused, even where such sizes are allowed."""
    count = BOMB_CLAIMS_BYTES // BOMB_SEGMENT_BYTES
    bomb = encode_header(
        Layout.SEGMENTED,
        sizes=(0, BOMB_CLAIMS_BYTES),
        sha256=(hashlib.sha256(b"").digest(), bytes(32)),
        segments=[Segment(BOMB_SEGMENT_BYTES, 0, coded_size=1)] * (count // 8),
    ).ljust(BOMB_BYTES, b"\0")
    started = time.perf_counter()
    for limit in (None, 1 << 40):
        try:
            if limit is None:
                shoal_delta.apply(b"", bomb)
            else:
                shoal_delta.apply(b"", bomb, max_output_bytes=limit)
        except shoal_delta.DeltaError:
            continue
        raise SystemExit("the bomb was applied")
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    sys.exit(main())
