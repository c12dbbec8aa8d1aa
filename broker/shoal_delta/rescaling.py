"""Which scales and zero points belong to a weight tensor in both models, when they differ.

Facts from the walkers in, a `Scaling` out; whether it pays is `model_plan`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from shoal_delta.onnx_wire import FLOAT, INT8, UINT8, Model, Tensor
from shoal_delta.operations import Kind, Scaling, value_range

SCALED_KIND = {INT8: Kind.SCALED_S8, UINT8: Kind.SCALED_U8}


@dataclass(frozen=True, slots=True)
class Rescaling:
    """How one weight tensor moved from scale to scale; `scaling.new_scales` is still to be placed."""

    kind: Kind
    scaling: Scaling
    old_scale: Tensor
    new_scale: Tensor


def rescaling(
    files: tuple[bytes, bytes], models: tuple[Model, Model], tensors: tuple[Tensor, Tensor]
) -> Rescaling | None:
    """The rescaling between two weight tensors (each pair: old, new), None when there is none."""
    old_scale, new_scale = (
        _floats(model, tensor.scale) for model, tensor in zip(models, tensors, strict=True)
    )
    kind = SCALED_KIND.get(tensors[1].dtype)
    if kind is None or old_scale is None or new_scale is None or old_scale.size != new_scale.size:
        return None
    if _content(files[0], old_scale) == _content(files[1], new_scale):
        return None
    old_zero, new_zero = (
        _zero_point(file, model, tensor)
        for file, model, tensor in zip(files, models, tensors, strict=True)
    )
    channels = new_scale.size // 4
    inner = _inner(tensors[1], channels)
    if inner is None or old_zero is None or new_zero is None:
        return None
    scaling = Scaling(0, inner, channels, old_scale.offset, 0, old_zero, new_zero)
    return Rescaling(kind, scaling, old_scale, new_scale)


def _content(file: bytes, tensor: Tensor) -> bytes:
    return file[tensor.offset : tensor.offset + tensor.size]


def _floats(model: Model, name: str) -> Tensor | None:
    tensor = model.by_name.get(name) if name else None
    return tensor if tensor is not None and tensor.dtype == FLOAT and tensor.size % 4 == 0 else None


def _zero_point(data: bytes, model: Model, tensor: Tensor) -> int | None:
    """The tensor's one zero point; None when it has several or none that can be found."""
    values = {0}
    if tensor.zero_point:
        values = set(model.integers.get(tensor.zero_point, ()))
        stored = model.by_name.get(tensor.zero_point)
        if stored is not None:
            values = set(_content(data, stored))
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
