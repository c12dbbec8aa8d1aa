"""The old release's scales in a new INT8 model: the ONNX side of `levels`. Runs in the worker only.

ONNX Runtime's quantisers call the parts of a quantised weight W `W_quantized`, `W_scale`, `W_zero_point`, in
QDQ and in dynamic models; by these names, shapes and types the two models are matched. What has no
counterpart stays as the quantiser made it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from shoal_fleet.release_build.levels import NOISE_BOUND, Grid, Requantised, on_old_scales

QUANTISED: Final = "_quantized"
SCALE: Final = "_scale"
ZERO_POINT: Final = "_zero_point"
# An activation keeps its old range when the new one lies in it, but for this share of a side, ...
_OUTSIDE: Final = 0.02
# ... and its steps do not become coarser than this.
_COARSER: Final = 1.25

_LIMITS: Final = {"int8": (-127, 127), "uint8": (0, 255)}
_NARROW: Final = {"int8": (-64, 64), "uint8": (0, 127)}

Arrays = Mapping[str, NDArray[Any]]


@dataclass(slots=True)
class OldScales:
    """A model with the old scales in it, and what became of them.

    Attributes:
        model: the new model, changed.
        weights: by name, each weight that has a counterpart in the old release.
        activations_kept, activations: how many ranges are the old ones, of those that have a counterpart.
    """

    model: Any
    weights: dict[str, Requantised] = field(default_factory=dict)
    activations_kept: int = 0
    activations: int = 0

    @property
    def channels(self) -> tuple[int, int]:
        """How many scales of weights were kept, and of how many."""
        return (
            sum(int(found.kept.sum()) for found in self.weights.values()),
            sum(found.kept.size for found in self.weights.values()),
        )

    @property
    def carry(self) -> dict[str, NDArray[np.float32]]:
        """What the release leaves unsaid, by weight."""
        return {name: found.carry for name, found in self.weights.items()}


def with_old_scales(
    fresh: Any,
    old: Any,
    weights: Arrays,
    *,
    is_narrow: bool,
    tau: float = 0.0,
    carried: Arrays | None = None,
    noise_bound: float = NOISE_BOUND,
) -> OldScales:
    """A copy of `fresh` with the scales of `old`, where the bound of `levels.on_old_scales` allows.

    Args:
        fresh: the new INT8 model as the quantiser made it (onnx.ModelProto).
        old: the old release's.
        weights: the float weights it was made from, by the names of the float model.
        is_narrow: weights have 7 bits (`reduce_range`).
        tau: as in `on_old_scales`.
        carried: as there, by weight.
        noise_bound: as there.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(fresh)
    found = OldScales(copy)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in old.graph.initializer}
    axes = _axes(copy)
    biases = _biases(copy)
    biases_before = {name: _bias_value(tensors, name) for name in biases}
    for name in sorted(tensors):
        stem = name.removesuffix(QUANTISED)
        if stem != name and name not in biases and stem in weights:
            requantised = _requantised(
                stem,
                tensors,
                before,
                axes,
                weights[stem],
                is_narrow=is_narrow,
                tau=tau,
                carried=None if carried is None else carried.get(stem),
                noise_bound=noise_bound,
            )
            if requantised is not None:
                found.weights[stem] = requantised
                _set(tensors[name], requantised.levels)
                _set(tensors[stem + SCALE], requantised.grid.scale)
                _set(tensors[stem + ZERO_POINT], requantised.grid.zero_point)
    for stem in sorted(_activations(copy, tensors)):
        is_kept = _keep_range(stem, tensors, before)
        found.activations += is_kept is not None
        found.activations_kept += is_kept is True
    for name, (input_scale, weight_scale) in biases.items():
        _rescale_bias(name, tensors, input_scale, weight_scale, biases_before[name])
    return found


def _requantised(
    stem: str,
    tensors: Mapping[str, Any],
    before: Arrays,
    axes: Mapping[str, int],
    weight: NDArray[Any],
    *,
    is_narrow: bool,
    tau: float,
    carried: NDArray[Any] | None,
    noise_bound: float,
) -> Requantised | None:
    names = stem + QUANTISED, stem + SCALE, stem + ZERO_POINT
    if not all(name in tensors and name in before for name in names):
        return None
    now = [numpy_helper.to_array(tensors[name]) for name in names]
    then = [before[name] for name in names]
    limits = (_NARROW if is_narrow else _LIMITS).get(str(now[0].dtype))
    if limits is None or any(
        a.shape != b.shape or a.dtype != b.dtype for a, b in zip(now, then, strict=True)
    ):
        return None
    axis = _axis(now[0].shape, now[1].size, axes.get(names[0]))
    if now[0].shape != weight.shape or (now[1].size > 1 and axis is None):
        return None
    shape = now[1].shape
    fresh, old = (
        Grid(scale.reshape(-1), zero.reshape(-1), axis, *limits) for _, scale, zero in (now, then)
    )
    made = on_old_scales(
        weight, fresh, old, then[0], tau=tau, carried=carried, noise_bound=noise_bound
    )
    made.grid.scale.shape = shape
    made.grid.zero_point.shape = shape
    return made


