"""The agent's side: asks the switcher for a release, answers as the new one when it does well, tells how it went.

Files and values; when it is asked, and what doing well means, is said by who calls.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from shoal_agent.self_update.request import (
    ARCHIVE,
    ASKED,
    FOLDER,
    HEALTHY,
    MANIFEST,
    METADATA,
    Asked,
)
from shoal_agent.self_update.standing import Standing
from shoal_broker.durable import sync_directory, write_durably


def ask(
    state_dir: Path,
    release: bytes,
    *,
    manifest: Path,
    archive: Path,
    metadata: Mapping[str, bytes],
    models: Sequence[str],
) -> str:
    """Ask for this release, whose files are here; the token that the switcher will have answered. Blocking.

    `metadata`: the update metadata, named as in a repository. `models`: what serves now, and must then.

    Raises:
        OSError: the disk does not take it.
    """
    folder = state_dir / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    # Without this file nothing is asked, whatever else stands there half written.
    with contextlib.suppress(FileNotFoundError):
        (folder / ASKED).unlink()
    sync_directory(folder)
    for source, name in ((manifest, MANIFEST), (archive, ARCHIVE)):
        (folder / name).unlink(missing_ok=True)
        os.link(source, folder / name)
    shutil.rmtree(folder / METADATA, ignore_errors=True)
    (folder / METADATA).mkdir(mode=0o700)
    for name, content in metadata.items():
        write_durably(folder / METADATA / name, content)
    sync_directory(folder)
    token = secrets.token_hex(16)
    asked = Asked(token=token, release=release.hex(), models=list(models))
    write_durably(folder / ASKED, msgspec.json.encode(asked))
    return token


def repository_files(kept: Path) -> dict[str, bytes]:
    """The verified metadata that the agent keeps, by the names that a repository has for it. Blocking.

    python-tuf keeps `snapshot.json`; a repository has `7.snapshot.json`. What cannot be read is left out: the switcher
    judges what comes.

    Raises:
        OSError: a file cannot be read.
    """
    files: dict[str, bytes] = {}
    history = kept / "root_history"
    for path in sorted([*kept.glob("*.json"), *history.glob("*.root.json")]):
        data = path.read_bytes()
        name = path.name
        if path.parent == kept and name != "timestamp.json":
            try:
                version = msgspec.json.decode(data)["signed"]["version"]
            except (msgspec.DecodeError, KeyError, TypeError):
                continue
            name = f"{version}.{name}"
        files[name] = data
    return files


def say_healthy(state_dir: Path, token: str) -> None:
    """Answer the trial. Blocking.

    Raises:
        OSError: the disk does not take it.
    """
    (state_dir / FOLDER).mkdir(mode=0o700, exist_ok=True)
    write_durably(state_dir / FOLDER / HEALTHY, token.encode())


def trial_of(standing: Standing, tree: str) -> tuple[str, list[str]] | None:
    """Token and models of the trial that waits for an agent of this tree; None: none does."""
    trial = standing.trial
    if trial is None or trial.phase != "trying" or trial.tree != tree:
        return None
    return trial.token, trial.models
