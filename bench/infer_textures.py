"""A classifier that was trained in a second: the random CNN of area `infer`, its last layer fitted to ten textures.

With all weights random one class wins for every input, and what INT8 does to the answers could not be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import infer_models

ABOUT = "the CNN of area infer, last layer fitted to ten textures (waves at ten angles, in noise)"
CLASSES = infer_models.OUTPUTS
_SIDE = 32
_FITTED_ON = 2000


def textures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures float32 [n, 1, 32, 32], and which texture each is of."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, count)
    angle = (labels * np.pi / CLASSES)[:, None, None]
    down, right = np.mgrid[:_SIDE, :_SIDE][:, None]
    phase = draw.uniform(0, 2 * np.pi, (count, 1, 1))
    waves = np.sin(1.1 * (np.cos(angle) * right + np.sin(angle) * down) + phase)
    pictures = waves + draw.normal(0, 0.5, (count, _SIDE, _SIDE))
    return pictures[:, None].astype(np.float32), labels


def write(path: Path) -> None:
    """Write the fitted model there; what stands beside it is of the random one."""
    infer_models.write(path.parent, "cnn")
    model = onnx.load(path)
    last = model.graph.node[-1]
    features = _features(model, last.input[0])
    pictures, labels = textures(_FITTED_ON, seed=1)
    wanted = np.eye(CLASSES)[labels]
    weights = np.linalg.lstsq(features(pictures), wanted, rcond=None)[0]
    for tensor in model.graph.initializer:
        if tensor.name == last.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float32), tensor.name))
    onnx.save(model, path)


def _features(model: onnx.ModelProto, name: str) -> Callable[[np.ndarray], np.ndarray]:
    inner = onnx.ModelProto()
    inner.CopyFrom(model)
    del inner.graph.output[:]
    inner.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(inner.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"x": pictures})[0]
