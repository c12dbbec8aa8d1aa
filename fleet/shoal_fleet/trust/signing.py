"""Signs what is staged, and says which signatures it still lacks; what has them all becomes the newest."""

from dataclasses import dataclass
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root, Targets

from shoal_fleet.errors import UsageError
from shoal_fleet.trust.repository import Repository, delegated


@dataclass(frozen=True, slots=True)
class Missing:
    """What staged metadata lacks: `signed` of `threshold` keys have signed, `unsigned` could still."""

    role: str
    version: int
    signed: tuple[str, ...]
    unsigned: tuple[str, ...]
    threshold: int
    is_complete: bool


def sign(repository: Repository, signer: Signer) -> list[Missing]:
    """Sign everything staged that this key counts for; what is complete is published.

    Raises:
        UsageError: the key counts for nothing that is staged.
    """
    signed: list[Missing] = []
    order = {Root.type: 0, Targets.type: 1}
    for role, metadata in sorted(
        repository.staged().items(), key=lambda item: (order.get(item[0], 2), item[0])
    ):
        before = missing(repository, role, metadata)
        if before is None or signer.public_key.keyid not in {*before.signed, *before.unsigned}:
            continue
        metadata.sign(signer, append=True)
        after = missing(repository, role, metadata)
        if after is None:
            continue
        signed.append(after)
        if after.is_complete and _may_be_published(repository, role, metadata):
            repository.publish(role, metadata)
        else:
            repository.stage(role, metadata)
    if not signed:
        raise UsageError("this key counts for nothing that waits for a signature here")
    _publish_complete(repository)
    return signed


def missing(repository: Repository, role: str, metadata: Metadata[Any]) -> Missing | None:
    """Which signatures staged metadata has and lacks; None: its delegator is not here."""
    payload, signatures = metadata.signed_bytes, metadata.signatures
    if role == Root.type:
        previous = None
        if metadata.signed.version > 1:
            previous = repository.load(Root.type, metadata.signed.version - 1).signed
        both = metadata.signed.get_root_verification_result(previous, payload, signatures)
        return Missing(
            role,
            metadata.signed.version,
            tuple(sorted(both.signed)),
            tuple(sorted(both.unsigned)),
            max(both.first.threshold, both.second.threshold),
            both.verified,
        )
    delegator = _delegator(repository, role)
    if delegator is None:
        return None
    one = delegator.get_verification_result(role, payload, signatures)
    return Missing(
        role,
        metadata.signed.version,
        tuple(sorted(one.signed)),
        tuple(sorted(one.unsigned)),
        one.threshold,
        one.verified,
    )


def _delegator(repository: Repository, role: str) -> Root | Targets | None:
    """Who says which keys sign for the role: what is staged there counts, it will be published first."""
    parent = Root.type if role == Targets.type else Targets.type
    found = repository.staged().get(parent) or repository.newest(parent)
    if found is None:
        return None
    signed: Root | Targets = found.signed
    if isinstance(signed, Targets) and role not in delegated(signed):
        return None
    return signed


def _may_be_published(repository: Repository, role: str, metadata: Metadata[Any]) -> bool:
    """A role never appears before the metadata that says who signs it."""
    if role == Root.type:
        return True
    parent = Root.type if role == Targets.type else Targets.type
    found = repository.newest(parent)
    if parent in repository.staged() or found is None:
        return False
    version: int = metadata.signed.version
    return version > max(repository.versions(role), default=0)


def _publish_complete(repository: Repository) -> None:
    """What was complete before its delegator was: now it counts."""
    for role in (Targets.type, *repository.staged()):
        metadata = repository.staged().get(role)
        if metadata is None or role == Root.type:
            continue
        state = missing(repository, role, metadata)
        if state and state.is_complete and _may_be_published(repository, role, metadata):
            repository.publish(role, metadata)
