"""`python -m shoal_fleet.release_build.worker JOB.json`: makes a model small, in a process of its own.

stdout is one JSON object a line: {"step": ..., "done": k, "of": n} on the way, at the end {"result": ...} or
{"error": ...}. What it imports (onnx, onnxruntime, perhaps torch and optimum) is in its environment only.
"""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Final, TextIO

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build.job import Job
from shoal_fleet.release_build.making import build

_NICENESS: Final = 10


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


def _say(lines: TextIO, value: dict[str, Any]) -> None:
    lines.write(json.dumps(value) + "\n")
    lines.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
