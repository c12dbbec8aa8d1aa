"""The arithmetic of the delta, in integers only: the same bytes on every CPU.

Arrays in, arrays out; it knows neither files nor streams.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

_BLOCK = 1 << 16
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
) -> Bytes:
    """What each old weight becomes on the new scale: round((q - zp) * old / new) + zp', clamped.

    `zero_points` and `scales` are (old, new); scales are float32, little endian, one a channel. A
    channel keeps its weights (ratio 1) when one of its scales is not a normal positive number or
    they are more than 2^15 apart. Halves round up.
    """
    multiplier, divisor = _ratios(*scales)
    low, high = (-128, 127) if is_signed else (0, 255)
    out = np.empty(old.size, dtype=np.uint8)
    for start in range(0, old.size, _BLOCK):
        block = old[start : start + _BLOCK]
        centred = (block.view(np.int8) if is_signed else block).astype(np.int64) - zero_points[0]
        element = np.arange(first + start, first + start + block.size, dtype=np.int64)
        channel = (element // inner) % multiplier.size
        below = divisor[channel]
        weight = (2 * centred * multiplier[channel] + below) // (2 * below) + zero_points[1]
        out[start : start + block.size] = np.clip(weight, low, high).astype(np.uint8)
    return out


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
