"""What the controller's own key signs: snapshot (which versions belong together) and timestamp (what is newest).

Pure but for the repository it writes to: time comes in as an argument. It signs what the offline keys have
signed already, and can make nothing of its own that a node would run.
"""

from datetime import datetime, timedelta
from typing import Any, Final

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from shoal_contract.release_targets import ISSUED_FIELD
from shoal_fleet.errors import StateError
from shoal_fleet.trust.repository import Repository, delegated

TIMESTAMP_LASTS: Final = timedelta(days=3)
"""So long a broker can hold back news before every board with a right clock notices."""
SNAPSHOT_LASTS: Final = timedelta(days=30)
RENEWED_AFTER: Final = 1 / 3
"""Of its life: a controller that is away for two thirds of it is not noticed."""
KEPT_SNAPSHOTS: Final = 2
"""The newest, and the one before: a board may be in the middle of a look."""


def renew(repository: Repository, signer: Signer, *, now: datetime) -> list[str]:
    """Sign a new snapshot and timestamp where they are due; returns the roles that are new.

    Raises:
        StateError: the repository is not complete, or the key is not the one that its root names.
    """
    root = repository.root()
    if root is None:
        raise StateError(f"{repository.directory} has no signed root")
    for role in (Snapshot.type, Timestamp.type):
        if signer.public_key.keyid not in root.signed.roles[role].keyids:
            raise StateError(f"the online key is not the one that the root names for {role}")
    renewed: list[str] = []
    wanted = {f"{role}.json": MetaFile(version) for role, version in _listed(repository).items()}
    snapshot = repository.snapshot()
    if (
        snapshot is None
        or snapshot.signed.meta != wanted
        or _is_due(snapshot, SNAPSHOT_LASTS, now)
        or not _is_signed(root, snapshot)
    ):
        if snapshot is not None and (gone := sorted(snapshot.signed.meta.keys() - wanted.keys())):
            raise StateError(f"{', '.join(gone)} was in the last snapshot and is gone")
        version = 1 if snapshot is None else snapshot.signed.version + 1
        snapshot = Metadata(
            Snapshot(version=version, expires=_in(SNAPSHOT_LASTS, now), meta=wanted)
        )
        snapshot.sign(signer)
        repository.publish(Snapshot.type, snapshot)
        renewed.append(Snapshot.type)
    timestamp = repository.timestamp()
    if (
        renewed
        or timestamp is None
        or _is_due(timestamp, TIMESTAMP_LASTS, now)
        or not _is_signed(root, timestamp)
    ):
        version = 1 if timestamp is None else timestamp.signed.version + 1
        signed = Timestamp(
            version=version,
            expires=_in(TIMESTAMP_LASTS, now),
            snapshot_meta=MetaFile(snapshot.signed.version),
            unrecognized_fields={ISSUED_FIELD: int(now.timestamp())},
        )
        timestamp = Metadata(signed)
        timestamp.sign(signer)
        repository.publish(Timestamp.type, timestamp)
        renewed.append(Timestamp.type)
    return renewed


def _listed(repository: Repository) -> dict[str, int]:
    """The newest versions of targets and of every role that it delegates to.

    Raises:
        StateError: one has no signed metadata.
    """
    targets = repository.targets()
    if targets is None:
        raise StateError(f"{repository.directory} has no signed targets")
    roles = [Targets.type, *sorted(delegated(targets.signed))]
    versions: dict[str, int] = {}
    for role in roles:
        there = repository.versions(role)
        if not there:
            raise StateError(f"{role} has no signed metadata in {repository.directory}")
        versions[role] = there[-1]
    return versions


def _is_signed(root: Metadata[Root], metadata: Metadata[Any]) -> bool:
    """Whether the keys of this root signed it: after a rotation they did not."""
    role = metadata.signed.type
    return root.signed.get_verification_result(
        role, metadata.signed_bytes, metadata.signatures
    ).verified


def _is_due(metadata: Metadata[Any], lasts: timedelta, now: datetime) -> bool:
    expires: datetime = metadata.signed.expires
    return now >= expires - lasts * (1 - RENEWED_AFTER)


def _in(lasts: timedelta, now: datetime) -> datetime:
    return (now + lasts).replace(microsecond=0)
