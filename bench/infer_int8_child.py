"""`infer_int8_child.py MODEL INPUTS SECONDS`: `session.run` over and over, one row at a time; prints CPU and rate as JSON.

INPUTS is an .npz with an array an input of the model.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import cycle
from pathlib import Path

import numpy as np

from infer_child import session_of

_ROWS = 16
_WARM_UP = 20


def main(arguments: list[str]) -> int:
    """Run one model."""
    model, inputs, seconds = arguments
    session = session_of(Path(model).parent)
    with np.load(inputs) as arrays:
        rows = [{name: arrays[name][k : k + 1] for name in arrays.files} for k in range(_ROWS)]
    for row, _ in zip(cycle(rows), range(_WARM_UP), strict=False):
        session.run(None, row)
    count = 0
    started = time.perf_counter()
    cpu_before_s = time.process_time()
    for row in cycle(rows):
        if time.perf_counter() > started + float(seconds):
            break
        session.run(None, row)
        count += 1
    took = {
        "cpu_us": (time.process_time() - cpu_before_s) / count * 1e6,
        "rate": count / (time.perf_counter() - started),
    }
    sys.stdout.write(json.dumps(took) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
