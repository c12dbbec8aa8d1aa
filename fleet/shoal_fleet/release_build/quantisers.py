"""An attempt of the recipe carried out: float ONNX file in, INT8 ONNX file out. Worker only.

ONNX Runtime's quantisers for dynamic and static; weights-only is a DequantizeLinear before each weight.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build.calibration import Items
from shoal_fleet.release_build.float_source import load
from shoal_fleet.release_build.levels import Grid
from shoal_fleet.release_build.old_release import QUANTISED, SCALE, ZERO_POINT
from shoal_fleet.release_build.presets import Preset
from shoal_fleet.release_build.recipe import Attempt, Way
from shoal_fleet.release_build.running import batches, model_inputs

# What stays in INT8 between two of the first three; Softmax and norms gain nothing and cost accuracy.
_STATIC_OPS: Final = [
    *("Conv", "Gemm", "MatMul", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Add", "Concat", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Pad"),
]
_MIN_WEIGHTS: Final = 256
"""A smaller tensor costs more as scales and names than it saves."""

_GREATEST: Final = 127


def quantise(
    model: Path, out: Path, attempt: Attempt, *, preset: Preset, calibration: Items | None
) -> None:
    """Make `out` from the float model as the attempt says.

    Raises:
        ReleaseBuildError: the quantiser fails.
    """
    try:
        match attempt.way:
            case Way.DYNAMIC:
                quantize_dynamic(
                    model,
                    out,
                    per_channel=True,
                    reduce_range=preset.is_narrow,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=list(attempt.excluded),
                )
            case Way.STATIC:
                _static(model, out, attempt, preset, calibration)
            case Way.WEIGHTS_ONLY:
                onnx.save(weights_only(load(model, with_data=True)), out)
            case Way.FLOAT:
                onnx.save(load(model, with_data=True), out)
    except ReleaseBuildError:
        raise
    except Exception as exc:  # a foreign tool raises anything; its reason is handed on
        first = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise ReleaseBuildError(f"{attempt.way} quantisation fails: {first}") from exc


def weights_only(model: Any) -> Any:
    """A copy whose large weights are INT8 in the file, one scale a channel, and float when computing."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    axes: dict[str, int | None] = {}
    for node in copy.graph.node:
        for name, axis in _weights_of(node):
            # One that two nodes see differently gets one scale.
            axes[name] = axis if axes.get(name, axis) == axis else None
    outputs = {value.name for value in copy.graph.output}
    kept, nodes = [], []
    for tensor in copy.graph.initializer:
        axis = axes.get(tensor.name)
        weight = numpy_helper.to_array(tensor)
        is_large = tensor.data_type == onnx.TensorProto.FLOAT and weight.size >= _MIN_WEIGHTS
        if tensor.name not in axes or not is_large or tensor.name in outputs:
            kept.append(tensor)
            continue
        axis = axis if weight.ndim > 1 else None
        grid = symmetric_grid(weight, axis)
        stem = tensor.name
        shape = () if axis is None else grid.scale.shape
        parts = {
            stem + QUANTISED: grid.quantised(weight),
            stem + SCALE: grid.scale.reshape(shape),
            stem + ZERO_POINT: grid.zero_point.reshape(shape),
        }
        kept += [numpy_helper.from_array(part, name) for name, part in parts.items()]
        node = helper.make_node("DequantizeLinear", list(parts), [stem], name=f"{stem}_dequantize")
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        nodes.append(node)
    rest = list(copy.graph.node)
    del copy.graph.node[:]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    copy.graph.node.extend([*nodes, *rest])
    # An initialiser that was an input, too, is none any more.
    gone = {node.output[0] for node in nodes}
    inputs = [value for value in copy.graph.input if value.name not in gone]
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    return copy


def symmetric_grid(weight: Any, axis: int | None) -> Grid:
    """Signed 8 bits around zero, the largest weight of each channel at the end of the range."""
    others = tuple(k for k in range(weight.ndim) if k != axis)
    largest = np.abs(weight).max() if axis is None else np.abs(weight).max(axis=others)
    largest = np.atleast_1d(largest).astype(np.float32)
    scale = np.where(largest > 0, largest / _GREATEST, 1).astype(np.float32)
    return Grid(scale, np.zeros(scale.shape, np.int8), axis, -_GREATEST, _GREATEST)


def _weights_of(node: Any) -> Iterator[tuple[str, int | None]]:
    """The weights that a node takes, and the axis of their output channels."""
    names = list(node.input)
    match node.op_type:
        case "Conv":
            yield names[1], 0
        case "Gemm":
            is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
            yield names[1], 0 if is_transposed else 1
        case "MatMul":
            yield names[1], 1
        case "GRU" | "LSTM" | "RNN":
            yield names[1], 1
            yield names[2], 1
        case "Gather":
            yield names[0], 0


def _static(
    model: Path, out: Path, attempt: Attempt, preset: Preset, calibration: Items | None
) -> None:
    if calibration is None:
        raise ReleaseBuildError("static quantisation needs calibration inputs")
    quantize_static(
        model,
        out,
        _Reader(model, calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=_STATIC_OPS,
        per_channel=True,
        reduce_range=preset.is_narrow,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(attempt.excluded),
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"QDQOpTypePerChannelSupportToAxis": {"Conv": 0, "Gemm": 0, "MatMul": 1}},
    )
    made = onnx.load(out)
    leave_outputs_float(made)
    onnx.save(made, out)


def leave_outputs_float(model: Any) -> None:
    """Take away the last QuantizeLinear and DequantizeLinear: an answer is no step of an 8-bit scale."""
    producers = {name: node for node in model.graph.node for name in node.output}
    users = [name for node in model.graph.node for name in node.input]
    for output in model.graph.output:
        last = producers.get(output.name)
        before = None if last is None else producers.get(last.input[0])
        if (
            last is None
            or before is None
            or (before.op_type, last.op_type) != ("QuantizeLinear", "DequantizeLinear")
            or users.count(last.input[0]) != 1
            or users.count(before.input[0]) != 1
            or output.name in users
            or before.input[0] not in producers
        ):
            continue
        maker = producers[before.input[0]]
        maker.output[list(maker.output).index(before.input[0])] = output.name
        model.graph.node.remove(last)
        model.graph.node.remove(before)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)


class _Reader(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    """The calibration items, some at a time."""

    def __init__(self, model: Path, items: Items) -> None:
        self._batches = batches(items, model_inputs(load(model)))

    def get_next(self) -> Any:
        return next(self._batches, None)
