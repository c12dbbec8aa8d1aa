"""Reads from the controller's metadata which releases are signed for which group."""

from pathlib import Path
from typing import Any

from tuf.api.metadata import TargetFile, Targets

from shoal_contract.errors import TopicError
from shoal_contract.release_targets import group_of, role_of
from shoal_fleet.errors import StateError
from shoal_fleet.signed_list import SignedList
from shoal_fleet.trust.repository import Repository, delegated


def read_signed_list(directory: Path) -> SignedList:
    """The newest list of every group that has a key; one that says so when it cannot be read."""
    repository = Repository(directory)
    try:
        targets = repository.targets()
        roles = [] if targets is None else list(delegated(targets.signed))
        groups = [group for role in roles if (group := group_of(role))]
        return SignedList({group: _digests(repository, group) for group in groups})
    except StateError as exc:
        return SignedList(unreadable=str(exc))


def _digests(repository: Repository, group: str) -> dict[str, bytes | None]:
    try:
        metadata: Any = repository.newest(role_of(group))
    except TopicError:
        return {}
    if metadata is None or not isinstance(metadata.signed, Targets):
        return {}
    return {path: _sha256(target) for path, target in metadata.signed.targets.items()}


def _sha256(target: TargetFile) -> bytes | None:
    try:
        return bytes.fromhex(target.hashes.get("sha256", ""))
    except ValueError:
        return None
