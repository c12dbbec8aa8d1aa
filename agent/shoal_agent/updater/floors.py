"""What the node has already seen of the update metadata: nothing older counts, whatever the files say. Pure.

The metadata files may be lost or damaged by a power cut; these numbers stand in the journal. A version says
something as long as one of the keys still signs: when all are others, versions may start anew.
"""

from typing import Annotated

import msgspec

from shoal_contract.errors import DecodeError

Version = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Floors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest versions that were verified, and whose signatures they bore.

    Attributes:
        root: version of the root.
        timestamp, snapshot: versions of these; issued_s: when that timestamp was signed (Unix time).
        timestamp_keys: ids of the keys that may sign the timestamp, which names the snapshot's version.
        roles: versions of targets and of every group's role, as the snapshot names them.
        snapshot_keys: ids of the keys that may sign the snapshot.
    """

    root: Version = 0
    timestamp: Version = 0
    snapshot: Version = 0
    issued_s: Version = 0
    timestamp_keys: list[str] = []
    roles: dict[str, Version] = {}
    snapshot_keys: list[str] = []


def older(seen: Floors, floors: Floors) -> str:
    """Why what was seen lies below the floors; empty: it does not."""
    if seen.root < floors.root:
        return f"the root of version {seen.root} is older than {floors.root}, which was here"
    if _still(seen.timestamp_keys, floors.timestamp_keys):
        for name in ("timestamp", "snapshot"):
            version, floor = getattr(seen, name), getattr(floors, name)
            if version < floor:
                return f"the {name} of version {version} is older than {floor}, which was here"
    if _still(seen.snapshot_keys, floors.snapshot_keys):
        for name, floor in sorted(floors.roles.items()):
            version = seen.roles.get(name, 0)
            if version < floor:
                return f"{name} of version {version} is older than {floor}, which was here"
    return ""


def raised(floors: Floors, seen: Floors) -> Floors:
    """The floors after this was verified; none gets lower unless all its keys are others.

    What `older` refuses never comes here from an honest caller; it would change nothing that counts.
    """
    if seen.root < floors.root:
        return floors
    if _still(seen.timestamp_keys, floors.timestamp_keys):
        timestamp = max(seen.timestamp, floors.timestamp)
        snapshot = max(seen.snapshot, floors.snapshot)
        issued_s = max(seen.issued_s, floors.issued_s)
    else:
        timestamp, snapshot, issued_s = seen.timestamp, seen.snapshot, seen.issued_s
    roles = dict(seen.roles)
    if _still(seen.snapshot_keys, floors.snapshot_keys):
        for name, floor in floors.roles.items():
            roles[name] = max(roles.get(name, 0), floor)
    return Floors(
        root=seen.root,
        timestamp=timestamp,
        snapshot=snapshot,
        issued_s=issued_s,
        timestamp_keys=seen.timestamp_keys,
        roles=roles,
        snapshot_keys=seen.snapshot_keys,
    )


def encode(floors: Floors) -> bytes:
    """For the journal."""
    return msgspec.json.encode(floors)


def decode(data: bytes) -> Floors:
    """From the journal.

    Raises:
        DecodeError: a later version wrote it.
    """
    try:
        return msgspec.json.decode(data, type=Floors)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise DecodeError(f"the floors of the update metadata cannot be read: {exc}") from exc


def _still(seen: list[str], before: list[str]) -> bool:
    """Whether somebody who signed before still may: what they signed then could be played again."""
    return not set(before).isdisjoint(seen)
