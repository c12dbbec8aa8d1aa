"""Brings what the offline keys signed from the ceremony's directory into the controller's, verified and forward only."""

from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from shoal_fleet.errors import UsageError
from shoal_fleet.trust.repository import Repository, delegated


def install(source: Repository, target: Repository) -> list[str]:
    """Copy what is newer, in the order in which it is relied on; returns the names of what was copied.

    Raises:
        UsageError: something is not signed as it must be, is older than what is there, or not complete.
        StateError: a file cannot be read or written.
    """
    waiting = sorted(source.staged())
    if waiting:
        raise UsageError(f"{', '.join(waiting)} still waits for signatures: `shoal trust status`")
    root = _install_roots(source, target)
    copied = [f"{version}.root.json" for version in root[1]]
    targets = source.targets()
    if targets is None:
        raise UsageError(f"{source.directory} has no signed targets")
    _check(root[0].signed, Targets.type, targets)
    groups = {}
    for role in delegated(targets.signed):
        metadata = source.newest(role)
        if metadata is None:
            raise UsageError(f"{role} has no signed metadata")
        _check(targets.signed, role, metadata)
        groups[role] = metadata
    for role, metadata in {**groups, Targets.type: targets}.items():
        here = target.newest(role)
        if here is not None and here.signed.version > metadata.signed.version:
            raise UsageError(
                f"{role} of version {metadata.signed.version} is older than"
                f" {here.signed.version}, which is there"
            )
        if here is not None and here.signed.version == metadata.signed.version:
            if here.signed_bytes != metadata.signed_bytes:
                raise UsageError(
                    f"{role} of version {metadata.signed.version} is there, and differs"
                )
            continue
        target.publish(role, metadata)
        copied.append(f"{metadata.signed.version}.{role}.json")
    return copied


def _install_roots(source: Repository, target: Repository) -> tuple[Metadata[Root], list[int]]:
    """The newest root, and the versions that were copied: each one signed as the one before asks for."""
    versions = source.versions(Root.type)
    if not versions:
        raise UsageError(f"{source.directory} has no signed root")
    there = target.versions(Root.type)
    if there and there[-1] not in versions:
        raise UsageError(f"the root of version {there[-1]} is there, and not in {source.directory}")
    if there:
        here, brought = (one.load(Root.type, there[-1]) for one in (target, source))
        if here.signed_bytes != brought.signed_bytes:
            raise UsageError(f"the root of version {there[-1]} there is another fleet's")
    previous: Metadata[Root] | None = None
    copied = []
    for version in versions:
        root = source.load(Root.type, version)
        if previous is not None:
            _check(previous.signed, Root.type, root)
        _check(root.signed, Root.type, root)
        if not there or version > there[-1]:
            target.publish(Root.type, root)
            copied.append(version)
        previous = root
    assert previous is not None  # noqa: S101 - there was a version
    return previous, copied


def _check(delegator: Root | Targets, role: str, metadata: Metadata[Any]) -> None:
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as exc:
        raise UsageError(f"{role} of version {metadata.signed.version}: {exc}") from exc
