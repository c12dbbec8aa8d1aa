"""How near an estimate comes: `shoal_delta.estimate` against the delta itself, pair by pair.

    .venv/bin/python bench/corpus/estimates.py build/delta-corpus --seed 1

Times are CPU seconds of one core. It is a table for docs/benchmarks/estimate.md, not a gate.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import shoal_delta

# Below this share of the new file a delta is mostly the graph's text.
SMALL = 0.03


def main() -> int:
    """Print one row a pair and the spread; the exit code is 0, or 1 without pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="the directory that generate.py wrote")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    ratios: dict[bool, list[float]] = {True: [], False: []}
    print(f"{'pair':<26} {'delta':>8} {'estimate':>8} {'ratio':>6} {'made s':>7} {'said s':>7}")
    folders = [path for path in options.corpus.glob(f"*-{options.seed}") if path.is_dir()]
    for folder in sorted(folders):
        old, new = (folder / "old.onnx").read_bytes(), (folder / "new.onnx").read_bytes()
        guess = shoal_delta.estimate(old, new, workers=1)
        started = time.process_time()
        size = len(shoal_delta.diff(old, new, workers=1))
        spent = time.process_time() - started
        ratio = guess.delta_bytes / size
        ratios[size < SMALL * len(new)].append(ratio)
        print(
            f"{folder.name:<26} {size:>8,} {guess.delta_bytes:>8,} {ratio:>6.3f}"
            f" {spent:>7.2f} {guess.make_s:>7.2f}",
            flush=True,
        )
    for is_small, found in ratios.items():
        if found:
            print(
                f"{'below' if is_small else 'from'} {SMALL:.0%} of the new file: {len(found)} pairs,"
                f" estimate / delta {min(found):.3f} to {max(found):.3f},"
                f" median {statistics.median(found):.3f}"
            )
    return 0 if any(ratios.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
