"""How much noise quantising each node brings, by ONNX Runtime's QDQ debugging. Worker only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, qdq_loss_debug

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build.calibration import Items
from shoal_fleet.release_build.exclusion import noise_share, rounding_sqnr_db
from shoal_fleet.release_build.float_source import load
from shoal_fleet.release_build.running import batches, model_inputs

# Activations of the whole model are held in memory: a few items tell which node is noisy.
ITEMS: Final = 16
_QUIET_DB: Final = 200.0


def noise_of_nodes(
    float_model: Path, qdq_model: Path, items: Items, nodes: Mapping[str, int], scratch: Path
) -> dict[str, float]:
    """Noise over signal by node, of the nodes with weights.

    `qdq_model` is the static model, or one with quantised weights only (for dynamic quantisation): an
    input that it does not quantise counts as rounded to 8 bits over its range.

    Raises:
        ReleaseBuildError: ONNX Runtime's debugging fails on the models.
    """
    few = items.take(slice(ITEMS))
    try:
        weights = qdq_loss_debug.compute_weight_error(
            qdq_loss_debug.create_weight_matching(str(float_model), str(qdq_model))
        )
        plain = _activations(float_model, few, scratch / "float-augmented.onnx")
        matched = qdq_loss_debug.create_activation_matching(
            _activations(qdq_model, few, scratch / "qdq-augmented.onnx"), plain
        )
        inputs = qdq_loss_debug.compute_activation_error(matched)
    except Exception as exc:  # a foreign tool raises anything
        first = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise ReleaseBuildError(f"the noisiest nodes cannot be found: {first}") from exc
    found = {}
    for node in load(float_model).graph.node:
        if node.name in nodes:
            value, weight = node.input[0], node.input[1]
            error = inputs.get(value, {}).get("qdq_err")
            if error is None:
                parts = [np.ravel(part) for part in plain.get(value, ())]
                error = rounding_sqnr_db(np.concatenate(parts)) if parts else _QUIET_DB
            found[node.name] = noise_share(
                _decibels(weights.get(weight, _QUIET_DB)), _decibels(error)
            )
    return found


def _decibels(value: Any) -> float:
    """ONNX Runtime divides by zero where nothing was lost."""
    number = float(value)
    return number if np.isfinite(number) else _QUIET_DB


def _activations(model: Path, items: Items, augmented: Path) -> dict[str, list[Any]]:
    qdq_loss_debug.modify_model_output_intermediate_tensors(str(model), str(augmented))
    found: dict[str, list[Any]] = qdq_loss_debug.collect_activations(
        str(augmented), _Reader(model, items)
    )
    return found


class _Reader(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    """The items, one batch after the other."""

    def __init__(self, model: Path, items: Items) -> None:
        self._batches = batches(items, model_inputs(load(model)))

    def get_next(self) -> Any:
        return next(self._batches, None)
