"""Area `infer-int8`: what `shoal release build` makes of a model for this processor, beside the floats it was made of.

A CNN that is fitted on the spot; with MINILM=1 (or the path of an environment that has torch) all-MiniLM-L6-v2, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

import exported_minilm
import infer_textures
import processes
import release_building
from measure import Column, Figure, Goal, Options, Rounds, Row, Table
from shoal_fleet.release_build.builder import Request
from shoal_fleet.release_build.presets import Preset

TIMEOUT_S = 600.0
EVALUATED = 2000
CALIBRATED = 512
_BATCH = 32
COLUMNS = (
    Column("cpu_us", "CPU us/item", 1),
    Column("rate", "items/s"),
    Column("mib", "MiB", 2, spread=False),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A model in floats and in INT8, and inputs that neither was made with."""

    name: str
    floats: Path
    int8: Path
    inputs: Path
    way: str
    likeness: str
    size_goal: float
    cpu_goal: float
    likeness_goal: float


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Build each model, and measure it beside its floats in shuffled rounds."""
    preset = release_building.preset()
    skipped: tuple[str, ...] = ()
    pairs = [_cnn(options.folder / "int8-cnn", preset, say)]
    if wanted := exported_minilm.wanted():
        made = exported_minilm.make(options.folder, wanted, say)
        pairs.append(
            Pair(
                "minilm", made.floats, made.int8, made.inputs, made.way, "cosine", 0.27, 0.60, 0.99
            )
        )
    else:
        skipped = ("MiniLM: MINILM=1 measures it, and needs torch once to export it",)
    seconds = 0.5 if options.is_quick else 3.0
    rounds = Rounds(options)
    subjects: dict[str, Callable[[], Mapping[str, float]]] = {
        f"{pair.name}: {kind}": partial(_sample, model, pair.inputs, seconds)
        for pair in pairs
        for kind, model in (("floats", pair.floats), ("INT8", pair.int8))
    }
    rounds.run(subjects, say=say)
    return Table(
        title="infer-int8: what `shoal release build` makes, beside its floats",
        columns=COLUMNS,
        rows=tuple(Row(name, "INT8" in name, rounds.figures(name)) for name in subjects),
        goals=tuple(goal for pair in pairs for goal in _goals(pair, rounds)),
        settings=(
            f"cnn: {infer_textures.ABOUT}; agreement on {EVALUATED} textures that nothing was made with",
            *(f"{pair.name}: made the way {pair.way}" for pair in pairs),
            f"preset {preset.name}: {preset.about}",
            "bare session.run with the engine's settings, one item at a time",
        ),
        skipped=skipped,
    )


def _goals(pair: Pair, rounds: Rounds) -> list[Goal]:
    ours, peer = f"{pair.name}: INT8", f"{pair.name}: floats"
    likeness = _cosine(pair) if pair.likeness == "cosine" else _agreement(pair)
    return [
        Goal(
            f"{pair.name}: size, INT8 / floats",
            "x",
            rounds.ratios("mib", ours, peer),
            pair.size_goal,
            decimals=3,
        ),
        Goal(
            f"{pair.name}: CPU an item, INT8 / floats",
            "x",
            rounds.ratios("cpu_us", ours, peer),
            pair.cpu_goal,
            decimals=2,
        ),
        Goal(
            f"{pair.name}: {pair.likeness}",
            "",
            likeness,
            pair.likeness_goal,
            is_minimum=True,
            decimals=4,
        ),
    ]


def _cnn(folder: Path, preset: Preset, say: Callable[[str], None]) -> Pair:
    say("fitting the CNN")
    floats = folder / "float" / "model.onnx"
    infer_textures.write(floats)
    calibration, inputs = folder / "calibration.npz", folder / "inputs.npz"
    pictures, labels = infer_textures.textures(CALIBRATED, seed=2)
    np.savez(calibration, x=pictures, labels=labels)
    pictures, _ = infer_textures.textures(EVALUATED, seed=3)
    np.savez(inputs, x=pictures)
    request = Request(
        source=floats, out=folder / "int8", preset=preset.name, calibration=calibration
    )
    way = release_building.build(request, folder, say)
    return Pair(
        "cnn", floats, folder / "int8/model.onnx", inputs, way, "agreement", 0.32, 0.75, 0.98
    )


def _sample(model: Path, inputs: Path, seconds: float) -> Mapping[str, float]:
    script = Path(__file__).with_name("infer_int8_child.py")
    took = processes.asked(
        [script, model, inputs, f"{seconds:g}"], what=str(model), timeout_s=TIMEOUT_S
    )
    return took | {"mib": model.stat().st_size / (1 << 20)}


def _outputs(model: Path, inputs: Path) -> list[np.ndarray]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(inputs) as arrays:
        rows = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(rows.values())))
    return [
        session.run(None, {name: rows[name][start : start + _BATCH] for name in rows})[0]
        for start in range(0, count, _BATCH)
    ]


def _agreement(pair: Pair) -> Figure:
    floats, int8 = (
        np.concatenate(_outputs(model, pair.inputs)) for model in (pair.floats, pair.int8)
    )
    share = float((floats.argmax(axis=1) == int8.argmax(axis=1)).mean())
    return Figure(share, share, share)


def _cosine(pair: Pair) -> Figure:
    """Between mean-pooled embeddings: median, lowest and highest of all sentences."""
    with np.load(pair.inputs) as arrays:
        mask = arrays["attention_mask"][..., None]
    pooled = [
        (np.concatenate(_outputs(model, pair.inputs)) * mask).sum(axis=1)
        for model in (pair.floats, pair.int8)
    ]
    floats, int8 = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in pooled)
    return Figure.of([float(value) for value in (floats * int8).sum(axis=1)])
