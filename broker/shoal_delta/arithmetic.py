"""The arithmetic of the delta, in integers only: the same bytes on every CPU.

Arrays in, arrays out; it knows neither files nor streams.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

_BLOCK = 1 << 16
_LEVELS = 256
# Scales further apart than this are not the same channel any more, and 64 bits would not do.
_MAX_SHIFT = 15
_HIDDEN_BIT = 1 << 23
_INFINITY = 0xFF


def as_bytes(data: bytes) -> Bytes:
    """A read-only view of `data`."""
    return np.frombuffer(data, dtype=np.uint8)


def monotone(values: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.unsignedinteger]:
    """IEEE bit patterns as unsigned integers in the order of the numbers they stand for."""
    sign = values.dtype.type(1 << (8 * values.dtype.itemsize - 1))
    return np.where(values & sign, ~values, values | sign)


def unmonotone(values: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.unsignedinteger]:
    """The inverse of `monotone`."""
    sign = values.dtype.type(1 << (8 * values.dtype.itemsize - 1))
    return np.where(values & sign, values ^ sign, ~values)


def differences(old: bytes, new: bytes, width: int, *, is_float: bool) -> Bytes:
    """Zigzag of new - old modulo 2^(8 `width`), as planes: uint8 [width, elements], low byte first."""
    before, after = (np.frombuffer(data, dtype=f"<u{width}") for data in (old, new))
    if is_float:
        before, after = monotone(before), monotone(after)
    change = (after - before).view(f"<i{width}")
    zigzag = ((change << 1) ^ (change >> (8 * width - 1))).view(f"<u{width}")
    return planes(zigzag.tobytes(), width)


def undo_differences(old: bytes, parts: Bytes, *, is_float: bool) -> bytes:
    """The inverse of `differences`; `parts` is uint8 [width, elements]."""
    width = len(parts)
    before = np.frombuffer(old, dtype=f"<u{width}")
    zigzag = np.frombuffer(from_planes(parts), dtype=f"<u{width}")
    one = zigzag.dtype.type(1)
    change = (zigzag >> one) ^ (~(zigzag & one) + one)
    if is_float:
        return bytes(unmonotone(monotone(before) + change).tobytes())
    return bytes((before + change).tobytes())


def planes(data: bytes, width: int) -> Bytes:
    """Elements of `width` bytes as planes: uint8 [width, elements]."""
    return as_bytes(data).reshape(-1, width).T


def from_planes(parts: Bytes) -> bytes:
    """The inverse of `planes`."""
    return parts.T.tobytes()


def rescaled(
    old: Bytes,
    *,
    is_signed: bool,
    zero_points: tuple[int, int],
    scales: tuple[bytes, bytes],
    first: int,
    inner: int,
) -> tuple[Bytes, Bytes]:
    """What each old weight becomes on the new scale, and how it was rounded.

    The weight is round((q - zp) * old / new) + zp', clamped; halves round up. How it was rounded is
    the fraction in eighths: 0 just rounded up, 4 exact, 7 almost rounded up.

    `zero_points` and `scales` are (old, new); scales are float32, little endian, one a channel. A
    channel keeps its weights (ratio 1) when one of its scales is not a normal positive number or
    they are more than 2^15 apart.
    """
    multiplier, divisor = _ratios(*scales)
    weight = np.empty(old.size, dtype=np.uint8)
    fraction = np.empty(old.size, dtype=np.uint8)
    is_table = multiplier.size * _LEVELS < old.size
    if is_table:
        # So many weights a channel that it is cheaper to rescale every level once.
        levels = np.tile(np.arange(_LEVELS, dtype=np.uint8), (multiplier.size, 1))
        tables = [
            part.reshape(-1)
            for part in _rescaled(
                levels, multiplier[:, None], divisor[:, None], zero_points, is_signed=is_signed
            )
        ]
    for start in range(0, old.size, _BLOCK):
        block = old[start : start + _BLOCK]
        element = np.arange(first + start, first + start + block.size, dtype=np.int64)
        channel = (element // inner) % multiplier.size
        here = slice(start, start + block.size)
        if is_table:
            index = channel * _LEVELS + block
            weight[here], fraction[here] = (table[index] for table in tables)
        else:
            weight[here], fraction[here] = _rescaled(
                block, multiplier[channel], divisor[channel], zero_points, is_signed=is_signed
            )
    return weight, fraction


def _rescaled(
    old: Bytes,
    multiplier: Integers,
    divisor: Integers,
    zero_points: tuple[int, int],
    *,
    is_signed: bool,
) -> tuple[Bytes, Bytes]:
    low, high = (-128, 127) if is_signed else (0, 255)
    centred = (old.view(np.int8) if is_signed else old).astype(np.int64) - zero_points[0]
    whole, part = np.divmod(2 * centred * multiplier + divisor, 2 * divisor)
    weight = np.clip(whole + zero_points[1], low, high).astype(np.uint8)
    return weight, ((part << 3) // (2 * divisor)).astype(np.uint8)


def magnitude_classes(old: Bytes, zero_point: int, *, is_signed: bool) -> Bytes:
    """How far each weight is from its zero point: 0, 1 (up to 3), 2 (up to 15) or 3."""
    levels = np.arange(_LEVELS, dtype=np.uint8)
    values = (levels.view(np.int8) if is_signed else levels).astype(np.int64)
    return np.searchsorted((1, 4, 16), np.abs(values - zero_point), side="right").astype(np.uint8)[
        old
    ]


def _ratios(old: bytes, new: bytes) -> tuple[Integers, Integers]:
    """Old scale / new scale of each channel as a fraction of integers below 2^40."""
    (before, before_exponent, before_fit), (after, after_exponent, after_fit) = map(
        _parts, (old, new)
    )
    shift = before_exponent - after_exponent
    fit = before_fit & after_fit & (np.abs(shift) <= _MAX_SHIFT)
    multiplier = before << np.clip(shift, 0, _MAX_SHIFT)
    divisor = after << np.clip(-shift, 0, _MAX_SHIFT)
    return np.where(fit, multiplier, 1), np.where(fit, divisor, 1)


def _parts(scales: bytes) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
    bits = np.frombuffer(scales, dtype="<u4").astype(np.int64)
    exponent = bits >> 23
    mantissa = (bits & (_HIDDEN_BIT - 1)) | _HIDDEN_BIT
    # A set sign bit makes the exponent 256 or more.
    return mantissa, exponent, (exponent > 0) & (exponent < _INFINITY)
