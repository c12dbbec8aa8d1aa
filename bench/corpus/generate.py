"""Write the delta's corpus: pairs of INT8 models, old and new, in the cases that releases are made of.

    .venv-bench-delta/bin/python bench/corpus/generate.py --out build/delta-corpus

Every seed trains each network once and then updates it in every way; `FAMILY-CASE-SEED/old.onnx` and
`new.onnx`. With `--large MB` also hand-made pairs of that size, for memory and speed only.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import minilm
import numpy as np
import onnx
from exporting import quantised, re_exported, renamed
from families import Family, families, small_families
from networks import Network, Weights, train, train_low_rank
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SEEDS = (1, 2)
BASE_STEPS, MANY_STEPS, FEW_STEPS = 250, 150, 10
BASE_RATE, RATE = 3e-3, 5e-4
LARGE_MB = (23, 90)
HELD_OUT_SEED = 2
MINILM_RATE, MINILM_LORA_RATE, MINILM_STEPS = 2e-5, 2e-4, 100
CALIBRATION = 4
SMALL_CASES = {
    "cnn": ("few-steps", "many-steps", "pruned"),
    "mobilenet": ("few-steps", "many-steps", "pruned"),
    "gru": ("few-steps", "pruned"),
    "transformer": ("few-steps", "lora", "pruned"),
}


def main() -> int:
    """Write what is not there yet; the exit code is 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--family", nargs="+", help="these only")
    parser.add_argument("--no-large", action="store_true", help="leave the large pairs out")
    parser.add_argument("--minilm", action="store_true", help="all-MiniLM-L6-v2 too (minutes)")
    parser.add_argument("--small", action="store_true", help="the pairs of tests/shoal_delta/pairs")
    options = parser.parse_args()
    started = time.monotonic()
    if options.small:
        _write_small(options, started)
        return 0
    for family in families():
        name = family.network.name
        for seed in options.seeds:
            marker = options.out / f".{name}-{seed}"
            if marker.exists() or (options.family and name not in options.family):
                continue
            for case, old, new in _pairs(family, seed):
                _write(options.out / f"{name}-{case}-{seed}", old, new)
                say(f"{name} {case} {seed}: {len(old):,} -> {len(new):,} bytes", started)
            marker.touch()
    if options.minilm:
        _write_minilm(options.out, started)
    for size_mb in () if options.no_large else LARGE_MB:
        folder = options.out / f"large-{size_mb}"
        if not folder.exists():
            _write(folder, *_large(size_mb))
            say(f"large, {size_mb} MB", started)
    return 0


def _write_minilm(out: Path, started: float) -> None:
    """The published model, tuned with sentence-transformers' usual rate; one seed, never tuned on."""
    if not minilm.is_installed():
        raise SystemExit(
            f"the package {minilm.PACKAGE} is not there: tools/setup-bench-delta --minilm"
        )
    seed, network = HELD_OUT_SEED, minilm.network()
    base = network.initial(np.random.default_rng(seed))

    def file(weights: Weights) -> bytes:
        return quantised(minilm.graph({k: np.asarray(v) for k, v in weights.items()}), None)

    def tuned(steps: int) -> Weights:
        return train(network, base, steps=steps, rate=MINILM_RATE, seed=seed)

    def adapted() -> Weights:
        return train_low_rank(
            network, base, minilm.ADAPTED, steps=MINILM_STEPS, rate=MINILM_LORA_RATE, seed=seed
        )

    ways = {
        "few-steps": lambda: tuned(FEW_STEPS),
        "many-steps": lambda: tuned(MINILM_STEPS),
        "lora": adapted,
    }
    for case, way in ways.items():
        folder = out / f"minilm-{case}-{seed}"
        if not folder.exists():
            _write(folder, file(base), file(way()))
            say(f"minilm {case}", started)


def _write_small(options: argparse.Namespace, started: float) -> None:
    """FAMILY/old.onnx once, FAMILY/CASE.onnx beside it."""
    for family in small_families():
        name = family.network.name
        if options.family and name not in options.family:
            continue
        folder = options.out / name
        for case, old, new in _pairs(family, SEEDS[0]):
            if case in SMALL_CASES[name]:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "old.onnx").write_bytes(old)
                (folder / f"{case}.onnx").write_bytes(new)
                say(f"{name} {case}: {len(old):,} -> {len(new):,} bytes", started)


def say(text: str, started: float) -> None:
    """One line of progress."""
    print(f"{time.monotonic() - started:6.1f} s  {text}", file=sys.stderr, flush=True)


