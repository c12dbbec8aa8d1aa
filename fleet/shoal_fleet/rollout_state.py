"""The rollout engine's values: where a rollout and its nodes stand, what happens, what is to be done. Pure."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec


class Standing(StrEnum):
    """Where a node stands in a rollout."""

    WAITING = "waiting"
    OFFERED = "offered"
    SERVING = "serving"
    FAILED = "failed"
    EXCLUDED = "excluded"
    RECALLED = "recalled"


class Status(StrEnum):
    """Where a rollout stands. The last two are final."""

    PREPARING = "preparing"
    RUNNING = "running"
    HELD = "held"
    STOPPED = "stopped"
    DONE = "done"

    @property
    def is_open(self) -> bool:
        """Something may still happen."""
        return self not in {Status.STOPPED, Status.DONE}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a rollout goes out. `first_wave` None: 2 % of the nodes, 6 to 20."""

    first_wave: int | None = None
    factor: float = 2.0
    overdue_s: float = 1800.0


class Member(msgspec.Struct, frozen=True):
    """One node. `wave` is the wave whose lease it holds; `seen`: a person knows of its failure.

    `grace_ms`: how much of the time since the offer does not count, because nobody could hear it.
    """

    standing: Standing = Standing.WAITING
    wave: int = 0
    offered_ms: int | None = None
    resolved_ms: int | None = None
    reason: str = ""
    seen: bool = False
    grace_ms: int = 0


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """The whole state. `members` in the order in which they are offered the release.

    `wave` counts from 1; `wave_size` is how many leases it has.
    """

    options: Options
    members: dict[str, Member]
    status: Status = Status.PREPARING
    reason: str = ""
    wave: int = 0
    wave_size: int = 0

    def count(self, *standings: Standing) -> int:
        """How many members stand there."""
        return sum(member.standing in standings for member in self.members.values())

    @property
    def started(self) -> int:
        """How many nodes ever got a lease."""
        return sum(member.offered_ms is not None for member in self.members.values())

    @property
    def failures(self) -> int:
        """How many of those failed."""
        return sum(
            member.standing is Standing.FAILED and member.offered_ms is not None
            for member in self.members.values()
        )


# ------------------------------------------------------------------ events
@dataclass(frozen=True, slots=True)
class Prepared:
    """The deltas are built: the first wave may open."""


@dataclass(frozen=True, slots=True)
class Ready:
    """These nodes are online and may claim a lease."""

    nodes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Joined:
    """These nodes now belong to the group, too."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Serves:
    """A node serves the release."""

    node: str


@dataclass(frozen=True, slots=True)
class Fails:
    """A node could not bring the release to serve."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Resume:
    """A person has looked at the failures so far and wants to go on."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A person wants no more of it. `back`: nodes that serve it go back, too."""

    reason: str
    back: bool = False


Event = Prepared | Ready | Joined | Serves | Fails | Tick | Resume | Stop


# ------------------------------------------------------------------ actions
@dataclass(frozen=True, slots=True)
class Offer:
    """Let the node want the release."""

    node: str


@dataclass(frozen=True, slots=True)
class Recall:
    """Let the node want again what it wanted before."""

    node: str


@dataclass(frozen=True, slots=True)
class Note:
    """A decision and its reason, for the record."""

    text: str


Action = Offer | Recall | Note
