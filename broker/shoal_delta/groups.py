"""Numbers of which nearly all are zeros: groups of neighbours that are nothing else are left out.

An embedding moves in the rows of the words that were trained on, and hardly anywhere else. A flag a group says
so, which is cheaper than a zero a number, and leaves the entropy coder fewer numbers to spread over its lanes.
Here is only how numbers fall into groups; how flags and numbers are packed is the coders' business.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal_delta.arithmetic import Bytes
from shoal_delta.drift import CLASS

MAX_BITS = 12
TRIED_BITS = (4, 6, 7)
# A flag that is mostly set tells little.
_MIN_ZEROS_SHIFT = 6
_MIN_BYTES = 512

Mask = npt.NDArray[np.bool_]


def is_worth_trying(numbers: Bytes) -> bool:
    """Whether so few numbers are not 0 that groups may pay."""
    few = numbers.size >> _MIN_ZEROS_SHIFT
    return numbers.size >= _MIN_BYTES and int(np.count_nonzero(numbers)) <= few


def flags(numbers: Bytes, bits: int) -> Bytes:
    """For each group of 2^`bits` neighbours (the last may be short): 1 when one of them is not 0."""
    return np.minimum(_largest(numbers, bits), np.uint8(1))


def flags_side(side: Bytes, bits: int) -> Bytes:
    """The largest class in each group."""
    return _largest(side & CLASS, bits)


def members(flags: Bytes, bits: int, size: int) -> Mask:
    """Which of `size` numbers are in groups whose flag is set."""
    return np.repeat(flags.astype(np.bool_), 1 << bits)[:size]


def count(size: int, bits: int) -> int:
    """How many groups `size` numbers make."""
    return (size + (1 << bits) - 1) >> bits


def _largest(values: Bytes, bits: int) -> Bytes:
    padded = np.zeros(count(values.size, bits) << bits, dtype=np.uint8)
    padded[: values.size] = values
    largest: Bytes = padded.reshape(-1, 1 << bits).max(axis=1)
    return largest
