"""Small models asked the same questions as the float one, and judged. Worker only."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build.calibration import Items
from shoal_fleet.release_build.guard import Judgement, Kind, Limits, judge
from shoal_fleet.release_build.running import Run, run

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """The items to judge by, and what the float model answers to them. Build it with `of_float`."""

    items: Items
    kind: Kind
    limits: Limits
    progress: Progress
    before: Run

    @classmethod
    def of_float(
        cls, model: Path, items: Items, *, kind: Kind, limits: Limits, progress: Progress
    ) -> "Trial":
        """Ask the float model.

        Raises:
            ReleaseBuildError: it does not load, or fails on the items.
        """
        words = "asking the float model"
        before = run(model, items, progress=lambda done, of: progress(words, done, of))
        return cls(items, kind, limits, progress, before)

    def judged(self, model: Path, name: str) -> tuple[Judgement, Run]:
        """Ask a small model.

        Raises:
            ReleaseBuildError: it does not load, fails on the items, or answers something else.
        """
        after = run(
            model,
            self.items,
            progress=lambda done, of: self.progress(f"judging {name}", done, of),
        )
        labels = self.items.labels
        try:
            judgement = judge(
                self.kind,
                self.before.answers,
                after.answers,
                labels=None if labels is None else labels[: len(after.answers)],
                limits=self.limits,
            )
        except ValueError as exc:
            raise ReleaseBuildError(str(exc)) from exc
        return judgement, after
