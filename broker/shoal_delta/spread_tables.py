"""Adaptive frequencies of small signed numbers, by how far they spread and where they are centred.

They begin as logistic distributions and count what comes. Integers only.
"""

from __future__ import annotations

from functools import cache
from math import isqrt

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

SCALE_BITS = 14
SPREADS = 40
FRACTIONS = 8
MAX_REACH = 31

_STRENGTH = 1 << 14
_INCREMENT = 256
_LIMIT = 1 << 17
_POWER_BITS = 16
# 2 * pi / sqrt(3) / ln 2 * 16: a logistic distribution of a standard deviation of 1/16, in base 2.
_STEEPNESS = 84


class SpreadTables:
    """Frequencies of -`reach` ... `reach` and, last, of everything else.

    A context is spread * 8 + fraction: the standard deviation is 2^((2 spread + 1) / 8) / 16, the
    centre (2 fraction + 1) / 32. `ends[context]` is 0 and where each symbol's range ends, of 2^14.
    """

    def __init__(self, reach: int) -> None:
        self._counts = _initial(reach).copy()
        self._reach = reach
        self._contexts: list[Integers] = []
        self._symbols: list[Integers] = []
        self.ends = np.zeros((len(self._counts), 2 * reach + 3), dtype=np.int64)
        self._renew()

    def note(self, contexts: Integers, symbols: Integers) -> None:
        """These came: `learn` will count them."""
        self._contexts.append(contexts)
        self._symbols.append(symbols)

    def learn(self) -> None:
        """Count what was noted, halve what has been counted too often, and make `ends` anew."""
        if not self._contexts:
            return
        seen = np.concatenate(self._contexts), np.concatenate(self._symbols)
        np.add.at(self._counts, seen, _INCREMENT)
        self._contexts, self._symbols = [], []
        full = self._counts.sum(axis=1) > _LIMIT
        self._counts[full] = (self._counts[full] + 1) >> 1
        self._renew()

    def _renew(self) -> None:
        room = (1 << SCALE_BITS) - self._counts.shape[1]
        frequencies = self._counts * room // self._counts.sum(axis=1, keepdims=True) + 1
        frequencies[:, self._reach] += (1 << SCALE_BITS) - frequencies.sum(axis=1)
        np.cumsum(frequencies, axis=1, out=self.ends[:, 1:])


@cache
def _initial(reach: int) -> Integers:
    edges = np.arange(-reach, reach + 2) * 32 - 16
    out = np.empty((SPREADS * FRACTIONS, 2 * reach + 2), dtype=np.int64)
    for context in range(len(out)):
        spread, fraction = divmod(context, FRACTIONS)
        below = [_logistic(int(edge) - 2 * fraction - 1, spread) for edge in edges]
        out[context, :-1] = np.diff(below)
    out[:, -1] = 0
    counts: Integers = np.maximum(out * _STRENGTH >> _POWER_BITS, 1)
    return counts


def _logistic(distance: int, spread: int) -> int:
    """2^16 times the share below `distance` / 32."""
    whole, part = divmod(-8 * (2 * spread + 1), 64)
    steep = abs(distance) * _STEEPNESS * _powers()[part] >> _POWER_BITS - whole
    whole, part = divmod(-steep, 64)
    tail = _powers()[part] >> min(-whole, 2 * _POWER_BITS)
    share = (1 << 2 * _POWER_BITS) // ((1 << _POWER_BITS) + tail)
    return share if distance >= 0 else (1 << _POWER_BITS) - share


@cache
def _powers() -> list[int]:
    """2^(i / 64) in 1/2^16, rounded down."""
    out = []
    for index in range(64):
        power = 1 << 64 * _POWER_BITS + index
        for _ in range(6):
            power = isqrt(power)
        out.append(power)
    return out
