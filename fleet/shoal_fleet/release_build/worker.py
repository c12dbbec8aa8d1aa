"""`python -m shoal_fleet.release_build.worker JOB.json`: makes the model small, in a process of its own.

It follows the recipe until an attempt passes the guard, then chooses between fresh and old scales. stdout is one
JSON object a line: {"step": ..., "done": k, "of": n} on the way, at the end {"result": ...} or {"error": ...}.
What it imports (onnx, onnxruntime, perhaps torch and optimum) is in its environment only.
"""

import contextlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
import onnx
from numpy.typing import NDArray

import shoal_delta
from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build import choice, float_source, quantisers
from shoal_fleet.release_build.calibration import Items, read_items, split
from shoal_fleet.release_build.exclusion import worst_first
from shoal_fleet.release_build.guard import Judgement, Kind, Limits, judge
from shoal_fleet.release_build.job import ANSWERS_FILE, CARRY_FILE, MODEL_FILE, Job
from shoal_fleet.release_build.node_noise import noise_of_nodes
from shoal_fleet.release_build.old_release import OldScales, with_old_scales
from shoal_fleet.release_build.presets import PRESETS
from shoal_fleet.release_build.recipe import (
    Attempt,
    Facts,
    Way,
    first_attempt,
    further_attempts,
)
from shoal_fleet.release_build.running import Run, run

Progress = Callable[[str, int, int], None]
_VERSIONED: Final = (
    "onnx",
    "onnxruntime",
    "numpy",
    "torch",
    "optimum",
    "optimum-onnx",
    "transformers",
)
_NICENESS: Final = 10


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


def main(argv: list[str]) -> int:
    """Do the job that the only argument names; 0 when there is a result."""
    # Libraries print what they like; the lines on stdout are ours.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.nice(_NICENESS)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")

    def progress(step: str, done: int, of: int) -> None:
        _say(lines, {"step": step, "done": done, "of": of})

    try:
        result = build(Job.read(Path(argv[1])), progress)
    except ReleaseBuildError as exc:
        _say(lines, {"error": str(exc)})
        return 1
    except MemoryError:
        _say(lines, {"error": "this machine has not enough memory for the model"})
        return 1
    _say(lines, {"result": result})
    return 0


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
        return _Build(job, progress, source, calibration, evaluation, scratch).result()


