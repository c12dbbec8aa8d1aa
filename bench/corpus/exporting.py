"""The corpus' float graphs as INT8 ONNX files, by ONNX Runtime's own tools in their documented order.

Pre-processing (which folds batch normalisation), then static QDQ with a scale a channel for what is
calibrated, dynamic INT8 with a scale a channel for transformers. The GRU cell itself stays float32, as
ONNX Runtime has no INT8 one.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

PRODUCER = "corpus"


def quantised(
    graph: onnx.ModelProto, calibration: NDArray[np.float32] | None, *, producer: str = PRODUCER
) -> bytes:
    """The INT8 file of a float graph: static with inputs [N, ...] to calibrate on, else dynamic."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="shoal-corpus-") as folder:
        before, folded, after = (Path(folder) / f"{name}.onnx" for name in ("float", "pre", "int8"))
        onnx.save(graph, before)
        if calibration is None:
            quantize_dynamic(before, after, per_channel=True, weight_type=QuantType.QInt8)
        else:
            quant_pre_process(before, folded, skip_symbolic_shape=True)
            quantize_static(
                folded,
                after,
                _Inputs(calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"QDQOpTypePerChannelSupportToAxis": {"Gemm": 0, "Conv": 0}},
            )
        made = onnx.load(after)
    made.producer_name = producer
    return bytes(made.SerializeToString(deterministic=True))


def renamed(file: bytes) -> bytes:
    """The same model with every node and value called something else."""
    model = onnx.load_from_string(file)
    names = {value.name for value in (*model.graph.input, *model.graph.output)}

    def new(name: str) -> str:
        return name if not name or name in names else f"model/{name.replace('.', '/')}:0"

    for tensor in model.graph.initializer:
        tensor.name = new(tensor.name)
    for node in model.graph.node:
        node.name = new(node.name)
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    del model.graph.value_info[:]
    return bytes(model.SerializeToString(deterministic=True))


def re_exported(file: bytes) -> bytes:
    """The same model by another exporter: producer, versions, order and storage of the initialisers."""
    model = onnx.load_from_string(file)
    model.producer_name, model.producer_version, model.ir_version = "another exporter", "2.9", 9
    tensors = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
        node.doc_string = f"line {number}"
    return bytes(model.SerializeToString(deterministic=True))


class _Inputs(CalibrationDataReader):
    """The calibration inputs in one batch."""

    def __init__(self, inputs: NDArray[np.float32]) -> None:
        self._batches: Iterator[NDArray[np.float32]] = iter([inputs])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}
