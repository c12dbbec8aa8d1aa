"""The arithmetic of the delta, in integers only: the same bytes on every CPU.

Arrays in, arrays out; it knows neither files nor streams.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Ratios = tuple[Integers, Integers]
"""By what each channel is multiplied, and by what it is divided."""
Patterns = npt.NDArray[np.uint32]
"""Bit patterns of float32 numbers."""
Updates = npt.NDArray[np.int16]
"""By how much weights are expected to move, in 1/256 of a step."""

Drift = npt.NDArray[np.int16]
"""How much of predicted weights was lost by rounding, in 1/65536 of a step: below 0 when rounded up."""

UPDATE_BITS = 8
DRIFT_BITS = 16
_HALF_STEP = 1 << DRIFT_BITS - 1

_BLOCK = 1 << 14
_LEVEL_BITS = 8
_LEVELS = 1 << _LEVEL_BITS
# Scales further apart than this are not the same channel any more, and 64 bits would not do.
MAX_SHIFT = 15
# The same for 32-bit integers.
MAX_INTEGER_SHIFT = 6
_BIAS = 127
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
    ratios: Ratios,
    first: int,
    inner: int,
    update: Updates | None = None,
) -> tuple[Bytes, Drift]:
    """What each old weight becomes when its channel grows, and how it was rounded.

    The weight is round((q - zp) * n / d) + zp', clamped; halves round up.

    `zero_points` are (old, new); element `i` belongs to channel ((`first` + i) // `inner`) % channels.
    `update` is added before rounding, in 1/256; the rescaled weight is then first rounded to 1/256,
    halves up.
    """
    multiplier, divisor = ratios
    if update is not None:
        multiplier = multiplier << UPDATE_BITS
    weight = np.empty(old.size, dtype=np.uint8)
    drift = np.empty(old.size, dtype=np.int16)
    low, high = (-128, 127) if is_signed else (0, 255)

    def limited(whole: Integers) -> Bytes:
        return np.clip(whole + zero_points[1], low, high).astype(np.uint8)

    # So many weights a channel that it is cheaper to rescale every level once.
    wholes = weights = losses = None
    if multiplier.size * _LEVELS < old.size:
        wholes, losses = _level_tables(multiplier, divisor, zero_points[0], is_signed=is_signed)
        weights = limited(wholes)
    for start in range(0, old.size, _BLOCK):
        block = old[start : start + _BLOCK]
        channel = _channels(first + start, block.size, inner, multiplier.size)
        here = slice(start, start + block.size)
        if wholes is None or weights is None or losses is None:
            whole, drift[here] = _quotient(
                block, multiplier[channel], divisor[channel], zero_points[0], is_signed=is_signed
            )
        else:
            level = (channel << _LEVEL_BITS) + block
            if update is None:
                np.take(weights, level, out=weight[here], mode="clip")
                np.take(losses, level, out=drift[here], mode="clip")
                continue
            whole = np.take(wholes, level)
        if update is not None:
            whole, drift[here] = rounded(whole, update[here])
        weight[here] = limited(whole)
    return weight, drift


def rounded(whole: Integers, update: Updates) -> tuple[Integers, Drift]:
    """Numbers and updates in 1/256, added and rounded (halves up), and how."""
    half_up = whole + update + (1 << UPDATE_BITS - 1)
    part = (half_up & (1 << UPDATE_BITS) - 1) << DRIFT_BITS - UPDATE_BITS
    return half_up >> UPDATE_BITS, (part - _HALF_STEP).astype(np.int16)


def _channels(first: int, count: int, inner: int, channels: int) -> Integers:
    """The channel of each of `count` elements from `first` on."""
    begin, end = first // inner, (first + count - 1) // inner + 1
    lengths = np.full(end - begin, inner, dtype=np.int64)
    lengths[0] -= first - begin * inner
    lengths[-1] -= end * inner - first - count
    return np.repeat(np.arange(begin, end, dtype=np.int64) % channels, lengths)


def _level_tables(
    multiplier: Integers, divisor: Integers, zero_point: int, *, is_signed: bool
) -> tuple[Integers, Drift]:
    """What `_quotient` gives for every level of every channel: [channels, 256] each."""
    levels = np.arange(_LEVELS, dtype=np.uint8)[None, :]
    whole = np.empty((multiplier.size, _LEVELS), dtype=np.int64)
    lost = np.empty((multiplier.size, _LEVELS), dtype=np.int16)
    for start in range(0, multiplier.size, _BLOCK // _LEVELS):
        some = slice(start, start + _BLOCK // _LEVELS)
        whole[some], lost[some] = _quotient(
            np.repeat(levels, multiplier[some].size, axis=0),
            multiplier[some, None],
            divisor[some, None],
            zero_point,
            is_signed=is_signed,
        )
    return whole, lost


def _quotient(
    old: Bytes, multiplier: Integers, divisor: Integers, zero_point: int, *, is_signed: bool
) -> tuple[Integers, Drift]:
    centred = (old.view(np.int8) if is_signed else old).astype(np.int64) - zero_point
    whole, part = np.divmod(2 * centred * multiplier + divisor, 2 * divisor)
    # The divisor is below 2^39: 64 bits do.
    return whole, ((part << DRIFT_BITS) // (2 * divisor) - _HALF_STEP).astype(np.int16)


def magnitude_classes(old: Bytes) -> Bytes:
    """How large each weight is as a signed byte: 0, 1 (up to 3), 2 (up to 15) or 3."""
    levels = np.arange(_LEVELS, dtype=np.uint8).view(np.int8).astype(np.int64)
    classes = np.searchsorted((1, 4, 16), np.abs(levels), side="right")
    return as_bytes(old.tobytes().translate(classes.astype(np.uint8).tobytes()))


def rescaled_integers(old: bytes, ratios: Ratios, first: int, inner: int) -> bytes:
    """Little-endian 32-bit integers times their channel's ratio; halves round up; modulo 2^32."""
    values = np.frombuffer(old, dtype="<i4").astype(np.int64)
    out = np.empty(values.size, dtype="<u4")
    multiplier, divisor = ratios
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        channel = _channels(first + start, block.size, inner, multiplier.size)
        m, d = multiplier[channel], divisor[channel]
        out[start : start + block.size] = (2 * block * m + d) // (2 * d) & 0xFFFFFFFF
    return out.tobytes()


def products(factors: bytes, factor: bytes) -> bytes:
    """Float32 numbers times one other, rounded to nearest even, as IEEE 754 has it.

    Zero where one of the two, or the product, is no normal positive number.
    """
    (mantissa, exponent, fit), (other, other_exponent, other_fit) = map(_parts, (factors, factor))
    product = mantissa * other
    shift = 23 + (product >> 47)
    half = (1 << shift - 1) - 1 + (product >> shift & 1)
    rounded = (product + half) >> shift
    carry = rounded >> 24
    raised = exponent + other_exponent - _BIAS + (shift - 23) + carry
    fit = fit & other_fit & (raised > 0) & (raised < _INFINITY)
    bits = raised << 23 | (rounded >> carry) & (_HIDDEN_BIT - 1)
    return np.where(fit, bits, 0).astype("<u4").tobytes()


def gain_ratios(codes: bytes, bits: int) -> Ratios:
    """Gains 1 + code / 2^`bits` (signed bytes) as fractions."""
    one = np.int64(1 << bits)
    gains = np.frombuffer(codes, dtype=np.int8).astype(np.int64) + one
    return gains, np.full_like(gains, one)


def scale_ratios(old: bytes, new: bytes, max_shift: int = MAX_SHIFT) -> Ratios:
    """Old scale / new scale (float32, little endian) of each channel, as integers below 2^40.

    1 / 1 when one of a channel's scales is not a normal positive number, or their exponents are more
    than `max_shift` apart.
    """
    (before, before_exponent, before_fit), (after, after_exponent, after_fit) = map(
        _parts, (old, new)
    )
    shift = before_exponent - after_exponent
    fit = before_fit & after_fit & (np.abs(shift) <= max_shift)
    multiplier = before << np.clip(shift, 0, max_shift)
    divisor = after << np.clip(-shift, 0, max_shift)
    return np.where(fit, multiplier, 1), np.where(fit, divisor, 1)


def _parts(scales: bytes) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
    bits = np.frombuffer(scales, dtype="<u4").astype(np.int64)
    exponent = bits >> 23
    mantissa = (bits & (_HIDDEN_BIT - 1)) | _HIDDEN_BIT
    # A set sign bit makes the exponent 256 or more.
    return mantissa, exponent, (exponent > 0) & (exponent < _INFINITY)
