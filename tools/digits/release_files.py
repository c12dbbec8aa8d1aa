"""A release directory: release.toml, model.onnx and golden.npz, the same bytes for the same content.

Writes files and measures the INT8 model that goes into them; training and quantising stand elsewhere.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from network import CLASSES, SIDE, Floats, Ints
from onnx_export import INPUT, OUTPUT

from shoal_fleet.digits import MAX_LEVEL, Scan, pack_u5

# Two CPUs may round an 8-bit activation to different sides; one such step moves a logit by less.
TOLERANCE = 0.05
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def pictures(scans: list[Scan]) -> Floats:
    """The scans as the model takes them: [N, 1, 8, 8], 0..1."""
    levels = np.array([scan.levels for scan in scans], dtype=np.float64)
    return levels.reshape(-1, 1, SIDE, SIDE) / MAX_LEVEL


def labels(scans: list[Scan]) -> Ints:
    """The digits that the scans show: [N]."""
    return np.array([scan.label for scan in scans], dtype=np.int64)


def answers(model: bytes, scans: list[Scan]) -> np.ndarray:
    """What ONNX Runtime makes of the scans: logits float32 [N, 10]."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = {INPUT: pictures(scans).astype(np.float32)}
    return np.asarray(session.run([OUTPUT], given)[0])


def accuracy(model: bytes, scans: list[Scan]) -> float:
    """The share of scans whose digit the model names."""
    return float((answers(model, scans).argmax(axis=1) == labels(scans)).mean())


def write_release(
    folder: Path,
    model: onnx.ModelProto,
    *,
    version: str,
    description: str,
    golden: list[Scan],
    held_out: list[Scan],
) -> float:
    """Write the three files into `folder`; returns the accuracy on `held_out`."""
    data = model.SerializeToString(deterministic=True)
    measured = accuracy(data, held_out)
    inputs = np.array([list(pack_u5(scan.levels)) for scan in golden], dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(data)
    (folder / "golden.npz").write_bytes(npz(inputs=inputs, outputs=answers(data, golden)))
    text = release_toml(
        version=version,
        description=description,
        measured=measured,
        evaluated_on=f"UCI optical digits, rows {held_out[0].row}-{held_out[-1].row}",
    )
    (folder / "release.toml").write_text(text, encoding="utf-8", newline="\n")
    return measured


def npz(**arrays: np.ndarray) -> bytes:
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


def release_toml(*, version: str, description: str, measured: float, evaluated_on: str) -> str:
    """The release's specification, as `shoal release add` reads it."""
    return f"""\
name = "digits"
version = {json.dumps(version)}
description = {json.dumps(description)}

[model]
file = "model.onnx"

[input]
name = {json.dumps(INPUT)}
dtype = "float32"
shape = [1, {SIDE}, {SIDE}]
encoding = "u5"
scale = {1 / MAX_LEVEL}
units = "grey level 0..{MAX_LEVEL}"

[output]
name = {json.dumps(OUTPUT)}
dtype = "float32"
shape = [{CLASSES}]
decode = "softmax-argmax"
labels = {json.dumps([str(digit) for digit in range(CLASSES)])}
units = "digit"

[golden]
file = "golden.npz"
tolerance = {TOLERANCE}

[quality]
metric = "accuracy"
value = {measured:.4f}
evaluated_on = {json.dumps(evaluated_on)}
"""
