"""A plain directory of update metadata: signed files, and staged ones that still lack signatures.

It can be carried on a stick between machines without a network. Files are named as TUF names them
(`2.root.json`, `timestamp.json`); what is staged stands in `staged/`. Which signatures are needed: `ceremony`.
"""

import re
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from shoal_broker.durable import sync_directory, write_durably
from shoal_contract.release_targets import MAX_METADATA_BYTES, TIMESTAMP_FILE
from shoal_fleet.errors import StateError

STAGED: Final = "staged"

_NAME = re.compile(r"([1-9]\d{0,15})\.([A-Za-z0-9._-]{1,48})\.json")


class Repository:
    """Reads and writes the directory; it judges nothing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def versions(self, role: str) -> list[int]:
        """The signed versions of a role that are here, oldest first; the timestamp has none."""
        return sorted(self._files(self.directory).get(role, ()))

    def roles(self) -> list[str]:
        """The roles of which signed files are here, without the timestamp."""
        return sorted(self._files(self.directory))

    def file(self, role: str, version: int) -> Path:
        """Where a version stands, or would stand."""
        return self.directory / f"{version}.{role}.json"

    def load(self, role: str, version: int) -> Metadata[Any]:
        """One signed version.

        Raises:
            StateError: it is not here, or no metadata.
        """
        return read(self.file(role, version))

    def newest(self, role: str) -> Metadata[Any] | None:
        """The newest signed version of a role; None: there is none."""
        versions = self.versions(role)
        return self.load(role, versions[-1]) if versions else None

    def root(self) -> Metadata[Root] | None:
        """The newest root."""
        return self.newest(Root.type)

    def targets(self) -> Metadata[Targets] | None:
        """The newest list of the groups' keys."""
        return self.newest(Targets.type)

    def snapshot(self) -> Metadata[Snapshot] | None:
        """The newest snapshot."""
        return self.newest(Snapshot.type)

    def timestamp(self) -> Metadata[Timestamp] | None:
        """The timestamp."""
        path = self.directory / TIMESTAMP_FILE
        return read(path) if path.is_file() else None

    def staged(self) -> dict[str, Metadata[Any]]:
        """What waits for signatures, by role."""
        found = self._files(self.directory / STAGED)
        return {
            role: read(self.directory / STAGED / f"{max(versions)}.{role}.json")
            for role, versions in sorted(found.items())
        }

    def stage(self, role: str, metadata: Metadata[Any]) -> None:
        """Keep it until it has its signatures; an older one that waits for them is given up."""
        self._write(self.directory / STAGED, _name(role, metadata), encoded(metadata))
        for version in self._files(self.directory / STAGED).get(role, ()):
            if version != metadata.signed.version:
                self._remove(self.directory / STAGED / f"{version}.{role}.json")

    def publish(self, role: str, metadata: Metadata[Any]) -> None:
        """It has its signatures: from now on it is the newest."""
        name = TIMESTAMP_FILE if role == Timestamp.type else _name(role, metadata)
        self._write(self.directory, name, encoded(metadata))
        self._remove(self.directory / STAGED / name)

    def remove(self, role: str, version: int) -> None:
        """Nobody needs this version any more."""
        self._remove(self.file(role, version))

    def _write(self, folder: Path, name: str, data: bytes) -> None:
        if len(data) > MAX_METADATA_BYTES:
            raise StateError(
                f"{name} would have {len(data)} bytes, and {MAX_METADATA_BYTES} may travel:"
                " take old releases out"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_durably(folder / name, data, mode=0o644)
        except OSError as exc:
            raise StateError(f"{folder / name}: {exc.strerror}") from exc

    def _remove(self, path: Path) -> None:
        try:
            if path.is_file():
                path.unlink()
                sync_directory(path.parent)
        except OSError as exc:
            raise StateError(f"{path}: {exc.strerror}") from exc

    def _files(self, folder: Path) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        try:
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        except OSError as exc:
            raise StateError(f"{folder}: {exc.strerror}") from exc
        for name in names:
            if match := _NAME.fullmatch(name):
                found.setdefault(match[2], []).append(int(match[1]))
        return found


def read(path: Path) -> Metadata[Any]:
    """The metadata in a file.

    Raises:
        StateError: it cannot be read, is too large, or no metadata.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_METADATA_BYTES + 1)
    except OSError as exc:
        raise StateError(f"{path}: {exc.strerror}") from exc
    if len(data) > MAX_METADATA_BYTES:
        raise StateError(f"{path}: more than {MAX_METADATA_BYTES} bytes is no metadata")
    try:
        return Metadata.from_bytes(data)
    except (DeserializationError, RepositoryError, ValueError) as exc:
        raise StateError(f"{path}: no metadata: {exc}") from exc


def encoded(metadata: Metadata[Any]) -> bytes:
    """The metadata as it travels."""
    return metadata.to_bytes(JSONSerializer(compact=True))


def delegated(targets: Targets) -> dict[str, DelegatedRole]:
    """The groups' roles, by name."""
    if targets.delegations is None or targets.delegations.roles is None:
        return {}
    return targets.delegations.roles


def _name(role: str, metadata: Metadata[Any]) -> str:
    return f"{metadata.signed.version}.{role}.json"
