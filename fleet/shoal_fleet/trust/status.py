"""How the signed record stands: who signs what, what waits for signatures, what runs out when. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from shoal_fleet.errors import StateError
from shoal_fleet.trust.repository import Repository, delegated
from shoal_fleet.trust.signing import Missing, missing

WARN_DAYS: Final = {Timestamp.type: 1.0, Snapshot.type: 7.0}
WARN_OFFLINE_DAYS: Final = 30.0
"""What people must sign is said a month ahead."""


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """One role: `alarm` is empty while all is well."""

    role: str
    version: int
    threshold: int
    keys: tuple[str, ...]
    expires: datetime
    days_left: float
    targets: tuple[str, ...]
    alarm: str


@dataclass(frozen=True, slots=True)
class Status:
    """The whole of it."""

    roles: tuple[RoleStatus, ...]
    waiting: tuple[Missing, ...]

    @property
    def alarms(self) -> tuple[str, ...]:
        """What somebody must do."""
        return tuple(f"{role.role}: {role.alarm}" for role in self.roles if role.alarm)


def look(repository: Repository, *, now: datetime) -> Status:
    """How the repository stands at this time.

    Raises:
        StateError: a file of it cannot be read.
    """
    keys = _keys(repository)
    roles = []
    for role in (Root.type, Targets.type, Snapshot.type, Timestamp.type, *_groups(repository)):
        metadata = repository.timestamp() if role == Timestamp.type else repository.newest(role)
        if metadata is not None:
            roles.append(_role(role, metadata, keys.get(role, ((), 1)), now))
    waiting = []
    for role, metadata in repository.staged().items():
        state = missing(repository, role, metadata)
        if state is None:
            raise StateError(f"{role} waits for a signature, and nobody says whose")
        waiting.append(state)
    return Status(tuple(roles), tuple(waiting))


def _role(
    role: str, metadata: Metadata[Any], who: tuple[tuple[str, ...], int], now: datetime
) -> RoleStatus:
    days_left = (metadata.signed.expires - now).total_seconds() / 86400
    alarm = ""
    if days_left <= 0:
        alarm = "has run out: nodes take no release"
    elif days_left < WARN_DAYS.get(role, WARN_OFFLINE_DAYS):
        alarm = f"runs out in {days_left:.1f} days"
    targets = metadata.signed.targets if isinstance(metadata.signed, Targets) else {}
    keys, threshold = who
    return RoleStatus(
        role,
        metadata.signed.version,
        threshold,
        keys,
        metadata.signed.expires,
        days_left,
        tuple(sorted(targets)),
        alarm,
    )


def _keys(repository: Repository) -> dict[str, tuple[tuple[str, ...], int]]:
    found: dict[str, tuple[tuple[str, ...], int]] = {}
    root, targets = repository.root(), repository.targets()
    if root is not None:
        for name, role in root.signed.roles.items():
            found[name] = (tuple(role.keyids), role.threshold)
    if targets is not None:
        for name, role in delegated(targets.signed).items():
            found[name] = (tuple(role.keyids), role.threshold)
    return found


def _groups(repository: Repository) -> list[str]:
    top = {Root.type, Targets.type, Snapshot.type}
    return [role for role in repository.roles() if role not in top]
