"""Writes rendered files: whole or not at all, and never over what somebody changed by hand."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shoal_broker.errors import BrokerError
from shoal_broker.render.plan import RenderedFile

_LARGEST_READ_BYTES = 4 << 20


class Outcome(StrEnum):
    """What became of a file."""

    WRITTEN = "written"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Written:
    """A file and what became of it."""

    path: Path
    outcome: Outcome


def write_all(folder: Path, files: Iterable[RenderedFile], *, force: bool) -> list[Written]:
    """Write every file into `folder`, which is made if need be.

    Raises:
        BrokerError: a file is there with another content and `force` is off (then nothing was
            written), or the system refuses.
    """
    planned = []
    try:
        for file in files:
            path = folder / file.name
            planned.append((path, file, _outcome(path, file)))
        different = [str(path) for path, _, outcome in planned if outcome is Outcome.REPLACED]
        if different and not force:
            raise BrokerError(
                f"{', '.join(different)} already there and different: nothing was written; "
                "look at it, then say --force or choose another --out"
            )
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        for path, file, outcome in planned:
            if outcome is not Outcome.UNCHANGED:
                _replace(path, file)
    except OSError as exc:
        raise BrokerError(f"cannot write {exc.filename or folder}: {exc.strerror}") from exc
    return [Written(path, outcome) for path, _, outcome in planned]


def _outcome(path: Path, file: RenderedFile) -> Outcome:
    try:
        with path.open("rb") as there:
            same = there.read(_LARGEST_READ_BYTES) == file.text.encode()
    except FileNotFoundError:
        return Outcome.WRITTEN
    return Outcome.UNCHANGED if same else Outcome.REPLACED


def _replace(path: Path, file: RenderedFile) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            os.fchmod(opened.fileno(), file.mode)
            opened.write(file.text)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
