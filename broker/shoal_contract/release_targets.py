"""How releases are named in the update metadata (TUF), and what that metadata may weigh. Pure.

A group's releases stand below `<group>/`, and only the role `group-<group>` may list them there. A target's
content is the release's manifest, so its sha256 is the release's id (decision 0009).
"""

import re
from collections.abc import Iterable
from typing import Final

from shoal_contract.errors import TopicError
from shoal_contract.messages import MAX_MESSAGE_BYTES
from shoal_contract.topics import EVERYBODY

MAX_METADATA_BYTES: Final = MAX_MESSAGE_BYTES
"""A metadata file is one retained message."""
MAX_GROUP_CHARACTERS: Final = 40
TIMESTAMP_FILE: Final = "timestamp.json"
ISSUED_FIELD: Final = "x-shoal-issued"
"""In timestamp metadata: when it was signed, in Unix seconds. A board without a clock learns the time from it."""

_GROUP = re.compile(r"[A-Za-z0-9._-]+")
_ROLE: Final = "group-"
_NAMED_BYTES: Final = 8


def check_group(group: str) -> str:
    """The group itself when releases can be signed for it.

    Raises:
        TopicError: it is too long, or has other characters than a topic's level may have.
    """
    if len(group) > MAX_GROUP_CHARACTERS or not _GROUP.fullmatch(group):
        raise TopicError(
            f"{group[:80]!r} is no group that releases can be signed for: 1 to {MAX_GROUP_CHARACTERS}"
            " of A-Z, a-z, 0-9, '.', '_' and '-'"
        )
    return group


def role_of(group: str) -> str:
    """The delegated role whose keys sign this group's releases."""
    return _ROLE + check_group(group)


def group_of(role: str) -> str | None:
    """The group of a delegated role; None for a role that is none of these."""
    group = role.removeprefix(_ROLE)
    return group if group != role and group else None


def pattern_of(group: str) -> str:
    """The paths that the group's role may list: one level below the group."""
    return f"{check_group(group)}/*"


def path_of(group: str, model: str, release: bytes) -> str:
    """The target that is this release of this model, for this group.

    The first 8 bytes of the id are for people and lookups; what counts is the whole hash in the metadata.
    """
    return f"{check_group(group)}/{model}.{release[:_NAMED_BYTES].hex()}"


def groups_for(groups: Iterable[str]) -> tuple[str, ...]:
    """In which groups a node with these groups looks for a release: its own first, everybody's last."""
    return (*sorted(set(groups) - {EVERYBODY}), EVERYBODY)
