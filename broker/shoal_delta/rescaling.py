"""How a quantised tensor's channels lie, and what its scales and gains make of the old weights.

Facts from the walkers in, `Scaling` and `Gains` out; whether they pay is `model_plan`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from shoal_delta.global_block import content_of
from shoal_delta.onnx_wire import FLOAT, INT8, UINT8, Model, Tensor
from shoal_delta.operations import MIN_GAIN_BITS, Gains, Kind, Scaling, value_range

SCALED_KIND = {INT8: Kind.SCALED_S8, UINT8: Kind.SCALED_U8}
GAINED_KIND = {INT8: Kind.GAINED_S8, UINT8: Kind.GAINED_U8}
_FLOAT_BYTES = 4
_LARGEST_CODE = 127
# An eighth of a level at the far end of the range: finer gains cost more than they tell.
_GAIN_BITS = 10
# Fewer weights do not tell their channel's gain better than it costs.
_MIN_CHANNEL_WEIGHTS = 24


@dataclass(frozen=True, slots=True)
class Channels:
    """Of a weight tensor in the new file: its scale there, and how its channels lie.

    `zero_points` are (old, new); `inner` neighbouring weights share a channel.
    """

    scale: Tensor
    count: int
    inner: int
    zero_points: tuple[int, int]
    is_signed: bool

    def scaling(self, old_scales: int, new_scales: int) -> Scaling:
        """Each weight on the new scale."""
        return Scaling(0, self.inner, self.count, old_scales, new_scales, *self.zero_points)

    def gains(self, codes: int, bits: int) -> Gains:
        """Each weight times its channel's gain."""
        return Gains(0, self.inner, self.count, codes, bits, *self.zero_points)


def channels_of(
    files: tuple[bytes, bytes], models: tuple[Model, Model], tensors: tuple[Tensor, Tensor]
) -> Channels | None:
    """The channels of a weight tensor (each pair: old, new); None when it has no scales or unclear ones."""
    scale = scale_of(models[1], tensors[1])
    if tensors[1].dtype not in SCALED_KIND or scale is None:
        return None
    old_zero, new_zero = (
        _zero_point(file, model, tensor)
        for file, model, tensor in zip(files, models, tensors, strict=True)
    )
    count = scale.size // _FLOAT_BYTES
    inner = _inner(tensors[1], count)
    if inner is None or old_zero is None or new_zero is None:
        return None
    is_signed = tensors[1].dtype == INT8
    return Channels(scale, count, inner, (old_zero, new_zero), is_signed)


def scale_of(model: Model, tensor: Tensor) -> Tensor | None:
    """The float32 tensor that scales another; None when it has none or none that can be found."""
    found = model.by_name.get(tensor.scale) if tensor.scale else None
    is_floats = found is not None and found.dtype == FLOAT and found.size % _FLOAT_BYTES == 0
    return found if is_floats else None


def gain_codes(channels: Channels, before: bytes, after: bytes) -> tuple[bytes, int] | None:
    """The gain of each channel that fits best, as codes of so many bits; None when too few weights tell."""
    if len(after) < _MIN_CHANNEL_WEIGHTS * channels.count:
        return None
    old, new = (
        np.frombuffer(data, np.int8 if channels.is_signed else np.uint8).astype(np.int64) - zero
        for data, zero in zip((before, after), channels.zero_points, strict=True)
    )
    channel = np.arange(old.size) // channels.inner % channels.count
    both = np.bincount(channel, old * new, channels.count)
    own = np.bincount(channel, old * old, channels.count)
    growth = both / np.maximum(own, 1) - 1
    growth[own == 0] = 0
    spread = float(np.sort(np.abs(growth))[(channels.count * 15) // 16])
    bits = _GAIN_BITS
    while bits > MIN_GAIN_BITS and spread * (1 << bits) > _LARGEST_CODE:
        bits -= 1
    codes = np.clip(np.rint(growth * (1 << bits)), -_LARGEST_CODE - 1, _LARGEST_CODE)
    return codes.astype(np.int8).tobytes(), bits


def _zero_point(data: bytes, model: Model, tensor: Tensor) -> int | None:
    """The tensor's one zero point; None when it has several or none that can be found."""
    values = {0}
    if tensor.zero_point:
        values = set(model.integers.get(tensor.zero_point, ()))
        stored = model.by_name.get(tensor.zero_point)
        if stored is not None:
            values = set(content_of(data, stored))
            if tensor.dtype == INT8:
                values = {value - ((value & 0x80) << 1) for value in values}
    low, high = value_range(SCALED_KIND[tensor.dtype])
    value = values.pop() if len(values) == 1 else None
    return value if value is not None and low <= value <= high else None


def _inner(tensor: Tensor, channels: int) -> int | None:
    """How many neighbouring weights share a channel; None when the scales do not fit the shape."""
    if channels == 1:
        return max(1, tensor.size)
    dims, rank = tensor.dims, len(tensor.dims)
    if prod(dims) != tensor.size:
        return None
    wanted = [tensor.axis] if tensor.axis is not None else [1, 0, *range(2, rank)]
    for axis in wanted:
        if -rank <= axis < rank and dims[axis] == channels:
            return prod(dims[axis % rank + 1 :])
    return None
