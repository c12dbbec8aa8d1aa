"""Who signs what: makes the next root, targets and group metadata. What is made is staged; `signing` does the rest.

Every step works on a plain directory, on a machine without a network.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

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
from shoal_fleet.trust.repository import Repository, delegated

ONLINE: Final = "online"
ONLINE_ROLES: Final = (Snapshot.type, Timestamp.type)
ROTATED: Final = (Root.type, Targets.type, ONLINE)


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
    roles = delegated(targets)
    name = _role(group)
    if old is not None:
        if name not in roles or tuf_key(old).keyid not in roles[name].keyids:
            raise UsageError(f"the old key does not sign for the group {group}")
        targets.revoke_key(tuf_key(old).keyid, name)
    if new is not None:
        _delegate(targets, group, new)
    if name not in delegated(targets) or not delegated(targets)[name].keyids:
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
    if targets is None or name not in delegated(targets.signed):
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
    name, roles = _role(group), delegated(targets)
    if name not in roles:
        roles[name] = DelegatedRole(name, [], 1, terminating=True, paths=[pattern_of(group)])
    targets.add_key(tuf_key(public), name)


def _role(group: str) -> str:
    try:
        return role_of(check_group(group))
    except TopicError as exc:
        raise UsageError(str(exc)) from exc


def groups_in(targets: Targets) -> list[str]:
    """The groups that have release keys."""
    return [group for name in delegated(targets) if (group := group_of(name)) is not None]


def in_days(days: float, *, now: datetime) -> datetime:
    """An expiry, in whole seconds as metadata has it."""
    return (now + timedelta(days=days)).replace(microsecond=0)
