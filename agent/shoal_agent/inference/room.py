"""Where a new release is loaded, by how much memory is left. Pure; the figures come in.

Beside what serves: a second worker loads everything and takes over, so that no request notices. Within: into the
worker that serves, which stops for moments. Instead: what it replaces goes first; whether it may is `admission`'s matter.
"""

from enum import Enum
from typing import Final

WORKER_BYTES: Final = 64 * 1024 * 1024
"""What a worker takes before it has a model: an interpreter, numpy and ONNX Runtime."""
_GROWTH: Final = 2
"""Loading holds the file and the weights at the same time."""


class Place(Enum):
    """See above."""

    BESIDE = "beside"
    WITHIN = "within"
    INSTEAD = "instead"


def place_of_trial(room_bytes: int, *, file_bytes: int) -> Place:
    """Where a release of so many bytes on the disk is tried out: that takes a process of its own."""
    if room_bytes >= WORKER_BYTES + _GROWTH * file_bytes:
        return Place.BESIDE
    return Place.INSTEAD


def place_of_load(room_bytes: int, *, new_bytes: int, resident_bytes: int) -> Place:
    """Where a release is loaded that takes `new_bytes`, when those in use take `resident_bytes`."""
    if room_bytes >= WORKER_BYTES + resident_bytes + new_bytes:
        return Place.BESIDE
    if room_bytes >= new_bytes:
        return Place.WITHIN
    return Place.INSTEAD
