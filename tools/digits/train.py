"""Train the two digit releases and write them: numpy only, about ten seconds on one core.

    .venv/bin/python tools/digits/train.py --out fleet/shoal_fleet/digits

v1 learns from the first 300 scans. v2 starts from v1's weights as they were shipped (INT8), learns
from the first 1,200, and keeps v1's quantisation scales, so that a weight that hardly moved is the
same byte. The last 597 scans are only measured on. The same machine and the same pins give the same
bytes; another CPU may round a sum differently and move some weights by a step.
"""

from __future__ import annotations

import argparse
import logging
import lzma
import os
import sys
from pathlib import Path

# One thread: how a sum is cut into threads decides its last bit. Before numpy is loaded.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np  # noqa: E402 - the thread count has to stand first
import onnx  # noqa: E402
import zstandard  # noqa: E402
from network import Schedule, Weights, initial_weights, train  # noqa: E402
from onnx_export import INPUT, dequantised, float_model, quantised, requantised  # noqa: E402
from release_files import labels, npz, pictures, write_release  # noqa: E402

from shoal_fleet.digits import HELD_OUT_FROM, Scan, scans  # noqa: E402

SEED = 1998
FIRST_ROWS = 300
GOLDEN_ROWS = 16
FROM_SCRATCH = Schedule(epochs=30, batch=30, learning_rate=2e-3, jitter=0.5, weight_decay=1e-2)
FINE_TUNING = Schedule(epochs=6, batch=40, learning_rate=3e-4, jitter=0.5, weight_decay=0.0)


def main() -> int:
    """Write v1 and v2 below --out and print their figures; the exit code is 0."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python tools/digits/train.py --out fleet/shoal_fleet/digits",
    )
    parser.add_argument("--out", type=Path, required=True, help="the directory for v1/ and v2/")
    parser.add_argument(
        "--float",
        dest="float_out",
        type=Path,
        help="also write v2 before it is quantised, with inputs, for `shoal release build`",
    )
    options = parser.parse_args()
    # quantize_static advises to fold BatchNorm first; there is none.
    logging.getLogger().setLevel(logging.ERROR)

    table = scans()
    held_out = table[HELD_OUT_FROM:]
    first, second, tuned = build(table[:HELD_OUT_FROM])
    if options.float_out is not None:
        write_floats(options.float_out, tuned, table)
    golden = one_of_each(table[:FIRST_ROWS])
    for name, version, model, description in (
        ("v1", "1.0.0", first, f"Handwritten digits, trained on {FIRST_ROWS} scans."),
        ("v2", "1.1.0", second, f"Handwritten digits, fine-tuned on {HELD_OUT_FROM} scans."),
    ):
        measured = write_release(
            options.out / name,
            model,
            version=version,
            description=description,
            golden=golden,
            held_out=held_out,
        )
        print(f"{name}: accuracy {measured:.4f} on {len(held_out)} held-out scans")
    report_sizes(options.out)
    return 0


def build(known: list[Scan]) -> tuple[onnx.ModelProto, onnx.ModelProto, Weights]:
    """The two INT8 models and v2's float weights; `known` are all the scans that may be learnt from, in the table's order."""
    rng = np.random.default_rng(SEED)
    early, all_pictures = pictures(known[:FIRST_ROWS]), pictures(known)
    trained = train(
        initial_weights(rng), early, labels(known[:FIRST_ROWS]), schedule=FROM_SCRATCH, rng=rng
    )
    first = quantised(trained, early)
    tuned = train(dequantised(first), all_pictures, labels(known), schedule=FINE_TUNING, rng=rng)
    return first, requantised(first, tuned), tuned


def write_floats(folder: Path, weights: Weights, table: list[Scan]) -> None:
    """digits.onnx in float, inputs.npz to calibrate with, held-out.npz to judge by."""
    folder.mkdir(parents=True, exist_ok=True)
    model = float_model(weights).SerializeToString(deterministic=True)
    (folder / "digits.onnx").write_bytes(model)
    for name, rows in (("inputs", table[:FIRST_ROWS]), ("held-out", table[HELD_OUT_FROM:])):
        arrays = {INPUT: pictures(rows).astype(np.float32), "labels": labels(rows)}
        (folder / f"{name}.npz").write_bytes(npz(**arrays))


def one_of_each(known: list[Scan]) -> list[Scan]:
    """The golden inputs: the first scan of every digit, then the next ones up to 16."""
    firsts = {scan.label: scan for scan in reversed(known)}
    chosen = sorted(firsts.values(), key=lambda scan: scan.row)
    others = [scan for scan in known if scan not in chosen]
    return (chosen + others)[:GOLDEN_ROWS]


def report_sizes(folder: Path) -> None:
    """Print what v2 costs on the wire: whole, compressed, and as the crudest delta."""
    old, new = ((folder / name / "model.onnx").read_bytes() for name in ("v1", "v2"))
    whole = min(_xz(new), len(zstandard.ZstdCompressor(level=19).compress(new)))
    line = f"v2: {len(new)} bytes, {whole} at its best compression (xz -9e, zstd -19)"
    if len(old) == len(new):
        residual = np.frombuffer(new, np.uint8) - np.frombuffer(old, np.uint8)
        delta = _xz(residual.tobytes())
        line += f", {delta} as bytewise difference + xz ({delta / whole:.2f})"
    print(line)


def _xz(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    sys.exit(main())
