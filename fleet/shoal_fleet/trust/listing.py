"""Whether boards would run a release: is it in the signed list of their groups? Reads the controller's metadata."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tuf.api.metadata import Targets

from shoal_contract.errors import TopicError
from shoal_contract.release_targets import group_of, groups_for, path_of, role_of
from shoal_contract.topics import EVERYBODY
from shoal_fleet.errors import RequestError
from shoal_fleet.releases import Release
from shoal_fleet.trust.repository import Repository, delegated


def check_listed(directory: Path, release: Release, groups: Iterable[str | None]) -> None:
    """Whether every board can run it; `groups` are the boards' labels, None: a board without one.

    What a board without a label takes stands in its own configuration: there any list does.

    Raises:
        RequestError: nobody has signed it for one of these groups; names the command that does.
        StateError: the metadata cannot be read.
    """
    repository = Repository(directory)
    targets = repository.targets()
    known = [] if targets is None else [group_of(role) for role in delegated(targets.signed)]
    listing = {group for group in known if group and _lists(repository, group, release)}
    missing = {
        group or EVERYBODY
        for group in groups
        if not (listing if group is None else listing & set(groups_for([group])))
    }
    if missing:
        named = sorted(missing)
        raise RequestError(
            f"nobody has signed {release.title} for {', '.join(named[:5])}: the boards would refuse it;"
            f" shoal trust sign DIR --key KEY --group {named[0]} --add RELEASE, then shoal trust install DIR"
        )


def _lists(repository: Repository, group: str, release: Release) -> bool:
    try:
        metadata: Any = repository.newest(role_of(group))
        path = path_of(group, release.name, release.id)
    except TopicError:
        return False
    if metadata is None or not isinstance(metadata.signed, Targets):
        return False
    target = metadata.signed.targets.get(path)
    return target is not None and target.hashes.get("sha256") == release.id.hex()
