"""What the old file and the higher planes tell of a number before it is unpacked: its contexts.

Both ends make them from an operation and the old file; what they are worth is the coders' business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal_delta import drift
from shoal_delta.arithmetic import (
    MAX_SHIFT,
    Bytes,
    Drift,
    Patterns,
    Ratios,
    Updates,
    as_bytes,
    gain_ratios,
    magnitude_classes,
    rescaled,
    scale_ratios,
)
from shoal_delta.coders import Contexts, Reader
from shoal_delta.low_rank import added, direction_classes, fixed_updates, moved
from shoal_delta.operations import WIDTH, Gains, Kind, Operation, Scaling

_NO_DIRECTION = 15
_SIGNED = frozenset({Kind.SCALED_S8, Kind.GAINED_S8})
_BIT_LENGTHS = np.array([value.bit_length() for value in range(256)], dtype=np.uint8)
# float32: 2^-20; weights of a network do not differ much below.
_LEAST_EXPONENT = 107
# Sides of a plane: below this the element's size, then by where the difference began.
_BEGUN = 22
_LONG_BEGUN = 31
_FIRST_PLAIN = 19


@dataclass(frozen=True, slots=True)
class Expected:
    """What the residuals of an operation are added to, how it was rounded, and the residuals' sides."""

    weights: Bytes
    drift: Drift | None
    """None: nothing was rounded."""
    side: Bytes


def predicted(
    operation: Operation, read: Reader, block: bytes | bytearray
) -> tuple[Bytes, Drift | None]:
    """What the residuals of `operation` are added to, and how it was rounded (None: not at all)."""
    old = as_bytes(read(operation.source, operation.size))
    channels, update = operation.scaling or operation.gains, _update(operation, block)
    if channels is None:
        return (old, None) if update is None else added(old, update)
    ratios, first = channel_ratios(channels, old.size, read, block, MAX_SHIFT)
    return rescaled(
        old,
        is_signed=operation.kind in _SIGNED,
        zero_points=(channels.old_zero_point, channels.new_zero_point),
        ratios=ratios,
        first=first,
        inner=channels.inner,
        update=update,
    )


def expected(operation: Operation, read: Reader, block: bytes) -> Expected:
    """What is known of the residuals of `operation`.

    Their side is that of `drift`; of weights that were not rounded, how large they were.
    """
    weights, lost = predicted(operation, read, block)
    if lost is None:
        return Expected(weights, None, drift.CLASSES + magnitude_classes(weights))
    return Expected(weights, lost, drift.sides(lost))


def residual_contexts(plan: Sequence[Operation], known: Sequence[Expected]) -> Contexts:
    """Of the residuals that the operations of `plan` take, one after the other."""
    centres = [
        np.zeros(each.side.size, dtype=np.int8) if each.drift is None else drift.centres(each.drift)
        for each in known
    ]
    return Contexts(
        # Most segments of a large model hold one matrix: no copy.
        known[0].side if len(known) == 1 else np.concatenate([each.side for each in known]),
        is_signed=True,
        matrices=tuple((operation.size, operation.columns) for operation in plan),
        expected=np.concatenate(centres),
    )


def steps_contexts(plan: Sequence[Operation], block: bytes) -> Contexts:
    """The same of steps."""
    return Contexts(
        np.concatenate([steps_side(operation, block) for operation in plan]),
        is_signed=True,
        matrices=tuple((operation.size // 4, operation.columns) for operation in plan),
    )


def expected_floats(operation: Operation, read: Reader, block: bytes) -> Patterns:
    """The numbers a STEPPED32 counts from."""
    old = np.frombuffer(read(operation.source, operation.size), dtype="<u4")
    return old if operation.low_rank is None else moved(old, operation.low_rank, block)


def steps_side(operation: Operation, block: bytes) -> Bytes:
    """Which way and how far each number is expected to move: 0 to 14; 15 when nothing tells."""
    count = operation.size // WIDTH[operation.kind]
    if operation.low_rank is None:
        return np.full(count, _NO_DIRECTION, dtype=np.uint8)
    return direction_classes(operation.low_rank, count, operation.cell - 127, block)


def plane_side(operation: Operation, plane: int, higher: Sequence[Bytes], read: Reader) -> Bytes:
    """What is known of byte `plane` of each difference: one byte below 32.

    While the difference is 0 so far, the size of the old element, below 23; otherwise 22 + the bits
    of the byte above, or 31 when the difference began above that. `higher` are the planes above, the
    next one first. Elements without a base have 19 and more, by plane.
    """
    if operation.kind in {Kind.PLANES16, Kind.PLANES32}:
        return np.full(operation.size // WIDTH[operation.kind], _FIRST_PLAIN + plane, np.uint8)
    side = _element_sizes(read(operation.source, operation.size), operation.kind)
    if higher:
        side = np.where(higher[0] > 0, _BEGUN + _BIT_LENGTHS[higher[0]], side)
    for above in higher[1:]:
        side = np.where(above > 0, np.uint8(_LONG_BEGUN), side)
    return side.astype(np.uint8)


def _element_sizes(old: bytes, kind: Kind) -> Bytes:
    """Below 23: the exponent of each float, the bits of each integer's absolute value.

    Equal steps of a weight are twice as many units of the last place where it is half as large.
    """
    match kind:
        case Kind.FLOAT32:
            exponent = (np.frombuffer(old, "<u4") >> 23 & 0xFF).astype(np.int64)
            size = np.clip(exponent - _LEAST_EXPONENT, 0, _BEGUN)
        case Kind.FLOAT16:
            # float16's exponent; of a bfloat16 the upper five bits of eight.
            size = np.minimum(np.frombuffer(old, "<u2") >> 10 & 0x1F, _BEGUN)
        case _:
            value = np.frombuffer(old, f"<i{WIDTH[kind]}").astype(np.int64)
            size = np.searchsorted(1 << np.arange(_BEGUN), np.abs(value), side="right")
    return size.astype(np.uint8)


def _update(operation: Operation, block: bytes | bytearray) -> Updates | None:
    low_rank = operation.low_rank
    return None if low_rank is None else fixed_updates(low_rank, operation.size, bytes(block))


def channel_ratios(
    channels: Scaling | Gains,
    elements: int,
    read: Reader,
    block: bytes | bytearray,
    max_shift: int,
) -> tuple[Ratios, int]:
    """By how much the numbers of each channel grow, and where in the first one the elements begin.

    Only of the channels that so many elements belong to, from that of the first one on.
    """
    begin, end = channels.first // channels.inner, channels.first + elements - 1
    count = min(end // channels.inner + 1 - begin, channels.channels)
    begin %= channels.channels
    until_last = min(count, channels.channels - begin)

    def those(source: Reader, at: int, width: int) -> bytes:
        head = source(at + width * begin, width * until_last)
        return head + source(at, width * (count - until_last))

    def from_block(at: int, size: int) -> bytes:
        return bytes(block[at : at + size])

    first = channels.first % channels.inner
    if isinstance(channels, Gains):
        return gain_ratios(those(from_block, channels.codes, 1), channels.bits), first
    old = those(read, channels.old_scales, 4)
    return scale_ratios(old, those(from_block, channels.new_scales, 4), max_shift), first
