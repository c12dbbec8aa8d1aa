"""Who signs what: makes the next root, targets and group metadata, and says which signatures they still lack.

Pure but for the repository it is given: what is made is staged, what has its signatures becomes the newest.
Every step works on a plain directory, on a machine without a network.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from securesystemslib.signer import Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from shoal_contract.errors import TopicError
from shoal_contract.release_targets import check_group, group_of, path_of, pattern_of, role_of
from shoal_fleet.errors import UsageError
from shoal_fleet.trust.keys import tuf_key
from shoal_fleet.trust.repository import Repository

ONLINE: Final = "online"
ONLINE_ROLES: Final = (Snapshot.type, Timestamp.type)
ROTATED: Final = (Root.type, Targets.type, ONLINE)


@dataclass(frozen=True, slots=True)
class Missing:
    """What staged metadata lacks: `signed` of `threshold` keys have signed, `unsigned` could still."""

    role: str
    version: int
    signed: tuple[str, ...]
    unsigned: tuple[str, ...]
    threshold: int
    is_complete: bool


def begin(
    repository: Repository,
    *,
    roots: list[bytes],
    threshold: int,
    targets: list[bytes],
    online: bytes,
    groups: Mapping[str, list[bytes]],
    expires: datetime,
) -> None:
    """Stage the first root, targets and group metadata.

    Raises:
        UsageError: there is a repository already, or the keys do not fit the threshold.
    """
    if repository.root() is not None or repository.staged():
        raise UsageError(f"{repository.directory} has metadata already")
    if len(set(roots)) != len(roots) or not 1 <= threshold <= len(roots):
        raise UsageError(f"{threshold} of {len(set(roots))} root keys cannot be asked for")
    if not groups:
        raise UsageError("name at least one group, or `all`, with the key that signs its releases")
    root = Root(version=1, expires=expires, consistent_snapshot=True)
    for public in roots:
        root.add_key(tuf_key(public), Root.type)
    root.roles[Root.type].threshold = threshold
    for public in targets:
        root.add_key(tuf_key(public), Targets.type)
    for role in ONLINE_ROLES:
        root.add_key(tuf_key(online), role)
    repository.stage(Root.type, Metadata(root))
    signed = Targets(version=1, expires=expires, delegations=Delegations({}, {}))
    for group, publics in groups.items():
        for public in publics:
            _delegate(signed, group, public)
    repository.stage(Targets.type, Metadata(signed))
    for group in groups:
        repository.stage(role_of(group), Metadata(Targets(version=1, expires=expires)))


def rotate(
    repository: Repository,
    role: str,
    *,
    old: bytes | None,
    new: bytes | None,
    expires: datetime,
) -> None:
    """Stage the next root, with `new` in the place of `old`; neither: only a later expiry.

    Raises:
        UsageError: `old` does not sign for the role, or too few keys would be left.
    """
    root = _next(repository, Root.type, expires)
    for name in ONLINE_ROLES if role == ONLINE else (role,):
        if old is not None and tuf_key(old).keyid not in root.roles[name].keyids:
            raise UsageError(f"the old key does not sign for {role}")
        if new is not None:
            root.add_key(tuf_key(new), name)
        if old is not None:
            root.revoke_key(tuf_key(old).keyid, name)
        if len(root.roles[name].keyids) < root.roles[name].threshold:
            raise UsageError(f"{role} would have fewer keys than must sign: name a new one")
    repository.stage(Root.type, Metadata(root))


def rotate_group(
    repository: Repository, group: str, *, old: bytes | None, new: bytes | None, expires: datetime
) -> None:
    """Stage the next targets: `new` signs for the group, `old` no longer. A group that is new begins.

    Releases that the old key signed count until the group is signed anew, which is staged with it.

    Raises:
        UsageError: `old` does not sign for the group, or nobody would.
    """
    targets = _next(repository, Targets.type, expires)
    roles = _delegated(targets)
    name = _role(group)
    if old is not None:
        if name not in roles or tuf_key(old).keyid not in roles[name].keyids:
            raise UsageError(f"the old key does not sign for the group {group}")
        targets.revoke_key(tuf_key(old).keyid, name)
    if new is not None:
        _delegate(targets, group, new)
    if name not in _delegated(targets) or not _delegated(targets)[name].keyids:
        raise UsageError(f"nobody would sign for the group {group}: name a new key")
    repository.stage(Targets.type, Metadata(targets))
    if repository.newest(name) is None:
        repository.stage(name, Metadata(Targets(version=1, expires=expires)))
    elif old is not None:
        repository.stage(name, Metadata(_next(repository, name, expires)))


def list_releases(
    repository: Repository,
    group: str,
    *,
    add: Iterable[tuple[str, bytes]],
    remove: Iterable[str],
    expires: datetime,
) -> None:
    """Stage the group's next metadata, with these releases (model, manifest) more and these paths less.

    Raises:
        UsageError: the group is unknown, or it does not list what is to be removed.
    """
    targets = repository.targets() or repository.staged().get(Targets.type)
    name = _role(group)
    if targets is None or name not in _delegated(targets.signed):
        raise UsageError(
            f"the group {group} is not in the signed targets: `shoal trust rotate` adds it"
        )
    signed = _next(repository, name, expires)
    for path in remove:
        if signed.targets.pop(path, None) is None:
            raise UsageError(f"{path} is not listed for {group}")
    for model, manifest in add:
        target = TargetFile.from_data("x", manifest, ["sha256"])
        target.path = path_of(group, model, bytes.fromhex(target.hashes["sha256"]))
        signed.targets[target.path] = target
    repository.stage(name, Metadata(signed))


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
    if isinstance(signed, Targets) and role not in _delegated(signed):
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


def _next(repository: Repository, role: str, expires: datetime) -> Any:
    """What is staged or newest of a role, as the next version and not yet signed."""
    waiting = repository.staged().get(role)
    if waiting is not None:
        waiting.signed.expires = expires
        return waiting.signed
    newest = repository.newest(role)
    if newest is None:
        raise UsageError(
            f"there is no {role} in {repository.directory}: begin with `shoal trust init`"
        )
    newest.signed.version += 1
    newest.signed.expires = expires
    return newest.signed


def _delegate(targets: Targets, group: str, public: bytes) -> None:
    name, roles = _role(group), _delegated(targets)
    if name not in roles:
        roles[name] = DelegatedRole(name, [], 1, terminating=True, paths=[pattern_of(group)])
    targets.add_key(tuf_key(public), name)


def _delegated(targets: Targets) -> dict[str, DelegatedRole]:
    if targets.delegations is None or targets.delegations.roles is None:
        return {}
    return targets.delegations.roles


def _role(group: str) -> str:
    try:
        return role_of(check_group(group))
    except TopicError as exc:
        raise UsageError(str(exc)) from exc


def groups_in(targets: Targets) -> list[str]:
    """The groups that have release keys."""
    return [group for name in _delegated(targets) if (group := group_of(name)) is not None]


def in_days(days: float, *, now: datetime) -> datetime:
    """An expiry, in whole seconds as metadata has it."""
    return (now + timedelta(days=days)).replace(microsecond=0)