class _Build:
    def __init__(
        self,
        job: Job,
        progress: Progress,
        source: Path,
        calibration: Items | None,
        evaluation: Items,
        scratch: Path,
    ) -> None:
        self._job, self._progress, self._scratch = job, progress, scratch
        self._source, self._calibration, self._evaluation = source, calibration, evaluation
        self._preset = PRESETS[job.preset]
        self._limits = Limits(**job.limits)
        self._count = 0
        self._float = self._run(source, "asking the float model")

    def result(self) -> dict[str, Any]:
        loaded = float_source.load(self._source)
        items = 0 if self._calibration is None else len(self._calibration)
        facts = float_source.facts_of(loaded, calibration_items=items)
        tried = self._follow_recipe(facts)
        best = tried[-1]
        choices, model, answers = self._choose_scales(best)
        out = Path(self._job.out)
        shutil.copyfile(model, out / MODEL_FILE)
        np.savez(out / ANSWERS_FILE, before=self._float.answers, after=answers)
        return {
            "way": best.attempt.way.value,
            "excluded": list(best.attempt.excluded),
            "excluded_share": sum(facts.weights[n] for n in best.attempt.excluded)
            / max(1, sum(facts.weights.values())),
            "preset": self._preset.name,
            "kind": self._job.kind,
            "source_bytes": self._source.stat().st_size,
            "model_bytes": (out / MODEL_FILE).stat().st_size,
            "float_item_cpu_s": self._float.item_cpu_s,
            "convolutions": facts.convolutions,
            "calibration_items": items,
            "evaluation_items": len(answers),
            "labelled": self._evaluation.labels is not None,
            "attempts": [each.facts() for each in tried],
            "choices": choices,
            "versions": _versions(),
        }

    def _follow_recipe(self, facts: Facts) -> list[_Tried]:
        """Every attempt up to the first that passes."""
        attempt = first_attempt(facts)
        latest = self._try(attempt)
        tried = [latest]
        if not latest.judgement.passes:
            self._progress("looking for the noisiest nodes", 0, 0)
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
        items = self._calibration or self._evaluation
        try:
            noise = noise_of_nodes(self._source, model, items, facts.weights, self._scratch)
        except ReleaseBuildError as exc:
            # The recipe goes on without it.
            self._progress(str(exc), 0, 0)
            return []
        return worst_first(noise)

    def _try(self, attempt: Attempt) -> _Tried:
        self._count += 1
        model = self._scratch / f"attempt-{self._count}.onnx"
        words = f"{attempt.way} quantisation" if attempt.way is not Way.FLOAT else "no quantisation"
        if attempt.excluded:
            words += f" without {len(attempt.excluded)} nodes"
        self._progress(words, 0, 0)
        quantisers.quantise(
            self._source, model, attempt, preset=self._preset, calibration=self._calibration
        )
        asked = self._run(model, f"judging {words}")
        return _Tried(attempt, model, self._judge(asked), asked)

    def _choose_scales(
        self, best: _Tried
    ) -> tuple[list[dict[str, Any]], Path, NDArray[np.float32]]:
        """What each choice costs, the model chosen, and its answers."""
        if self._job.base is None or best.attempt.way is Way.FLOAT:
            return [], best.model, best.run.answers
        base = Path(self._job.base).read_bytes()
        old, fresh = float_source.load(Path(self._job.base)), float_source.load(best.model)
        weights = float_source.float_weights(float_source.load(self._source, with_data=True))
        self._progress("update on fresh scales", 0, 0)
        size = _update_bytes(base, best.model)
        candidates = [choice.Candidate("fresh scales", 0.0, size, best.judgement)]
        models: dict[str, tuple[Path, OldScales | None, Run]] = {
            "fresh scales": (best.model, None, best.run)
        }
        for tau in (0.0, *(tau for tau in self._job.taus if tau > 0)):
            name = f"old scales, tau {tau:g}" if tau else "old scales"
            self._progress(f"update on {name}", 0, 0)
            found = with_old_scales(
                fresh,
                old,
                weights,
                is_narrow=self._preset.is_narrow and best.attempt.way is not Way.WEIGHTS_ONLY,
                tau=tau,
                carried=self._carried(),
            )
            path = self._scratch / f"old-{len(models)}.onnx"
            onnx.save(found.model, path)
            asked = self._run(path, f"judging {name}")
            kept, scales = found.channels
            size = _update_bytes(base, path)
            candidates.append(choice.Candidate(name, tau, size, self._judge(asked), kept, scales))
            models[name] = (path, found, asked)
        taken = choice.chosen(candidates)
        model, found_scales, asked = models[taken.name]
        if found_scales is not None and taken.tau > 0:
            arrays: dict[str, Any] = dict(found_scales.carry)
            np.savez(Path(self._job.out) / CARRY_FILE, **arrays)
        facts = [
            {
                "name": each.name,
                "tau": each.tau,
                "delta_bytes": each.delta_bytes,
                "model_bytes": models[each.name][0].stat().st_size,
                "kept_scales": each.kept_scales,
                "scales": each.scales,
                "figures": each.judgement.figures,
                "refused": choice.verdict(each, candidates[0]),
                "chosen": each is taken,
            }
            for each in candidates
        ]
        return facts, model, asked.answers

    def _carried(self) -> dict[str, NDArray[Any]] | None:
        if self._job.carried is None:
            return None
        try:
            with np.load(self._job.carried, allow_pickle=False) as arrays:
                return {name: np.asarray(arrays[name]) for name in arrays.files}
        except (OSError, ValueError, EOFError) as exc:
            raise ReleaseBuildError(
                f"{self._job.carried}: is no carry of a release: {exc}"
            ) from exc

    def _judge(self, asked: Run) -> Judgement:
        labels = self._evaluation.labels
        kind: Kind = "embedding" if self._job.kind == "embedding" else "classes"
        try:
            return judge(
                kind,
                self._float.answers,
                asked.answers,
                labels=None if labels is None else labels[: len(asked.answers)],
                limits=self._limits,
            )
        except ValueError as exc:
            raise ReleaseBuildError(str(exc)) from exc

    def _run(self, model: Path, words: str) -> Run:
        return run(
            model, self._evaluation, progress=lambda done, of: self._progress(words, done, of)
        )


def _items(job: Job) -> tuple[Items | None, Items]:
    """To calibrate with, and to judge by.

    Without labelled or separate items everything that there is is split; dynamic quantisation needs none
    to calibrate with, but the guard needs some.
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


def _update_bytes(base: bytes, model: Path) -> int:
    """Estimated: exact to a few per cent, alike for all choices, and made in a fraction of the time."""
    return shoal_delta.estimate(base, model.read_bytes()).delta_bytes


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _say(lines: TextIO, value: dict[str, Any]) -> None:
    lines.write(json.dumps(value) + "\n")
    lines.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
