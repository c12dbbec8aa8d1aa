"""Is the small model still the model? Figures of its answers beside the float model's, and the verdict.

Pure numpy: answers in, judgement out. Nothing is run here.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Answers = NDArray[Any]
Labels = NDArray[np.int64]
Kind = Literal["classes", "embedding"]

MAX_SQNR_DB: Final = 200.0
"""What identical answers have."""

NEIGHBOURS: Final = 10
_ONE_SIDED_95: Final = 1.645


@dataclass(frozen=True, slots=True)
class Limits:
    """What the small model has to keep of the float one.

    Attributes:
        agreement: share of items whose best class is the float model's.
        accuracy_drop: by so much the accuracy may be lower (with labels).
        cosine: mean cosine of an item's two embeddings.
        cosine_p1: that of the worst hundredth.
        overlap: share of an item's nearest neighbours that stay among them.
        sqnr_db: of all answers together, signal to quantisation noise.
    """

    agreement: float = 0.98
    accuracy_drop: float = 0.01
    cosine: float = 0.99
    cosine_p1: float = 0.97
    overlap: float = 0.8
    sqnr_db: float = 10.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """Figures by name, and what is wrong in words; it passes when nothing is."""

    figures: dict[str, float]
    failures: tuple[str, ...]
    right: NDArray[np.bool_] = field(repr=False)
    """Which items it answers right: as labelled, else as the float model does."""

    @property
    def passes(self) -> bool:
        """Nothing is wrong."""
        return not self.failures


def judge(
    kind: Kind,
    before: Answers,
    after: Answers,
    *,
    labels: Labels | None = None,
    limits: Limits | None = None,
) -> Judgement:
    """Compare the answers [n, values] of the float model and of the small one on the same items.

    Raises:
        ValueError: the shapes do not go together, or there is nothing to compare.
    """
    if before.shape != after.shape or before.ndim != 2 or before.size == 0:  # noqa: PLR2004
        raise ValueError(f"answers {list(before.shape)} and {list(after.shape)} do not compare")
    limits = limits or Limits()
    if not np.isfinite(before).all():
        raise ValueError("the float model answers NaN or infinity")
    broken = ~np.isfinite(after).all(axis=1)
    if broken.any():
        return Judgement(
            {"not_finite": float(broken.mean())},
            (f"{int(broken.sum())} of {len(after)} answers are NaN or infinite",),
            np.zeros(len(after), dtype=np.bool_),
        )
    figures = {"sqnr_db": sqnr_db(before, after)}
    bounds = [("sqnr_db", limits.sqnr_db, "signal to noise")]
    if kind == "classes":
        agrees = before.argmax(axis=1) == after.argmax(axis=1)
        figures["agreement"] = float(agrees.mean())
        bounds.append(("agreement", limits.agreement, "top-1 agreement with the float model"))
        right = agrees
        if labels is not None:
            was_right = before.argmax(axis=1) == labels
            right = after.argmax(axis=1) == labels
            figures["float_accuracy"] = float(was_right.mean())
            figures["accuracy"] = float(right.mean())
            least = figures["float_accuracy"] - limits.accuracy_drop
            bounds.append(("accuracy", least, "accuracy"))
    else:
        cosines = _cosines(before, after)
        figures["cosine"] = float(cosines.mean())
        figures["cosine_p1"] = float(np.quantile(cosines, 0.01))
        figures["overlap"] = _overlap(before, after)
        bounds += [
            ("cosine", limits.cosine, "mean cosine"),
            ("cosine_p1", limits.cosine_p1, "cosine of the worst hundredth"),
            ("overlap", limits.overlap, f"overlap of {NEIGHBOURS} neighbours"),
        ]
        right = cosines >= limits.cosine
    failures = tuple(
        f"{words} {figures[name]:.4g} is below {least:.4g}"
        for name, least, words in bounds
        # Accuracies are counts over counts: their difference is no exact number.
        if not figures[name] >= least - 1e-9
    )
    return Judgement(figures, failures, right)


def is_worse(than: NDArray[np.bool_], now: NDArray[np.bool_]) -> bool:
    """Whether `now` is right less often than `than` by more than noise (McNemar, one side, 95 %).

    Items that both answer alike say nothing; of the others a fair coin decides.
    """
    lost = int((than & ~now).sum())
    won = int((now & ~than).sum())
    return lost - won > _ONE_SIDED_95 * float(np.sqrt(lost + won))


def sqnr_db(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Power of the answers over that of their error, in dB; at most `MAX_SQNR_DB`."""
    signal = float(np.square(before, dtype=np.float64).sum())
    noise = float(np.square(before.astype(np.float64) - after).sum())
    if noise <= signal * 10 ** (-MAX_SQNR_DB / 10):
        return MAX_SQNR_DB
    return float(10 * np.log10(signal / noise)) if signal > 0 else -MAX_SQNR_DB


def _cosines(before: Answers, after: Answers) -> NDArray[np.float64]:
    a, b = _unit(before), _unit(after)
    return np.asarray((a * b).sum(axis=1))


def _overlap(before: Answers, after: Answers) -> float:
    """The share of each item's nearest neighbours (by cosine, among the items) that stay."""
    count = min(NEIGHBOURS, len(before) - 1)
    if count < 1:
        return 1.0
    near, still = (_neighbours(_unit(answers), count) for answers in (before, after))
    shared = [len(set(a) & set(b)) for a, b in zip(near.tolist(), still.tolist(), strict=True)]
    return float(np.mean(shared)) / count


def _neighbours(unit: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argsort(-likeness, axis=1, kind="stable")[:, :count]


def _unit(answers: Answers) -> NDArray[np.float64]:
    wide = answers.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.maximum(norms, 1e-30))
