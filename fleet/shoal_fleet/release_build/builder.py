"""`shoal release build`, the controller's side: starts the worker, follows it, writes the release directory.

It loads no onnx and no torch; what it needs of them happens in the worker.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from shoal_broker.durable import write_durably
from shoal_contract.errors import ContractError, DecodeError
from shoal_contract.onnx_outline import outline
from shoal_contract.release import SPEC_FILE, parse_spec
from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build import environment
from shoal_fleet.release_build.build_spec import BuildSpec, release_toml
from shoal_fleet.release_build.calibration import Items, read_items, split
from shoal_fleet.release_build.golden import golden_of
from shoal_fleet.release_build.job import CARRY_FILE, MODEL_FILE, Job
from shoal_fleet.release_build.report import report_files, taken_figures

GOLDEN_FILE: Final = "golden.npz"
TORCH_SUFFIXES: Final = (".pt", ".pth")
# What a tokenizer and a reader of the model want beside it; copied when no release.toml is asked for.
BESIDE: Final = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.txt", "merges.txt", "sentencepiece.bpe.model"),
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asks for.

    Attributes:
        out: a directory that is new or empty.
        spec: what the release is; None: only the model and its report are made.
        base: the old release: its directory or its model file.
        environment: a virtual environment of theirs; None: ours.
    """

    source: Path
    out: Path
    preset: str
    spec: BuildSpec | None = None
    kind: str = "classes"
    task: str = "feature-extraction"
    calibration: Path | None = None
    evaluation: Path | None = None
    base: Path | None = None
    taus: tuple[float, ...] = ()
    carried: Path | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    environment: Path | None = None


def build_release(request: Request, *, state_dir: Path, progress: Progress) -> dict[str, Any]:
    """Build what is asked for; the facts of the report. `out` is complete or not there.

    Raises:
        ReleaseBuildError: it cannot be built; the message says what to do.
    """
    _check(request)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=request.out.parent) as name:
        folder = Path(name)
        made, release = folder / "made", folder / "release"
        made.mkdir()
        release.mkdir()
        facts = _work(request, made, folder, state_dir, progress)
        shutil.copyfile(made / MODEL_FILE, release / MODEL_FILE)
        facts["operator_sets"] = _operator_sets(release / MODEL_FILE)
        for file, content in report_files(facts).items():
            (release / file).write_bytes(content)
        if request.spec is not None:
            progress("choosing golden inputs", 0, 0)
            _add_release_files(request, request.spec, release, facts)
        elif request.source.is_dir():
            for beside in BESIDE:
                if (request.source / beside).is_file():
                    shutil.copyfile(request.source / beside, release / beside)
        if (made / CARRY_FILE).is_file():
            write_durably(carry_path(request.out), (made / CARRY_FILE).read_bytes())
        if request.out.exists():
            request.out.rmdir()
        release.rename(request.out)
    return facts


def carry_path(out: Path) -> Path:
    """Where the carry of a release with a dead band goes: beside its directory, boards do not need it."""
    return out.with_name(f"{out.name}.{CARRY_FILE}")


def _operator_sets(model: Path) -> Any:
    """What a manifest will list, and boards hold the model to."""
    try:
        found = outline(model.read_bytes()).operator_sets
    except DecodeError as exc:
        raise ReleaseBuildError(f"boards would not take the model that was made: {exc}") from exc
    return msgspec.to_builtins(found)


def _check(request: Request) -> None:
    if request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise ReleaseBuildError(f"{request.out} exists and is not empty: name a new directory")
    for path in (request.source, request.calibration, request.evaluation, request.carried):
        if path is not None and not path.exists():
            raise ReleaseBuildError(f"{path} is not there")
    if request.calibration is None and request.evaluation is None:
        raise ReleaseBuildError(
            "whether the small model is good needs real inputs: give --calibration FILE.npz"
        )
    if (request.taus or request.carried) and request.base is None:
        raise ReleaseBuildError("a dead band (--tau) is one around an old release: give --base")


