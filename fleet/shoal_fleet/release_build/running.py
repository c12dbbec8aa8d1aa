"""Models run on items: what they answer, and what that costs. Worker only.

An answer is one row of numbers an item: the first output; of an output for each token the mean over the
tokens (those of `attention_mask`), as sentence embeddings are made.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build.calibration import Items

BATCH: Final = 16
MASK: Final = "attention_mask"
_PER_TOKEN: Final = 3


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a model: its numpy type, and its fixed batch size if it has one."""

    dtype: np.dtype[Any]
    batch: int | None


@dataclass(frozen=True, slots=True)
class Run:
    """Answers float32 [n, values], and CPU seconds an item."""

    answers: NDArray[np.float32]
    item_cpu_s: float


def model_inputs(model: Any) -> dict[str, Input]:
    """The inputs that are no initialisers."""
    constant = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        if value.name not in constant:
            tensor = value.type.tensor_type
            dims = tensor.shape.dim
            fixed = dims[0].dim_value if len(dims) and dims[0].HasField("dim_value") else None
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            found[value.name] = Input(np.dtype(dtype), fixed)
    return found


def batches(
    items: Items, inputs: Mapping[str, Input], *, size: int = BATCH
) -> Iterator[dict[str, Any]]:
    """The items as a model takes them, some at a time; a rest that a fixed batch leaves is dropped.

    Raises:
        ReleaseBuildError: the items lack an input.
    """
    missing = sorted(inputs.keys() - items.inputs.keys())
    if missing:
        have = ", ".join(items.inputs)
        raise ReleaseBuildError(f"the items have no array {missing[0]!r} (they have: {have})")
    fixed = {each.batch for each in inputs.values() if each.batch is not None}
    size = min(fixed, default=size)
    count = len(items) // size * size if fixed else len(items)
    if count == 0:
        raise ReleaseBuildError(f"the model takes {size} items at once; there are {len(items)}")
    for start in range(0, count, size):
        yield {
            name: np.ascontiguousarray(items.inputs[name][start : start + size], dtype=each.dtype)
            for name, each in inputs.items()
        }


def run(
    model: Path, items: Items, *, progress: Callable[[int, int], None] = lambda _done, _of: None
) -> Run:
    """What the model answers, with one thread.

    Raises:
        ReleaseBuildError: it does not load or fails on the items.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime raises anything
        raise ReleaseBuildError(f"{model.name} does not load: {_one_line(exc)}") from exc
    inputs = model_inputs(onnx.load(model, load_external_data=False))
    output = session.get_outputs()[0].name
    found, costs = [], []
    for batch in batches(items, inputs):
        started = time.process_time()
        try:
            answer = session.run([output], batch)[0]
        except Exception as exc:  # ONNX Runtime raises anything
            raise ReleaseBuildError(f"{model.name} fails on the items: {_one_line(exc)}") from exc
        costs.append((time.process_time() - started) / len(answer))
        found.append(_row_an_item(np.asarray(answer, dtype=np.float32), batch.get(MASK)))
        progress(sum(map(len, found)), len(items))
    return Run(np.concatenate(found), float(np.median(costs)))


def _row_an_item(answer: NDArray[np.float32], mask: NDArray[Any] | None) -> NDArray[np.float32]:
    if answer.ndim == _PER_TOKEN:
        weights = np.ones(answer.shape[:2]) if mask is None else mask.astype(np.float64)
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1)
        return np.asarray(np.einsum("ntd,nt->nd", answer, weights), dtype=np.float32)
    return answer.reshape(len(answer), -1)


def _one_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__
