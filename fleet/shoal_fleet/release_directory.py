"""A release directory as it lies on a disk: which files it must have, and its way into an upload.

Nothing here runs the model; that is `release_check`.
"""

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from shoal_contract.errors import ContractError
from shoal_contract.release import MAX_FILE_BYTES, SPEC_FILE, ReleaseSpec, parse_spec
from shoal_fleet.errors import ReleaseError

PIECE_BYTES: Final = 1 << 20
REPORT_FILES: Final = ("report.md", "report.json", "report.svg")
"""What `shoal release build` found out. The controller keeps it; it is no part of what boards get."""

EVALUATION_MEMBER: Final = "+evaluation.npz"
PARENT_MEMBER: Final = "+parent.onnx"
"""What comes in an upload beside the release, to judge it by. No file of a release can have such a name."""

MAX_REPORT_BYTES: Final = 1 << 20


def reports_in(directory: Path) -> tuple[str, ...]:
    """Which of the report's files are there."""
    return tuple(name for name in REPORT_FILES if (directory / name).is_file())


def read_spec(directory: Path) -> ReleaseSpec:
    """release.toml of a directory that holds the release's files, perhaps a report, and nothing else.

    Raises:
        ReleaseError: a file is missing, is too many or too large, or release.toml is wrong.
    """
    try:
        present = {path.name: path for path in directory.iterdir()}
        if SPEC_FILE not in present:
            raise ReleaseError(f"{directory.name}: there is no {SPEC_FILE} in it")
        spec = parse_spec(present[SPEC_FILE].read_bytes())
        for name in spec.files:
            path = present.pop(name, None)
            if path is None or not path.is_file() or path.is_symlink():
                raise ReleaseError(f"{SPEC_FILE} names {name}, which is not a file here")
            if not 0 < path.stat().st_size <= MAX_FILE_BYTES:
                raise ReleaseError(f"{name} is empty or larger than {MAX_FILE_BYTES} bytes")
        _take_report(present)
    except OSError as exc:
        raise ReleaseError(f"{directory}: cannot be read: {exc.strerror}") from exc
    except ContractError as exc:
        raise ReleaseError(str(exc)) from exc
    if present:
        raise ReleaseError(f"{min(present)!r} does not belong to the release")
    return spec


def _take_report(present: dict[str, Path]) -> None:
    for name in REPORT_FILES:
        path = present.pop(name, None)
        if path is None:
            continue
        if path.is_symlink() or not path.is_file():
            raise ReleaseError(f"{name} is not a file here")
        if path.stat().st_size > MAX_REPORT_BYTES:
            raise ReleaseError(f"{name} is larger than {MAX_REPORT_BYTES} bytes")


def pack(
    directory: Path, spec: ReleaseSpec, beside: Mapping[str, Path] | None = None
) -> Iterator[bytes]:
    """The release's files, its report and what is `beside` it (by member name) as a tar, piece by piece.

    Raises:
        ReleaseError: a file cannot be read.
    """
    named = {name: directory / name for name in (*spec.files, *reports_in(directory))}
    for name, path in {**named, **(beside or {})}.items():
        try:
            with path.open("rb") as file:
                member = tarfile.TarInfo(name)
                member.size = path.stat().st_size
                yield member.tobuf(tarfile.USTAR_FORMAT)
                left = member.size
                while piece := file.read(min(PIECE_BYTES, left)):
                    left -= len(piece)
                    yield piece
        except OSError as exc:
            raise ReleaseError(f"{path}: cannot be read: {exc.strerror}") from exc
        if left:
            raise ReleaseError(f"{path}: became shorter while it was read")
        yield bytes(-member.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
