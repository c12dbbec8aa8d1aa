"""One pair through our delta, for delta_pairs.py: OLD NEW FOLDER; prints one JSON object.

The delta is made here (one worker, CPU time) and applied in processes of their own, whose peak above the
interpreter with numpy is what a board pays. Of three the quickest counts (what else runs makes CPU time
longer, never shorter), and the largest peak.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import shoal_delta

APPLY = """
import json, sys, time
import numpy, shoal_delta
def peak():  # VmHWM: unlike ru_maxrss it does not begin with what the parent had
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
before = peak()
started = time.process_time()
shoal_delta.apply_file(*sys.argv[1:4])
print(json.dumps({"apply_s": time.process_time() - started, "peak_mib": (peak() - before) / 1024}))
"""

APPLIES = 3

# Tensors this large count against the entropy of their residuals (delta_entropy.py).
LARGE_TENSOR_BYTES, LARGE_MODEL_BYTES = 1_000_000, 40_000_000


def large_int8_bytes(delta: bytes, old: bytes) -> float:
    """What the delta spends on quantised tensors of a million weights and more."""
    if not LARGE_TENSOR_BYTES < len(old) < LARGE_MODEL_BYTES:
        return 0.0
    return sum(
        tensor.coded_size
        for tensor in shoal_delta.inspect(delta, old).tensors
        if tensor.name.endswith("_quantized") and tensor.size >= LARGE_TENSOR_BYTES
    )


def main() -> int:
    """0: done; 1: the delta does not give the new file back."""
    old, new, folder = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    before, after = old.read_bytes(), new.read_bytes()
    started = time.process_time()
    delta = shoal_delta.diff(before, after, workers=1)
    encode_s = time.process_time() - started
    patch, out = folder / "ours.delta", folder / "ours.new"
    patch.write_bytes(delta)
    applied = []
    for _ in range(APPLIES):
        out.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", APPLY, old, patch, out],
            capture_output=True,
            text=True,
            check=True,
        )
        applied.append(json.loads(done.stdout))
        if out.read_bytes() != after:
            print(f"shoal_delta does not give {new} back", file=sys.stderr)
            return 1
    figures = {
        "size_bytes": len(delta),
        "large_int8_bytes": large_int8_bytes(delta, before),
        "new_mb": len(after) / 1e6,
        "encode_s": encode_s,
        "encode_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    figures["apply_s"] = min(each["apply_s"] for each in applied)
    figures["peak_mib"] = max(each["peak_mib"] for each in applied)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
