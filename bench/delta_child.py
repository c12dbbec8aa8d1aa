"""One pair through our delta, for delta_pairs.py: OLD NEW FOLDER; prints one JSON object.

The delta is made here (one worker, CPU time) and applied in a process of its own, whose peak above the
interpreter with numpy is what a board pays.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

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


def main() -> int:
    """0: done; 1: the delta does not give the new file back."""
    import shoal_delta  # noqa: PLC0415 - after the arguments are known to be there

    old, new, folder = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    before, after = old.read_bytes(), new.read_bytes()
    started = time.process_time()
    delta = shoal_delta.diff(before, after, workers=1)
    encode_s = time.process_time() - started
    patch, out = folder / "ours.delta", folder / "ours.new"
    patch.write_bytes(delta)
    out.unlink(missing_ok=True)
    applied = subprocess.run(
        [sys.executable, "-c", APPLY, old, patch, out], capture_output=True, text=True, check=True
    )
    if out.read_bytes() != after:
        print(f"shoal_delta does not give {new} back", file=sys.stderr)
        return 1
    figures = {
        "size_bytes": len(delta),
        "new_mb": len(after) / 1e6,
        "encode_s": encode_s,
        "encode_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures | json.loads(applied.stdout)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
