"""How a predicted weight was rounded (its drift), and what that tells of its residual.

A weight that was just not rounded up moves up before any other does: the residual has the sign of what was
lost, and is the more likely the more was lost. It is arithmetic only; who predicts is `contexts`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from shoal_delta.arithmetic import DRIFT_BITS, Bytes, Drift

MIRRORED = np.uint8(0x80)
"""The bit of a side that says: the residual's sign is to be changed."""
CLASS = np.uint8(0x1F)
CLASSES = 22
# Of 1/65536 of a step. Fine near 0: where scales stay about the same, so little is all there is.
_THRESHOLDS = (
    *(1, 4, 16, 64, 90, 128, 181, 256, 362, 512, 724, 1024),
    *(1448, 2048, 2896, 4096, 5793, 8192, 11585, 16384, 23170),
)
_CENTRE_SHIFT = DRIFT_BITS - 3


def sides(drift: Drift) -> Bytes:
    """How much each weight lost by rounding, below `CLASSES`, and `MIRRORED` when it was rounded up."""
    found: Bytes = np.take(_table(), drift.view(np.uint16))
    return found


def mirrored(residuals: Bytes, side: Bytes) -> Bytes:
    """Residuals whose side says so with their sign changed, modulo 256; its own inverse."""
    mask: Bytes = np.uint8(0) - (side >> np.uint8(7))
    changed: Bytes = (residuals ^ mask) - mask
    return changed


def centres(drift: Drift) -> npt.NDArray[np.int8]:
    """What each weight lost, in 1/16 of a step: the middle of the eighth."""
    return (2 * (drift >> _CENTRE_SHIFT) + 1).astype(np.int8)


@cache
def _table() -> Bytes:
    """The side of each drift, by its bits: no array of wide integers is made."""
    every = np.arange(1 << DRIFT_BITS, dtype=np.uint16).view(np.int16)
    lost = np.where(every < 0, ~every, every)
    found = np.searchsorted(_THRESHOLDS, lost, side="right").astype(np.uint8)
    signs: Bytes = np.where(every < 0, MIRRORED, np.uint8(0))
    both: Bytes = found | signs
    return both
