"""About how many bits symbols will take: what plans are compared by. Integers, the same everywhere."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal_delta import ans_model
from shoal_delta.arithmetic import Bytes
from shoal_delta.drift import CLASS, mirrored

MAX_CONTEXTS = 32
_SYMBOL_BITS = 12


def context_bits(symbols: Bytes, contexts: Bytes) -> int:
    """About how many bits an entropy coder takes that knows each symbol's context (below 32)."""
    pairs = contexts.astype(np.int64) << 8 | symbols
    counts = np.bincount(pairs, minlength=MAX_CONTEXTS << 8).reshape(-1, 256)
    return entropy(counts) + _SYMBOL_BITS * int(counts.any(axis=0).sum())


def residual_bits(residuals: Bytes, side: Bytes) -> int:
    """The same of residuals with their sides, mirrored where that takes less."""
    classes = side & CLASS
    return min(context_bits(mirrored(residuals, side), classes), context_bits(residuals, classes))


def entropy(counts: npt.NDArray[np.int64]) -> int:
    """Bits of symbols counted [contexts, 256], each context with its own frequencies."""
    totals = counts.sum(axis=1)
    bits = (totals * ans_model.log2(totals)).sum() - (counts * ans_model.log2(counts)).sum()
    return int(bits) >> 10
