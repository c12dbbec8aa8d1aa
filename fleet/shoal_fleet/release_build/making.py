"""The recipe carried out: a float model in, a small one out, with everything that was tried. Worker only."""

import contextlib
import importlib.metadata
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build import float_source, quantisers
from shoal_fleet.release_build.calibration import Items, read_items, split
from shoal_fleet.release_build.exclusion import worst_first
from shoal_fleet.release_build.guard import Judgement, Limits
from shoal_fleet.release_build.job import ANSWERS_FILE, CARRY_FILE, MODEL_FILE, Job
from shoal_fleet.release_build.node_noise import noise_of_nodes
from shoal_fleet.release_build.presets import PRESETS
from shoal_fleet.release_build.recipe import (
    Attempt,
    Facts,
    Way,
    first_attempt,
    further_attempts,
)
from shoal_fleet.release_build.rescale import Taken, take_smallest_update
from shoal_fleet.release_build.running import Run
from shoal_fleet.release_build.trial import Progress, Trial

_VERSIONED: Final = (
    *("onnx", "onnxruntime", "numpy", "torch", "optimum", "optimum-onnx", "transformers"),
)


@dataclass(frozen=True, slots=True)
class _Tried:
    """An attempt with its model and what came of it."""

    attempt: Attempt
    model: Path
    judgement: Judgement
    run: Run

    def facts(self) -> dict[str, Any]:
        return {
            "way": self.attempt.way.value,
            "excluded": list(self.attempt.excluded),
            "model_bytes": self.model.stat().st_size,
            "item_cpu_s": self.run.item_cpu_s,
            "figures": self.judgement.figures,
            "failures": list(self.judgement.failures),
        }


def build(job: Job, progress: Progress) -> dict[str, Any]:
    """Make the model small; what was tried, what came of it, and which way was taken.

    Raises:
        ReleaseBuildError: the source, the items or the old release are not fit for it.
    """
    calibration, evaluation = _items(job)
    with tempfile.TemporaryDirectory(prefix="build-", dir=job.out) as folder:
        scratch = Path(folder)
        progress("reading the model", 0, 0)
        source = float_source.float_model(
            Path(job.source), _new(scratch / "source"), task=job.task, example=calibration
        )
        trial = Trial.of_float(
            source,
            evaluation,
            kind="embedding" if job.kind == "embedding" else "classes",
            limits=Limits(**job.limits),
            progress=progress,
        )
        return _Making(job, trial, source, calibration, scratch).result()


class _Making:
    def __init__(
        self, job: Job, trial: Trial, source: Path, calibration: Items | None, scratch: Path
    ) -> None:
        self._job, self._trial, self._scratch = job, trial, scratch
        self._source, self._calibration = source, calibration
        self._preset = PRESETS[job.preset]
        self._count = 0

    def result(self) -> dict[str, Any]:
        items = 0 if self._calibration is None else len(self._calibration)
        facts = float_source.facts_of(float_source.load(self._source), calibration_items=items)
        tried = self._follow_recipe(facts)
        best = tried[-1]
        taken = self._on_scales(best)
        out = Path(self._job.out)
        shutil.copyfile(taken.model, out / MODEL_FILE)
        before, after = self._trial.before, taken.run
        np.savez(out / ANSWERS_FILE, before=before.answers, after=after.answers)
        if taken.carry:
            arrays: dict[str, Any] = dict(taken.carry)
            np.savez(out / CARRY_FILE, **arrays)
        excluded = best.attempt.excluded
        return {
            "way": best.attempt.way.value,
            "excluded": list(excluded),
            "excluded_share": sum(facts.weights[name] for name in excluded)
            / max(1, sum(facts.weights.values())),
            "preset": self._preset.name,
            "kind": self._job.kind,
            "source_bytes": self._source.stat().st_size,
            "model_bytes": (out / MODEL_FILE).stat().st_size,
            "float_item_cpu_s": before.item_cpu_s,
            "convolutions": facts.convolutions,
            "calibration_items": items,
            "evaluation_items": len(after.answers),
            "labelled": self._trial.items.labels is not None,
            "attempts": [each.facts() for each in tried],
            "choices": taken.choices,
            "versions": _versions(),
        }

    def _follow_recipe(self, facts: Facts) -> list[_Tried]:
        """Every attempt up to the first that passes."""
        attempt = first_attempt(facts)
        latest = self._try(attempt)
        tried = [latest]
        if not latest.judgement.passes:
            self._trial.progress("looking for the noisiest nodes", 0, 0)
            order = self._worst_nodes(attempt, latest.model, facts)
            # The last one is the float model itself, which passes.
            for further in further_attempts(facts, attempt, order):
                latest = self._try(further)
                tried.append(latest)
                if latest.judgement.passes:
                    break
        return tried

    def _worst_nodes(self, first: Attempt, model: Path, facts: Facts) -> list[str]:
        if first.way is Way.DYNAMIC:
            # Its integer operators have no QDQ to look at: the same weights in one that has.
            whole = float_source.load(self._source, with_data=True)
            model = self._scratch / "weights.onnx"
            onnx.save(quantisers.weights_only(whole), model)
        items = self._calibration or self._trial.items
        try:
            noise = noise_of_nodes(self._source, model, items, facts.weights, self._scratch)
        except ReleaseBuildError as exc:
            # The recipe goes on without it.
            self._trial.progress(str(exc), 0, 0)
            return []
        return worst_first(noise)

    def _try(self, attempt: Attempt) -> _Tried:
        self._count += 1
        model = self._scratch / f"attempt-{self._count}.onnx"
        words = f"{attempt.way} quantisation" if attempt.way is not Way.FLOAT else "no quantisation"
        if attempt.excluded:
            words += f" without {len(attempt.excluded)} nodes"
        self._trial.progress(words, 0, 0)
        quantisers.quantise(
            self._source, model, attempt, preset=self._preset, calibration=self._calibration
        )
        judgement, run = self._trial.judged(model, words)
        return _Tried(attempt, model, judgement, run)

    def _on_scales(self, best: _Tried) -> Taken:
        if self._job.base is None or best.attempt.way is Way.FLOAT:
            return Taken(best.model, best.run, [])
        carried = self._job.carried
        return take_smallest_update(
            self._trial,
            (best.model, best.judgement, best.run),
            self._source,
            Path(self._job.base),
            is_narrow=self._preset.is_narrow and best.attempt.way is not Way.WEIGHTS_ONLY,
            taus=self._job.taus,
            carried=None if carried is None else Path(carried),
            scratch=self._scratch,
        )


def _items(job: Job) -> tuple[Items | None, Items]:
    """To calibrate with, and to judge by.

    Without a set of its own the evaluation gets a share of the calibration's. Dynamic quantisation needs
    none to calibrate with, but the guard needs some.
    """
    if job.calibration is None and job.evaluation is None:
        raise ReleaseBuildError(
            "the guard needs real inputs to judge by: give --calibration or --evaluation FILE.npz"
        )
    if job.calibration is None:
        return None, read_items(Path(job.evaluation or ""))
    calibration = read_items(Path(job.calibration))
    if job.evaluation is None:
        return split(calibration)
    return calibration, read_items(Path(job.evaluation))


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
