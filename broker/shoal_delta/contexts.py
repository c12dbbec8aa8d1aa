"""What the old file and the higher planes tell of a number before it is unpacked: its contexts.

Both ends make them from an operation and the old file; what they are worth is the coders' business.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shoal_delta.arithmetic import (
    MAX_SHIFT,
    Bytes,
    Ratios,
    as_bytes,
    gain_ratios,
    magnitude_classes,
    rescaled,
    scale_ratios,
)
from shoal_delta.coders import Reader
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.operations import WIDTH, Gains, Kind, Operation, Scaling

# The eighth of a weight that is not rescaled.
_EXACT = 4
FRACTION = np.uint8(7)
"""The bits of a residual's side that say how its prediction was rounded."""
_SIGNED = frozenset({Kind.SCALED_S8, Kind.GAINED_S8})
_BIT_LENGTHS = np.array([value.bit_length() for value in range(256)], dtype=np.uint8)
# float32: 2^-20; weights of a network do not differ much below.
_LEAST_EXPONENT = 107
# Sides of a plane: below this the element's size, then by where the difference began.
_BEGUN = 22
_LONG_BEGUN = 31
_FIRST_PLAIN = 19


def predicted(operation: Operation, read: Reader, block: bytes | bytearray) -> Bytes:
    """What the residuals of `operation` are added to."""
    if operation.kind is Kind.SUBTRACT:
        return as_bytes(read(operation.source, operation.size))
    return _rescaled(operation, read, block)[0]


def residual_side(operation: Operation, read: Reader, block: bytes | bytearray) -> Bytes:
    """Eighths of the rounding, and 8 x how large the old weight was."""
    old = as_bytes(read(operation.source, operation.size))
    channels = operation.scaling or operation.gains
    if channels is None:
        return (magnitude_classes(old, 0, is_signed=True) << 3 | _EXACT).astype(np.uint8)
    is_signed = operation.kind in _SIGNED
    size = magnitude_classes(old, channels.old_zero_point, is_signed=is_signed)
    return (size << 3 | _rescaled(operation, read, block)[1]).astype(np.uint8)


def ratios_of(
    channels: Scaling | Gains, read: Reader, block: bytes | bytearray, max_shift: int
) -> Ratios:
    """By how much each channel grows."""
    if isinstance(channels, Gains):
        codes = bytes(block[channels.codes : channels.codes + channels.channels])
        return gain_ratios(codes, channels.bits)
    size = 4 * channels.channels
    new = bytes(block[channels.new_scales : channels.new_scales + size])
    return scale_ratios(read(channels.old_scales, size), new, max_shift)


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


def _rescaled(operation: Operation, read: Reader, block: bytes | bytearray) -> tuple[Bytes, Bytes]:
    channels = operation.scaling or operation.gains
    if channels is None:
        raise CorruptDeltaError("a rescaled weight tensor has no scales")
    return rescaled(
        as_bytes(read(operation.source, operation.size)),
        is_signed=operation.kind in _SIGNED,
        zero_points=(channels.old_zero_point, channels.new_zero_point),
        ratios=ratios_of(channels, read, block, MAX_SHIFT),
        first=channels.first,
        inner=channels.inner,
    )