def _work(
    request: Request, made: Path, folder: Path, state_dir: Path, progress: Progress
) -> dict[str, Any]:
    job = Job(
        source=str(request.source.absolute()),
        out=str(made),
        preset=request.preset,
        kind=request.kind,
        task=request.task,
        calibration=_absolute(request.calibration),
        evaluation=_absolute(request.evaluation),
        base=None if request.base is None else str(_model_of(request.base).absolute()),
        taus=request.taus,
        carried=_absolute(request.carried),
        limits=dict(request.limits),
    )
    path = folder / "job.json"
    job.write(path)
    default = state_dir / environment.DIRECTORY
    is_full = _needs_torch(request.source)
    arguments = environment.command(
        path, default=default, chosen=request.environment, is_full=is_full
    )
    if arguments is None:
        environment.make(default, is_full=is_full, say=lambda line: progress(line[:70], 0, 0))
        arguments = environment.command(path, default=default, chosen=default, is_full=is_full)
    return follow(arguments or [], progress)


def follow(arguments: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Run a worker to its end; its result.

    Raises:
        ReleaseBuildError: it says why it has none, or it died.
    """
    answer: dict[str, Any] = {}
    last_complaint = ""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            # Nothing is fetched, whatever a model directory names.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        ) as worker,
    ):
        try:
            for line in worker.stdout or ():
                answer = json.loads(line)
                if "step" in answer:
                    progress(answer["step"], answer["done"], answer["of"])
        except ValueError as exc:
            raise ReleaseBuildError(f"the worker says what is no JSON: {line[:80]!r}") from exc
        finally:
            if worker.poll() is None and "result" not in answer and "error" not in answer:
                worker.kill()
            worker.wait()
        complaints.seek(0)
        lines = complaints.read().strip().splitlines()
        last_complaint = lines[-1] if lines else ""
    if "error" in answer:
        raise ReleaseBuildError(answer["error"])
    if "result" not in answer:
        raise ReleaseBuildError(
            f"the worker ended with {worker.returncode}: {last_complaint or 'killed?'}"
        )
    result: dict[str, Any] = answer["result"]
    return result


def _add_release_files(
    request: Request, spec: BuildSpec, release: Path, facts: Mapping[str, Any]
) -> None:
    items, named = _judged_on(request)
    if spec.input.name not in items.inputs:
        raise ReleaseBuildError(f"the items have no array {spec.input.name!r}")
    model = release / MODEL_FILE
    golden = golden_of(model, spec.input, spec.output, np.asarray(items.inputs[spec.input.name]))
    (release / GOLDEN_FILE).write_bytes(golden.content)
    figures = taken_figures(facts)
    metric = "accuracy" if "accuracy" in figures else "agreement with the float model"
    value = figures.get("accuracy", figures.get("agreement", 0.0))
    text = release_toml(
        spec,
        model_file=MODEL_FILE,
        golden_file=GOLDEN_FILE,
        tolerance=golden.tolerance,
        metric=metric,
        value=round(value, 4),
        evaluated_on=f"{facts['evaluation_items']} items of {named}",
    )
    try:
        parse_spec(text.encode())
    except ContractError as exc:
        raise ReleaseBuildError(str(exc)) from exc
    (release / SPEC_FILE).write_text(text, encoding="utf-8", newline="\n")


def _judged_on(request: Request) -> tuple[Items, str]:
    """The items that the worker judged by, and the name of their file."""
    if request.evaluation is not None:
        return read_items(request.evaluation), request.evaluation.name
    if request.calibration is not None:
        return split(read_items(request.calibration))[1], request.calibration.name
    raise ReleaseBuildError("there are no items")


def _model_of(base: Path) -> Path:
    """The model file of an old release: the file itself, or the one that its release.toml names."""
    if base.is_file():
        return base
    try:
        return base / parse_spec((base / SPEC_FILE).read_bytes()).model.file
    except (OSError, ContractError) as exc:
        raise ReleaseBuildError(f"{base} is neither a model file nor a release: {exc}") from exc


def _needs_torch(source: Path) -> bool:
    if source.is_dir():
        return not any(source.glob("*.onnx")) and not (source / "onnx" / "model.onnx").is_file()
    return source.suffix in TORCH_SUFFIXES


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
