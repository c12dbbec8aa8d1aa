"""What a worker is given and gives back. Values only; both ends of a worker know them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shoal_agent.inference.pace import Point
from shoal_agent.inference.signature import Form, Signature
from shoal_agent.inference.tensors import ELEMENT_BYTES, Tensor

_ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one form. `chunks` has, for each input, the bytes of the rows, one below the other."""

    form: Form
    rows: int
    chunks: Sequence[Sequence[bytes | memoryview]]


@dataclass(frozen=True, slots=True)
class Ran:
    """The outputs of a batch in the order of `form.outputs`, and how long the model itself took."""

    outputs: list[Tensor]
    run_us: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker says of a release that it loaded; latencies only after a trial, else 0.

    `points`: of the calibration, if one was asked for. `providers`: the execution providers taken.
    `is_optimised`: it came from the form that an earlier load had left on the disk.
    `grown_bytes`: how much larger the process became, about; `peak_bytes`: how much larger it was for a while, after a
    trial.
    """

    signature: Signature
    load_us: int = 0
    p50_us: int = 0
    p95_us: int = 0
    golden_count: int = 0
    points: tuple[Point, ...] = ()
    providers: tuple[str, ...] = ()
    is_optimised: bool = False
    grown_bytes: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a piece of shared memory."""

    offset: int
    size_bytes: int


def layout(tensors: Sequence[tuple[str, Sequence[int]]], start: int = 0) -> tuple[list[Place], int]:
    """Places for tensors (type, shape) one after the other, aligned, and where the last one ends."""
    places = []
    offset = start
    for dtype, shape in tensors:
        size_bytes = math.prod(shape) * ELEMENT_BYTES[dtype]
        places.append(Place(offset, size_bytes))
        offset += -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
    return places, offset
