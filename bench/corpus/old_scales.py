"""What the old release's scales save: the update of each pair on fresh scales, on old ones, with a dead band.

    .venv/bin/python bench/corpus/old_scales.py build/delta-corpus --seed 1

The corpus holds INT8 files only, so the weights of the new file stand for what was trained: each is off by up
to half a step already, which the old scales then round once more. The digits are trained here (numpy, ten
seconds) and have an accuracy, too. A table for docs/benchmarks/estimate.md, not a gate.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# One thread, as tools/digits/train.py has it: how a sum is cut decides its last bit.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
sys.path.append(str(Path(__file__).parents[2] / "tools" / "digits"))

import network  # noqa: E402 - of tools/digits
import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnx_export  # noqa: E402
import release_files  # noqa: E402
import train  # noqa: E402
from onnx import numpy_helper  # noqa: E402

import shoal_delta  # noqa: E402
from shoal_fleet.digits import HELD_OUT_FROM, scans  # noqa: E402
from shoal_fleet.release_build.old_release import OldScales, with_old_scales  # noqa: E402

TAUS = (0.0, 0.25, 0.5)


def main() -> int:
    """Print one row a pair; the exit code is 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="the directory that generate.py wrote")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    heads = (f"tau {tau:g}" for tau in TAUS)
    print(f"{'pair':<26} {'fresh':>8} " + " ".join(f"{head:>16}" for head in heads) + "   kept")
    folders = [path for path in options.corpus.glob(f"*-{options.seed}") if path.is_dir()]
    for folder in sorted(folders):
        old, new = onnx.load(folder / "old.onnx"), onnx.load(folder / "new.onnx")
        print(row(folder.name, old, new, dict(dequantised(new)), is_narrow=False), flush=True)
    for line in digits():
        print(line, flush=True)
    return 0


def row(name: str, old: onnx.ModelProto, fresh: onnx.ModelProto, weights: dict, **how: bool) -> str:
    """The pair's line: bytes on fresh scales, then bytes and share of them by tau."""
    base = update_bytes(old, fresh)
    found = [with_old_scales(fresh, old, weights, tau=tau, **how) for tau in TAUS]
    sizes = [update_bytes(old, each.model) for each in found]
    cells = " ".join(f"{size:>9,} {size / base:>6.3f}" for size in sizes)
    kept, scales = found[0].channels
    return f"{name:<26} {base:>8,} {cells}   {kept}/{scales}"


def digits() -> Iterator[str]:
    """The digits: v2 trained on from v1's INT8 weights, and from its float weights, with accuracies."""
    table = scans()
    held_out, known = table[HELD_OUT_FROM:], table[:HELD_OUT_FROM]
    rng = np.random.default_rng(train.SEED)
    early, everything = release_files.pictures(known[:300]), release_files.pictures(known)
    labels = release_files.labels(known)
    first = network.train(
        network.initial_weights(rng), early, labels[:300], schedule=train.FROM_SCRATCH, rng=rng
    )
    old = onnx_export.quantised(first, early)
    for name, start in (("int8", onnx_export.dequantised(old)), ("float", first)):
        tuned = network.train(
            start,
            everything,
            labels,
            schedule=train.FINE_TUNING,
            rng=np.random.default_rng(train.SEED),
        )
        weights = {key: value.astype(np.float32) for key, value in tuned.items()}
        fresh = onnx_export.quantised(tuned, everything[:300])
        yield row(f"digits from {name}", old, fresh, weights, is_narrow=True)
        models = [fresh, *(on_old(fresh, old, weights, tau).model for tau in TAUS)]
        figures = [release_files.accuracy(content(model), held_out) for model in models]
        float_model = onnx_export.float_model(tuned)
        exact = release_files.accuracy(content(float_model), held_out)
        yield f"  accuracy: float {exact:.4f}, fresh and by tau " + " ".join(
            f"{figure:.4f}" for figure in figures
        )


def on_old(fresh: onnx.ModelProto, old: onnx.ModelProto, weights: dict, tau: float) -> OldScales:
    """The digits on old scales."""
    return with_old_scales(fresh, old, weights, is_narrow=True, tau=tau)


def dequantised(model: onnx.ModelProto) -> Iterator[tuple[str, np.ndarray]]:
    """The weights that the levels of a file stand for, by name."""
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, levels in tensors.items():
        stem = name.removesuffix("_quantized")
        scale, zero = tensors.get(f"{stem}_scale"), tensors.get(f"{stem}_zero_point")
        if stem == name or scale is None or zero is None or levels.dtype == np.int32:
            continue
        shape = [1] * levels.ndim
        if scale.size > 1:
            fitting = [k for k, size in enumerate(levels.shape) if size == scale.size]
            shape[fitting[0] if levels.ndim == 4 else fitting[-1]] = -1
        steps = levels.astype(np.float32) - zero.reshape(shape).astype(np.float32)
        yield stem, steps * scale.reshape(shape)


def update_bytes(old: onnx.ModelProto, new: onnx.ModelProto) -> int:
    """What the delta costs, estimated as the builder does it."""
    return shoal_delta.estimate(content(old), content(new), workers=1).delta_bytes


def content(model: onnx.ModelProto) -> bytes:
    """The file."""
    return bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    sys.exit(main())
