"""all-MiniLM-L6-v2 for the benchmarks, where MINILM=1 asks for it: floats, INT8, and a release of the INT8.

The environment that has torch (MINILM=1: .venv-quantize; else the path of another one) exports it, in infer_minilm.py.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

import release_building
import shoal_contract
import shoal_fleet
from measure import BenchError
from shoal_fleet.release_build.builder import Request

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-quantize"
TIMEOUT_S = 600.0
SENTENCES = 160
TOKENS, WIDTH = 32, 384
INPUTS = "inputs.npz"
_GOLDEN = 4


@dataclass(frozen=True, slots=True)
class MiniLm:
    """Files. `inputs`: sentences that nothing was made with, int64 [n, TOKENS] by input name; `release`: the INT8's directory."""

    floats: Path
    int8: Path
    inputs: Path
    release: Path
    way: str


def wanted() -> str:
    """What MINILM says; empty: it is not measured."""
    return os.environ.get("MINILM", "")


def make(folder: Path, asked: str, say: Callable[[str], None]) -> MiniLm:
    """Make it in `folder`, or find it there: several areas use it. Raises BenchError."""
    folder = folder / "minilm"
    floats, release, way = folder / "float/model.onnx", folder / "int8", folder / "way"
    if not way.exists():
        python = (ENVIRONMENT if asked == "1" else Path(asked)) / "bin/python"
        say("exporting MiniLM")
        folder.mkdir()
        _export(folder, python)
        way.write_text(_make_small(folder, floats, release, say), "utf-8")
    return MiniLm(floats, release / "model.onnx", release / INPUTS, release, way.read_text("utf-8"))


def _make_small(folder: Path, floats: Path, release: Path, say: Callable[[str], None]) -> str:
    """Build the INT8, and make a release of it; the way that the recipe took."""
    with np.load(folder / INPUTS) as arrays:
        tokens = {name: arrays[name] for name in arrays.files}
    half = len(tokens["input_ids"]) // 2
    calibration = folder / "calibration.npz"
    np.savez(calibration, **{name: rows[:half] for name, rows in tokens.items()})
    request = Request(
        source=floats,
        out=release,
        preset=release_building.preset().name,
        kind="embedding",
        calibration=calibration,
    )
    way = release_building.build(request, folder, say)
    held_out = {name: rows[half:] for name, rows in tokens.items()}
    np.savez(release / INPUTS, **held_out)
    _write_release(release, held_out)
    return way


def _export(folder: Path, python: Path) -> None:
    sentences = folder / "sentences.txt"
    sentences.write_text("\n".join(_sentences()), "utf-8")
    script = Path(__file__).with_name("infer_minilm.py")
    paths = {Path(package.__file__).parents[1] for package in (shoal_fleet, shoal_contract)}
    try:
        ended = subprocess.run(
            [python, script, folder, sentences, *paths],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BenchError(f"MiniLM was not exported: {exc}") from exc
    if ended.returncode:
        last = ended.stderr.strip().splitlines() or ["no word"]
        raise BenchError(f"MiniLM was not exported: {last[-1]}")


def _sentences() -> list[str]:
    """Of our own pages: there is no other text that is sure to be there."""
    text = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    prose = [line for line in text.splitlines() if re.match(r"[A-Z][a-z]", line) and len(line) > 60]
    step = max(1, len(prose) // SENTENCES)
    return prose[::step][:SENTENCES]


def _write_release(directory: Path, tokens: dict[str, np.ndarray]) -> None:
    """What makes a release of the model, and that its inputs are of one length here."""
    session = ort.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    output = session.get_outputs()[0].name
    golden = {name: rows[:_GOLDEN] for name, rows in tokens.items()}
    (states,) = session.run([output], golden)
    inputs = "".join(
        f'[[inputs]]\nname = "{name}"\ndtype = "int64"\nshape = [{TOKENS}]\n' for name in tokens
    )
    text = f"""\
name = "minilm"
version = "1.0.0"
[model]
file = "model.onnx"
{inputs}[[outputs]]
name = "{output}"
dtype = "float32"
shape = [{TOKENS}, {WIDTH}]
[golden]
file = "golden.npz"
tolerance = 0.2
[quality]
metric = "none"
value = 0.0
evaluated_on = "see area infer-int8"
"""
    (directory / "release.toml").write_text(text, encoding="utf-8")
    arrays = {f"inputs.{name}": rows for name, rows in golden.items()}
    np.savez(directory / "golden.npz", **arrays, **{f"outputs.{output}": states})
