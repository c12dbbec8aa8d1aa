"""The model on fresh scales, on the old release's, and with dead bands: each made, judged, one taken.

Worker only; which one is taken decides `choice`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import shoal_delta
from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build import choice, float_source
from shoal_fleet.release_build.guard import Judgement
from shoal_fleet.release_build.old_release import with_old_scales
from shoal_fleet.release_build.running import Run
from shoal_fleet.release_build.trial import Trial

FRESH = "fresh scales"


@dataclass(frozen=True, slots=True)
class Taken:
    """The model that is taken, what each choice came to, and what it leaves unsaid (with a dead band)."""

    model: Path
    run: Run
    choices: list[dict[str, Any]]
    carry: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def take_smallest_update(
    trial: Trial,
    fresh: tuple[Path, Judgement, Run],
    float_model: Path,
    old_model: Path,
    *,
    is_narrow: bool,
    taus: Sequence[float],
    carried: Path | None,
    scratch: Path,
) -> Taken:
    """Lay the weights of `float_model` on the old scales and with each dead band, and take the best.

    Args:
        trial: judges each.
        fresh: the model as the quantiser made it, and its judgement.
        float_model: what it was made from.
        old_model: the old release's.
        is_narrow: weights have 7 bits.
        taus: dead bands to try beside none.
        carried: the old release's carry, if the training began from its INT8 weights.
        scratch: where models may lie meanwhile.

    Raises:
        ReleaseBuildError: the old model or its carry is none.
    """
    path, judgement, answered = fresh
    base = old_model.read_bytes()
    old, made = float_source.load(old_model), float_source.load(path)
    weights = float_source.float_weights(float_source.load(float_model, with_data=True))
    unsaid = None if carried is None else _read_carry(carried)
    trial.progress(f"update on {FRESH}", 0, 0)
    candidates = [choice.Candidate(FRESH, 0.0, _update_bytes(base, path), judgement)]
    found: dict[str, Taken] = {FRESH: Taken(path, answered, [])}
    for tau in (0.0, *(tau for tau in taus if tau > 0)):
        name = f"old scales, tau {tau:g}" if tau else "old scales"
        trial.progress(f"update on {name}", 0, 0)
        scales = with_old_scales(made, old, weights, is_narrow=is_narrow, tau=tau, carried=unsaid)
        path = scratch / f"old-{len(found)}.onnx"
        onnx.save(scales.model, path)
        judgement, answered = trial.judged(path, name)
        kept, of = scales.channels
        size = _update_bytes(base, path)
        candidates.append(choice.Candidate(name, tau, size, judgement, kept, of))
        found[name] = Taken(path, answered, [], scales.carry if tau else {})
    best = choice.chosen(candidates)
    taken = found[best.name]
    facts = [
        {
            "name": each.name,
            "tau": each.tau,
            "delta_bytes": each.delta_bytes,
            "model_bytes": found[each.name].model.stat().st_size,
            "kept_scales": each.kept_scales,
            "scales": each.scales,
            "figures": each.judgement.figures,
            "refused": choice.verdict(each, candidates[0]),
            "chosen": each is best,
        }
        for each in candidates
    ]
    return Taken(taken.model, taken.run, facts, taken.carry)


def _update_bytes(base: bytes, model: Path) -> int:
    """Estimated: exact to a few per cent, alike for all choices, and made in a fraction of the time."""
    return shoal_delta.estimate(base, model.read_bytes()).delta_bytes


def _read_carry(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError) as exc:
        raise ReleaseBuildError(f"{path}: is no carry of a release: {exc}") from exc