def _axis(shape: tuple[int, ...], channels: int, said: int | None) -> int | None:
    """The dimension that the scales run along: as the graph says, else the last one that fits."""
    if channels == 1:
        return None
    if said is not None:
        return said % len(shape)
    fitting = [k for k, size in enumerate(shape) if size == channels]
    return fitting[-1] if fitting else None


def _axes(model: Any) -> dict[str, int]:
    """The axis of each tensor that a DequantizeLinear takes."""
    return {
        node.input[0]: next((a.i for a in node.attribute if a.name == "axis"), 1)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }


def _biases(model: Any) -> dict[str, tuple[str, str]]:
    """Of each quantised bias: the names of its input's and its weight's scale."""
    dequantised = {
        node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"
    }
    found = {}
    for node in model.graph.node:
        parts = [dequantised[name] for name in node.input[:3] if name in dequantised]
        if node.op_type in {"Conv", "Gemm"} and len(parts) == 3:  # noqa: PLR2004 - and all are INT8
            value, weight, bias = parts
            found[bias.input[0]] = (value.input[1], weight.input[1])
    return found


def _bias_value(tensors: Mapping[str, Any], name: str) -> NDArray[np.float64] | None:
    scale = name + SCALE
    if name not in tensors or scale not in tensors:
        return None
    levels = numpy_helper.to_array(tensors[name]).astype(np.float64)
    return np.asarray(levels * numpy_helper.to_array(tensors[scale]).astype(np.float64))


def _rescale_bias(
    name: str,
    tensors: Mapping[str, Any],
    input_scale: str,
    weight_scale: str,
    value: NDArray[np.float64] | None,
) -> None:
    """A bias is int32 in steps of input scale x weight scale: 2^31 steps hold the value as it was."""
    if value is None or input_scale not in tensors or weight_scale not in tensors:
        return
    scale = numpy_helper.to_array(tensors[name + SCALE])
    product = numpy_helper.to_array(tensors[input_scale]) * numpy_helper.to_array(
        tensors[weight_scale]
    )
    fitting = np.broadcast_to(product.reshape(-1), scale.reshape(-1).shape).astype(np.float32)
    levels = np.clip(np.rint(value / fitting.reshape(scale.shape)), -(2**31), 2**31 - 1)
    _set(tensors[name + SCALE], fitting.reshape(scale.shape))
    _set(tensors[name], levels.astype(np.int32))


def _activations(model: Any, tensors: Mapping[str, Any]) -> set[str]:
    """The stems of scalar scales that activations are quantised with."""
    return {
        node.input[1].removesuffix(SCALE)
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
        and node.input[1].endswith(SCALE)
        and {node.input[1], node.input[1].removesuffix(SCALE) + ZERO_POINT} <= tensors.keys()
    }


def _keep_range(stem: str, tensors: Mapping[str, Any], before: Arrays) -> bool | None:
    """Take the old range of an activation if the new one is in it; None without a counterpart."""
    names = stem + SCALE, stem + ZERO_POINT
    if not all(name in before for name in names):
        return None
    now = [numpy_helper.to_array(tensors[name]) for name in names]
    then = [before[name] for name in names]
    if any(
        a.shape != b.shape or a.dtype != b.dtype or a.size != 1
        for a, b in zip(now, then, strict=True)
    ):
        return None
    lowest, highest = _range(*now)
    old_lowest, old_highest = _range(*then)
    spare = _OUTSIDE * (highest - lowest)
    if (
        old_lowest > lowest + spare
        or old_highest < highest - spare
        or not 0 < float(then[0].item()) <= _COARSER * float(now[0].item())
    ):
        return False
    for name, value in zip(names, then, strict=True):
        _set(tensors[name], value)
    return True


def _range(scale: NDArray[Any], zero_point: NDArray[Any]) -> tuple[float, float]:
    limits = np.iinfo(zero_point.dtype)
    step, zero = float(scale.item()), int(zero_point.item())
    return (limits.min - zero) * step, (limits.max - zero) * step


def _set(tensor: Any, values: NDArray[Any]) -> None:
    """Stored as it was, raw or typed: another way to write the same number would be another byte."""
    if np.array_equal(numpy_helper.to_array(tensor), values):
        return
    flat = np.ascontiguousarray(values).reshape(-1)
    if tensor.HasField("raw_data"):
        tensor.raw_data = flat.astype(values.dtype.newbyteorder("<")).tobytes()
    else:
        typed = helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, flat.tolist())
        tensor.CopyFrom(typed)
