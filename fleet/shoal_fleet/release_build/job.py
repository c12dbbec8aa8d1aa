"""What the builder asks its worker to do, and what it gets back: plain values, JSON between two processes."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

MODEL_FILE: Final = "model.onnx"
ANSWERS_FILE: Final = "answers.npz"
CARRY_FILE: Final = "carry.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One model to make small. Paths are absolute.

    Attributes:
        out: an empty directory; model.onnx, answers.npz and perhaps carry.npz go there.
        base: the old release's model, to keep its scales.
        taus: dead bands to try beside none.
        carried: the carry.npz of the old release.
    """

    source: str
    out: str
    preset: str
    kind: str
    task: str
    calibration: str | None = None
    evaluation: str | None = None
    base: str | None = None
    taus: tuple[float, ...] = ()
    carried: str | None = None
    limits: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), "utf-8")

    @classmethod
    def read(cls, path: Path) -> "Job":
        """What `write` wrote."""
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return cls(**{**values, "taus": tuple(values["taus"])})