def _pairs(family: Family, seed: int) -> Iterator[tuple[str, bytes, bytes]]:
    """(case, old file, new file) in every way that fits the network."""
    network = family.network
    rng = np.random.default_rng(seed)
    base = train(network, network.initial(rng), steps=BASE_STEPS, rate=BASE_RATE, seed=seed)
    inputs, others = _inputs(network, 100 + seed), _inputs(network, 200 + seed)

    def file(weights: Weights, calibration: NDArray[np.float32] = inputs) -> bytes:
        arrays = {name: np.asarray(value) for name, value in weights.items()}
        return quantised(family.graph(arrays), calibration if family.is_static else None)

    def tuned(weights: Weights, steps: int, only: tuple[str, ...] = ()) -> Weights:
        return train(network, weights, steps=steps, rate=RATE, seed=seed + 50, only=only)

    old = file(base)
    yield "head-only", old, file(tuned(base, MANY_STEPS, network.head))
    yield "few-steps", old, file(tuned(base, FEW_STEPS))
    yield "many-steps", old, file(tuned(base, MANY_STEPS))
    yield "renamed", old, renamed(old)
    yield "exporter", old, re_exported(old)
    yield "new-class", old, file(tuned(_with_class(family, base, rng), FEW_STEPS, network.head))
    yield "pruned", old, file(tuned(_pruned(family, base), MANY_STEPS))
    if family.adapted:
        adapted = train_low_rank(
            network, base, family.adapted, steps=MANY_STEPS, rate=RATE, seed=seed
        )
        yield "lora", old, file(adapted)
    else:
        yield "re-calibrated", old, file(base, others)


def _inputs(network: Network, seed: int) -> NDArray[np.float32]:
    batches = network.batches(np.random.default_rng(seed))
    return np.concatenate([np.asarray(next(batches)[0]) for _ in range(CALIBRATION)])


def _with_class(family: Family, weights: Weights, rng: np.random.Generator) -> Weights:
    """One output more, its weights small and random."""
    grown = {}
    for name in family.network.head:
        shape = list(weights[name].shape)
        axis = family.classes_axis if len(shape) > 1 else 0
        shape[axis] = 1
        row = jnp.asarray(rng.normal(0, 0.05, shape), jnp.float32)
        grown[name] = jnp.concatenate([weights[name], row], axis)
    return weights | grown


def _pruned(family: Family, weights: Weights) -> Weights:
    """A quarter of one layer's channels removed, the weakest, and with them what read them."""
    name, axis = family.cuts[0]
    strength = np.abs(np.asarray(weights[name]))
    strength = strength.sum(tuple(k for k in range(strength.ndim) if k != axis))
    kept = np.sort(np.argsort(strength, kind="stable")[len(strength) // 4 :])
    return weights | {name: jnp.take(weights[name], kept, axis) for name, axis in family.cuts}


def _large(size_mb: int) -> tuple[bytes, bytes]:
    """Matrices of 1,024 x 4,096 INT8 weights, moved a little, on scales that moved a little."""
    old, new = [], []
    for number in range(size_mb * 1_000_000 // (4096 * 1024) + 1):
        rng = np.random.default_rng(number)
        weights = rng.laplace(0, 0.02, (1024, 4096)).astype(np.float32)
        tuned = weights + rng.normal(0, 3e-4, weights.shape).astype(np.float32)
        for tensors, values in ((old, weights), (new, tuned)):
            scale = np.abs(values).max(axis=1) / np.float32(127)
            levels = np.rint(values / scale[:, None]).astype(np.int8)
            tensors += [
                numpy_helper.from_array(levels, f"matrix{number}_quantized"),
                numpy_helper.from_array(scale, f"matrix{number}_scale"),
            ]
    nodes = [
        helper.make_node(
            "DequantizeLinear",
            [f"matrix{n}_quantized", f"matrix{n}_scale"],
            [f"matrix{n}"],
            name=f"matrix{n}",
            axis=0,
        )
        for n in range(len(old) // 2)
    ]
    value = helper.make_tensor_value_info("matrix0", TensorProto.FLOAT, [1024, 4096])
    models = (
        helper.make_model(helper.make_graph(nodes, "large", [], [value], tensors))
        for tensors in (old, new)
    )
    before, after = (bytes(model.SerializeToString(deterministic=True)) for model in models)
    return before, after


def _write(folder: Path, old: bytes, new: bytes) -> None:
    for name, data in (("old", old), ("new", new)):
        onnx.load_from_string(data)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.onnx").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
