"""What the controller's directory has to say now: signs what is due, and reads what is to stand at the broker.

`distribution` brings it there. python-tuf is loaded with this module, so only where there is something signed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from tuf.api.metadata import Root, Snapshot, Targets

from shoal_contract.release_targets import TIMESTAMP_FILE
from shoal_fleet.errors import FleetError, StateError
from shoal_fleet.trust import online, status
from shoal_fleet.trust.keys import open_signer
from shoal_fleet.trust.places import metadata_dir, online_key_file
from shoal_fleet.trust.repository import Repository

KEPT: Final = 2
"""Versions of a role that stay at the broker: a node may be in the middle of a look."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands now: files by name, the timestamp last; roles signed anew; what runs out."""

    files: Mapping[str, bytes]
    renewed: tuple[str, ...]
    alarms: tuple[str, ...]


def look(state_dir: Path, *, now: datetime) -> Standing:
    """Sign snapshot and timestamp where they are due, and say what stands.

    Raises:
        FleetError: the directory or the key cannot be used.
    """
    repository = Repository(metadata_dir(state_dir))
    if repository.root() is None:
        return Standing({}, (), ())
    try:
        signer = open_signer(online_key_file(state_dir))
    except FleetError as exc:
        raise StateError(f"the online key cannot be used: {exc}") from exc
    renewed = online.renew(repository, signer, now=now)
    return Standing(_files(repository), tuple(renewed), status.look(repository, now=now).alarms)


def remove_old_snapshots(state_dir: Path) -> None:
    """Those that are not at the broker any more; what people signed stays.

    Raises:
        StateError: the disk does not let go of one.
    """
    repository = Repository(metadata_dir(state_dir))
    for version in repository.versions(Snapshot.type)[:-KEPT]:
        repository.remove(Snapshot.type, version)


def _files(repository: Repository) -> Mapping[str, bytes]:
    """Every root, of the rest the newest versions."""
    top = (Root.type, Targets.type, Snapshot.type)
    groups = [role for role in repository.roles() if role not in top]
    paths = []
    for role in (Root.type, *groups, Targets.type, Snapshot.type):
        versions = repository.versions(role)
        kept = versions if role == Root.type else versions[-KEPT:]
        paths += [repository.file(role, version) for version in kept]
    paths.append(repository.directory / TIMESTAMP_FILE)
    try:
        return {path.name: path.read_bytes() for path in paths}
    except OSError as exc:
        raise StateError(f"{repository.directory}: {exc.strerror}") from exc
