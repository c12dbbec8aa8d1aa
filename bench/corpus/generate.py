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
import networks
import numpy as np
import onnx
from exporting import exported, re_exported, renamed
from networks import Network, Weights, train, train_low_rank
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SCANS = Path(__file__).parents[2] / "fleet" / "shoal_fleet" / "digits" / "optdigits.csv"
SEEDS = (1, 2)
BASE_STEPS, MANY_STEPS, FEW_STEPS = 250, 150, 10
BASE_RATE, RATE = 3e-3, 5e-4
LARGE_MB = (23, 90)
CALIBRATION = 4


def main() -> int:
    """Write what is not there yet; the exit code is 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--family", nargs="+", choices=("cnn", "gru", "transformer"))
    parser.add_argument("--no-large", action="store_true", help="leave the large pairs out")
    options = parser.parse_args()
    started = time.monotonic()
    for network in _networks():
        for seed in options.seeds:
            marker = options.out / f".{network.name}-{seed}"
            if marker.exists() or (options.family and network.name not in options.family):
                continue
            for case, old, new in _pairs(network, seed):
                _write(options.out / f"{network.name}-{case}-{seed}", old, new)
                say(f"{network.name} {case} {seed}: {len(old):,} -> {len(new):,} bytes", started)
            marker.touch()
    for size_mb in () if options.no_large else LARGE_MB:
        folder = options.out / f"large-{size_mb}"
        if not folder.exists():
            _write(folder, *_large(size_mb))
            say(f"large, {size_mb} MB", started)
    return 0


def say(text: str, started: float) -> None:
    """One line of progress."""
    print(f"{time.monotonic() - started:6.1f} s  {text}", file=sys.stderr, flush=True)


def _networks() -> list[Network]:
    rows = np.loadtxt(SCANS, delimiter=",", dtype=np.int64)
    pictures = (rows[:, :-1].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    return [networks.cnn(pictures, rows[:, -1]), networks.gru(), networks.transformer()]


def _pairs(network: Network, seed: int) -> Iterator[tuple[str, bytes, bytes]]:
    """(case, old file, new file) in every way that fits the network."""
    rng = np.random.default_rng(seed)
    base = train(network, network.initial(rng), steps=BASE_STEPS, rate=BASE_RATE, seed=seed)
    inputs, others = _inputs(network, 100 + seed), _inputs(network, 200 + seed)

    def file(weights: Weights, calibration: NDArray[np.float32] = inputs) -> bytes:
        return exported(network.name, weights, calibration)

    def tuned(weights: Weights, steps: int, only: tuple[str, ...] = ()) -> Weights:
        return train(network, weights, steps=steps, rate=RATE, seed=seed + 50, only=only)

    old = file(base)
    yield "head-only", old, file(tuned(base, MANY_STEPS, network.head))
    yield "few-steps", old, file(tuned(base, FEW_STEPS))
    yield "many-steps", old, file(tuned(base, MANY_STEPS))
    yield "renamed", old, renamed(old)
    yield "exporter", old, re_exported(old)
    yield "new-class", old, file(tuned(_with_class(network, base, rng), FEW_STEPS, network.head))
    yield "pruned", old, file(tuned(_pruned(network, base), MANY_STEPS))
    if network.name == "transformer":
        names = [f"layer{k}.{part}" for k in range(networks.LAYERS) for part in ("query", "value")]
        adapted = train_low_rank(network, base, names, steps=MANY_STEPS, rate=RATE, seed=seed)
        yield "lora", old, file(adapted)
    else:
        yield "re-calibrated", old, file(base, others)


def _inputs(network: Network, seed: int) -> NDArray[np.float32]:
    batches = network.batches(np.random.default_rng(seed))
    return np.concatenate([np.asarray(next(batches)[0]) for _ in range(CALIBRATION)])


def _with_class(network: Network, weights: Weights, rng: np.random.Generator) -> Weights:
    """One output more, its weights small and random."""
    axis = 1 if network.name == "transformer" else 0
    grown = {}
    for name in network.head:
        shape = list(weights[name].shape)
        shape[axis if len(shape) > 1 else 0] = 1
        row = jnp.asarray(rng.normal(0, 0.05, shape), jnp.float32)
        grown[name] = jnp.concatenate([weights[name], row], axis if len(shape) > 1 else 0)
    return weights | grown


def _pruned(network: Network, weights: Weights) -> Weights:
    """A quarter of one layer's channels removed, the weakest, and with them what read them."""
    cuts: dict[str, list[tuple[str, int]]] = {
        "cnn": [
            ("block2.pointwise.weight", 0),
            ("block2.pointwise.gain", 0),
            ("block2.pointwise.shift", 0),
            ("block3.depthwise.weight", 0),
            ("block3.depthwise.gain", 0),
            ("block3.depthwise.shift", 0),
            ("block3.pointwise.weight", 1),
        ],
        "gru": [("conv1.weight", 0), ("conv1.bias", 0), ("conv2.weight", 1)],
        "transformer": [("layer0.up", 1), ("layer0.down", 0)],
    }
    name, axis = cuts[network.name][0]
    strength = np.abs(np.asarray(weights[name]))
    strength = strength.sum(tuple(k for k in range(strength.ndim) if k != axis))
    kept = np.sort(np.argsort(strength, kind="stable")[len(strength) // 4 :])
    return weights | {
        name: jnp.take(weights[name], kept, axis) for name, axis in cuts[network.name]
    }


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
