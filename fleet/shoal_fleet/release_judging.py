"""What the quality gate is asked with: the evaluation set, the float parent and the current release, run in a child.

The rules are in `quality_gate`. The set that a release was judged by is kept: the next one is judged by it, too.
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from shoal_fleet import quality_gate
from shoal_fleet.blob_store import BlobStore
from shoal_fleet.child import run_module
from shoal_fleet.errors import ReleaseError, StateError
from shoal_fleet.release_directory import EVALUATION_MEMBER, read_spec

log = structlog.get_logger(__name__)

MAX_EVALUATION_BYTES: Final = 64 << 20
EVALUATION_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Gate:
    """How strict to be. `force`: why a worse model is let in all the same, for the record; None: it is not."""

    max_drop: float = quality_gate.MAX_DROP
    force: str | None = None


async def judge(
    store: BlobStore,
    directory: Path,
    rivals: Sequence[quality_gate.Rival],
    *,
    evaluation: Path | None,
    parent: Path | None,
    gate: Gate,
) -> dict[str, Any]:
    """What was measured and decided on a release that is new, for the record.

    Raises:
        ReleaseError: it is not let in; names the figure.
        StateError: a file of the store is gone.
    """
    spec = read_spec(directory)
    if (refusal := quality_gate.signature_refusal(spec, rivals)) is not None:
        raise ReleaseError(refusal)
    current = quality_gate.current_of(rivals)
    if current is not None and quality_gate.signature_change(current.spec, spec) is not None:
        # Another major version: it takes other inputs.
        current = None
    if evaluation is None and current is not None:
        evaluation = _kept_set(store, current)
    if evaluation is None and parent is not None:
        raise ReleaseError("a float parent is compared on an evaluation set: give one, too")
    record: dict[str, Any] = {}
    measured = None
    if evaluation is not None:
        measured = await _measure(
            evaluation,
            directory / spec.model.file,
            parent=parent,
            current=None if current is None else store.path(current.model_file),
        )
        record = await _record(store, evaluation, parent, current, measured, gate)
    refusal = quality_gate.quality_refusal(spec, current, measured, max_drop=gate.max_drop)
    if refusal is None:
        return record
    if gate.force is None:
        raise ReleaseError(refusal)
    log.warning("release is let in against the gate", refusal=refusal, reason=gate.force)
    return {**record, "forced": {"refusal": refusal, "reason": gate.force}}


def take_aside(directory: Path, name: str, folder: Path) -> Path | None:
    """Out of the release's directory: it is no part of the release."""
    path = directory / name
    if not path.exists():
        return None
    aside = folder / name
    path.rename(aside)
    if name == EVALUATION_MEMBER and aside.stat().st_size > MAX_EVALUATION_BYTES:
        raise ReleaseError(f"the evaluation set is larger than {MAX_EVALUATION_BYTES} bytes")
    return aside


def _kept_set(store: BlobStore, current: quality_gate.Rival) -> Path | None:
    """The evaluation set that the current release was judged by: the next one is, too."""
    digest = current.quality.get("evaluation")
    if digest is None:
        return None
    path = store.path(bytes.fromhex(digest))
    if not path.exists():
        raise StateError(f"{current.title}: the evaluation set is gone from the store")
    return path


async def _record(
    store: BlobStore,
    evaluation: Path,
    parent: Path | None,
    current: quality_gate.Rival | None,
    measured: quality_gate.Measured,
    gate: Gate,
) -> dict[str, Any]:
    content = await asyncio.to_thread(evaluation.read_bytes)
    ref = await store.add(content)
    record: dict[str, Any] = {
        "accuracy": measured.accuracy,
        "items": measured.items,
        "evaluation": ref.digest.hex(),
        "max_drop": gate.max_drop,
    }
    if parent is not None:
        digest = hashlib.sha256(await asyncio.to_thread(parent.read_bytes)).hexdigest()
        record |= {"parent": digest, "parent_accuracy": measured.parent}
    if current is not None:
        record |= {"current": current.title, "current_accuracy": measured.current}
    return record


async def _measure(
    evaluation: Path, model: Path, *, parent: Path | None, current: Path | None
) -> quality_gate.Measured:
    files = [model, *(path for path in (parent, current) if path is not None)]
    ended = await run_module(
        "shoal_fleet.release_evaluation",
        str(evaluation),
        *map(str, files),
        timeout_s=EVALUATION_TIMEOUT_S,
    )
    if ended.exit_code is None:
        raise ReleaseError(f"the evaluation took longer than {EVALUATION_TIMEOUT_S:g} s")
    try:
        verdict = json.loads(ended.stdout)
    except ValueError as exc:
        raise ReleaseError(f"the evaluation died (exit code {ended.exit_code})") from exc
    if not verdict["ok"]:
        raise ReleaseError(verdict["reason"])
    found = iter(verdict["accuracies"])
    return quality_gate.Measured(
        verdict["items"],
        next(found),
        None if parent is None else next(found),
        None if current is None else next(found),
    )
