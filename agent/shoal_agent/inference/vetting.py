"""Are the files of a release what its manifest says, and is its model one that may be tried at all? Nothing is run.

`vet` is what the short-lived child does (`vetting_child`); it reads bytes that nobody has to trust. Without numpy and
ONNX Runtime: what is refused here, they never see.
"""

import contextlib
import hashlib
import mmap
import os
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shoal_agent.inference.model_errors import ModelError
from shoal_contract import toml
from shoal_contract.errors import ContractError, DecodeError
from shoal_contract.messages import FileEntry, Manifest
from shoal_contract.onnx_outline import Outline, outline
from shoal_contract.onnx_tensors import External
from shoal_contract.release import MAX_FILE_BYTES, SPEC_FILE, parse_spec

_SHOWN: Final = 5
Names = Mapping[tuple[int, int], int]
"""How many names the content store itself has given an inode, by device and number."""


class ForeignLinkError(ModelError):
    """A file has a name that the store did not give it, or gave it a moment ago: count again."""


def vet(directory: Path, manifest: Manifest, *, names: Names | None = None) -> Outline:
    """Check a release directory against its manifest; what its model uses.

    Args:
        directory: holds the files.
        manifest: of the release.
        names: of the store that the files are linked from; None: no file has a second name.

    Raises:
        ModelError: the first thing that is not as it should be, in one line.
    """
    entries = {entry.name: entry for entry in manifest.files}
    _check_list(directory, entries)
    for entry in manifest.files:
        _check_file(directory / entry.name, entry, names)
    try:
        spec = parse_spec(_read_small(directory / SPEC_FILE))
    except ContractError as exc:
        raise ModelError(str(exc)) from exc
    if sorted(entries) != sorted(spec.files):
        raise ModelError(
            f"the manifest lists {sorted(entries)}, {SPEC_FILE} names {sorted(spec.files)}"
        )
    if (spec.name, spec.version) != (manifest.name, manifest.version):
        raise ModelError(f"{SPEC_FILE} is of another release than the manifest")
    try:
        found = _outline_of(directory / spec.model.file)
    except DecodeError as exc:
        raise ModelError(f"{spec.model.file}: {exc}") from exc
    for external in found.external:
        raise ModelError(f"{spec.model.file}: {_why_not(external, entries)}")
    if manifest.operator_sets and (beyond := found.beyond(manifest.operator_sets)):
        more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
        raise ModelError(
            f"{spec.model.file}: it uses operators that the release does not list:"
            f" {', '.join(beyond[:_SHOWN])}{more}"
        )
    return found


def names_in(*folders: Path) -> Names:
    """The names that files have in these folders and the folders in them, links not followed.

    The agent goes on meanwhile, with other models: what has gone when it is looked at does not count.
    """
    found: Counter[tuple[int, int]] = Counter()
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    found.update(names_in(Path(entry.path)))
                    continue
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    found[facts.st_dev, facts.st_ino] += 1
    return found


def _check_list(directory: Path, entries: Mapping[str, FileEntry]) -> None:
    try:
        # O_NOFOLLOW: the directory itself is none of somebody else's.
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
        there = {path.name for path in directory.iterdir()}
    except OSError as exc:
        raise ModelError(f"the release's directory: {exc.strerror}") from exc
    if missing := entries.keys() - there:
        raise ModelError(f"{min(missing)} is missing")
    if strange := there - entries.keys():
        raise ModelError(f"{min(strange)[:80]!r} is not in the manifest")


def _check_file(path: Path, entry: FileEntry, names: Names | None) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        what = "a symbolic link" if path.is_symlink() else exc.strerror
        raise ModelError(f"{entry.name}: {what}") from exc
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"{entry.name}: not a plain file")
        own = 1 if names is None else names.get((found.st_dev, found.st_ino), 0)
        if found.st_nlink > own:
            raise ForeignLinkError(
                f"{entry.name}: a hard link, with {found.st_nlink - own} names that are not the store's"
            )
        if found.st_size != entry.size_bytes or found.st_size > MAX_FILE_BYTES:
            raise ModelError(
                f"{entry.name}: {found.st_size} bytes, the manifest says {entry.size_bytes}"
            )
        if hashlib.file_digest(file, "sha256").digest() != entry.digest:
            raise ModelError(f"{entry.name}: its sha256 is not the manifest's")


def _read_small(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(toml.MAX_BYTES + 1)


def _outline_of(path: Path) -> Outline:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise DecodeError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return outline(data)


def _why_not(external: External, entries: Mapping[str, FileEntry]) -> str:
    """Weights beside the model are not served; where they claim to be may be worse than that."""
    where = external.location[:80]
    tensor = f"the tensor {external.tensor!r} lies in {where!r}"
    parts = where.split("/")
    if where.startswith("/") or ".." in parts or "\0" in where:
        return f"{tensor}, which is outside of the release"
    entry = entries.get(where)
    if entry is None:
        return f"{tensor}, which is no file of the release"
    if external.offset + (external.length or 0) > entry.size_bytes:
        return f"{tensor}, behind the end of that file"
    return f"{tensor}; a model has its weights in its own file"
