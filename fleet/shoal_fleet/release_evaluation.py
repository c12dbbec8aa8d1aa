"""`python -m shoal_fleet.release_evaluation SET MODEL...`: what share of the items does each model answer right?

Runs in a child of the controller with limited memory, because the files are not trusted. Prints one JSON object:
{"ok": true, "items": n, "accuracies": [...]} or {"ok": false, "reason": "one line"}.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from shoal_fleet.errors import ReleaseBuildError, ReleaseError
from shoal_fleet.release_build.calibration import Items, read_items
from shoal_fleet.release_check import MEMORY_BYTES

BATCH: Final = 64


def main(argv: list[str]) -> int:
    """Evaluate the models on the set, in this order."""
    if len(argv) < 3:  # noqa: PLR2004 - program, set, model
        sys.stderr.write("usage: python -m shoal_fleet.release_evaluation SET MODEL...\n")
        return 2
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        items = read_labelled(Path(argv[1]))
        accuracies = [accuracy(Path(path), items) for path in argv[2:]]
        verdict: dict[str, Any] = {"ok": True, "items": len(items), "accuracies": accuracies}
    except ReleaseError as exc:
        verdict = {"ok": False, "reason": str(exc)}
    sys.stdout.write(json.dumps(verdict) + "\n")
    return 0


def read_labelled(path: Path) -> Items:
    """The items of an evaluation set, as models take them, with labels.

    Raises:
        ReleaseError: it is none.
    """
    try:
        items = read_items(path)
    except ReleaseBuildError as exc:
        raise ReleaseError(f"evaluation set {str(exc).removeprefix(f'{path}: ')}") from exc
    if items.labels is None:
        raise ReleaseError("evaluation set: has no array labels: what is right is not known")
    return items


def accuracy(path: Path, items: Items) -> float:
    """The share of items whose largest answer is the labelled class.

    Raises:
        ReleaseError: the model does not load, or does not take the items.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        # From memory: a model in memory cannot name other files of this machine.
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as exc:  # ONNX Runtime raises anything
        raise ReleaseError(f"{path.name}: is not a model that loads: {_one_line(exc)}") from exc
    inputs = session.get_inputs()
    if missing := sorted({each.name for each in inputs} - items.inputs.keys()):
        raise ReleaseError(f"evaluation set: has no array {missing[0]!r}, which {path.name} takes")
    fixed = inputs[0].shape[0] if inputs[0].shape else None
    size = fixed if isinstance(fixed, int) and fixed > 0 else BATCH
    if size == fixed and len(items) % size:
        raise ReleaseError(f"{path.name}: takes {size} items at once, not {len(items)}")
    right = 0
    for start in range(0, len(items), size):
        some = items.take(slice(start, start + size))
        feed = {
            each.name: some.inputs[each.name].astype(_DTYPES.get(each.type, np.float32))
            for each in inputs
        }
        try:
            answers = np.asarray(session.run(None, feed)[0])
        except Exception as exc:  # ONNX Runtime raises anything
            raise ReleaseError(
                f"{path.name}: fails on the evaluation set: {_one_line(exc)}"
            ) from exc
        if len(answers) != len(some):
            raise ReleaseError(f"{path.name}: gives {len(answers)} answers for {len(some)} items")
        rows = answers.reshape(len(answers), -1)
        # An answer that is no number is wrong.
        right += int(((rows.argmax(axis=1) == some.labels) & np.isfinite(rows).all(axis=1)).sum())
    return right / len(items)


_DTYPES: Final[dict[str, Any]] = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}


def _one_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv))
