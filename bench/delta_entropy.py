"""How few bytes a model's 8-bit residuals can take: their conditional entropy, for delta_pairs.py.

H(r | fraction, log old): r is what the nearest level to q_old * s_old / s_new (per channel) leaves to
q_new, the contexts are that product's fraction in 16 steps and the bits of |q_old|. Counted over all
weights of a model, so nothing is paid for tables: a real coder cannot reach it quite.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

MIN_WEIGHTS = 1_000_000
FRACTIONS = 16
SUFFIX = "_quantized"


def main() -> int:
    """OLD NEW: prints the entropy in bytes, and how many weights it is of."""
    found = list(_large_tensors(*(onnx.load(path) for path in sys.argv[1:3])))
    entropy = sum(conditional_entropy_bytes(*tensors) for tensors in found)
    print(f"{entropy:.0f} {sum(tensors[0].size for tensors in found)}")
    return 0


def conditional_entropy_bytes(
    old: NDArray[np.integer], new: NDArray[np.integer], gain: NDArray[np.float64]
) -> float:
    """Bytes for `new` given `old`, both less their zero points; `gain` is s_old / s_new, broadcast."""
    product = old.astype(np.float64) * gain
    level = np.rint(product)
    fraction = np.clip(((product - level + 0.5) * FRACTIONS).astype(np.int64), 0, FRACTIONS - 1)
    size = np.frexp(np.abs(old.astype(np.float64)))[1]
    residual = np.clip(new.astype(np.int64) - level.astype(np.int64) + 512, 0, 1023)
    counts = np.zeros((FRACTIONS * 9, 1024))
    np.add.at(counts, ((fraction * 9 + size).ravel(), residual.ravel()), 1)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.ones_like(counts), where=counts > 0)
    return float(-(counts * np.log2(shares)).sum() / 8)


def _large_tensors(
    old: onnx.ModelProto, new: onnx.ModelProto
) -> Iterator[tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.float64]]]:
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in model.graph.initializer} for model in (old, new)
    )
    for name in after:
        scale, zero = (name.removesuffix(SUFFIX) + part for part in ("_scale", "_zero_point"))
        if not name.endswith(SUFFIX) or not {name, scale} <= before.keys() & after.keys():
            continue
        if after[name].size < MIN_WEIGHTS or before[name].shape != after[name].shape:
            continue
        # In an embedding the levels are unsigned; elsewhere they are signed and the zero point is 0.
        q_old, q_new = (
            part[name].astype(np.int16) - part.get(zero, np.zeros(1)).astype(np.int16).max()
            for part in (before, after)
        )
        s_old, s_new = (part[scale].astype(np.float64) for part in (before, after))
        gain = np.divide(s_old, s_new, out=np.ones_like(s_old), where=s_new != 0).reshape(-1)
        if gain.size > 1 and gain.size != q_new.shape[-1]:
            gain = gain.reshape(-1, *[1] * (q_new.ndim - 1))
        yield q_old, q_new, gain


if __name__ == "__main__":
    sys.exit(main())
