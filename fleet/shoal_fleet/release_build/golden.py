"""Golden inputs of a built release: items as devices send them, and what the model must answer.

Runs the finished model with the controller's own ONNX Runtime.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from shoal_contract.release import InputTable, OutputTable
from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_check import U5_BITS, decode_items

GOLDEN_ITEMS: Final = 16
_POOL: Final = 256
_ZIP_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_HIGHEST: Final = {"u8": 255, "u5": 31}
# Twice what this machine's own two ways to compute differ by, and at least this share of the answers' range.
_SAFETY: Final = 2.0
_LEAST_SHARE: Final = 0.002


@dataclass(frozen=True, slots=True)
class Golden:
    """What goes into the release: the .npz, and how far a board's answers may be off."""

    content: bytes
    tolerance: float
    items: int


def encode_items(table: InputTable, values: NDArray[Any]) -> NDArray[np.uint8]:
    """The inverse of `release_check.decode_items`: model inputs [n, *shape] as uint8 [n, item_bytes].

    Raises:
        ReleaseBuildError: devices cannot send these values in the release's encoding.
    """
    if values.shape[1:] != tuple(table.shape):
        raise ReleaseBuildError(
            f"the items have shape {list(values.shape[1:])}, [input] says {list(table.shape)}"
        )
    sent = (values.astype(np.float64) - table.offset) / table.scale
    flat = sent.reshape(len(values), -1)
    if table.encoding == "f32":
        return np.ascontiguousarray(flat.astype("<f4")).view(np.uint8)
    levels = np.rint(flat)
    if levels.min() < 0 or levels.max() > _HIGHEST[table.encoding]:
        raise ReleaseBuildError(
            f"devices send 0 to {_HIGHEST[table.encoding]} ({table.encoding}); the items would be"
            f" {flat.min():.4g} to {flat.max():.4g}: look at scale and offset of [input]"
        )
    whole = levels.astype(np.uint8)
    if table.encoding == "u8":
        return whole
    bits = np.unpackbits(whole[:, :, None], axis=2)[:, :, -U5_BITS:]
    return np.packbits(bits.reshape(len(values), -1), axis=1)


def golden_of(model: Path, given: InputTable, wanted: OutputTable, values: NDArray[Any]) -> Golden:
    """Golden inputs from real ones, chosen so that every board names the same class.

    Raises:
        ReleaseBuildError: the model is not as the release says, or every answer is a narrow one.
    """
    inputs = encode_items(given, values[:_POOL])
    items = decode_items(given, inputs)
    level = onnxruntime.GraphOptimizationLevel
    answers = _answers(model, given, wanted, items, level.ORT_ENABLE_ALL)
    plain = _answers(model, given, wanted, items, level.ORT_DISABLE_ALL)
    spread = float(np.ptp(answers))
    tolerance = max(_SAFETY * float(np.abs(answers - plain).max()), _LEAST_SHARE * spread)
    # Two digits: it is an estimate.
    tolerance = float(f"{tolerance:.1e}") or 1e-6
    rows = _rows(answers.reshape(len(answers), -1), margin=2 * tolerance)
    if not rows:
        raise ReleaseBuildError(
            f"no item has an answer that is clear beyond the tolerance {tolerance:g}"
        )
    return Golden(_npz(inputs=inputs[rows], outputs=answers[rows]), tolerance, len(rows))


def _rows(answers: NDArray[np.float32], *, margin: float) -> Sequence[int]:
    """One of each class first, then the next ones; none whose best two classes are nearly alike."""
    if answers.shape[1] == 1:
        return list(range(min(GOLDEN_ITEMS, len(answers))))
    best_two = np.sort(answers, axis=1)[:, -2:]
    clear = np.flatnonzero(best_two[:, 1] - best_two[:, 0] > margin).tolist()
    firsts: dict[int, int] = {}
    for row in clear:
        firsts.setdefault(int(answers[row].argmax()), row)
    rest = [row for row in clear if row not in firsts.values()]
    return sorted(firsts.values())[:GOLDEN_ITEMS] + rest[: max(0, GOLDEN_ITEMS - len(firsts))]


def _answers(
    model: Path, given: InputTable, wanted: OutputTable, items: NDArray[np.float32], level: Any
) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        fixed = session.get_inputs()[0].shape[0]
        batch = fixed if isinstance(fixed, int) else len(items)
        usable = len(items) // batch * batch
        found = [
            session.run([wanted.name], {given.name: items[start : start + batch]})[0]
            for start in range(0, usable, batch)
        ]
    except Exception as exc:  # ONNX Runtime raises anything
        lines = str(exc).strip().splitlines() or [type(exc).__name__]
        raise ReleaseBuildError(f"the model is not as the release says: {lines[0]}") from exc
    answers = np.concatenate(found) if found else np.empty((0,), np.float32)
    if answers.dtype != np.float32 or answers.shape[1:] != tuple(wanted.shape):
        raise ReleaseBuildError(
            f"the model answers {answers.dtype} {list(answers.shape[1:])},"
            f" [output] says float32 {list(wanted.shape)}"
        )
    return answers


def _npz(**arrays: NDArray[Any]) -> bytes:
    """What `numpy.savez` writes, without the time of day in it."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            one = io.BytesIO()
            np.lib.format.write_array(one, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=_ZIP_EPOCH)
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, one.getvalue())
    return whole.getvalue()
