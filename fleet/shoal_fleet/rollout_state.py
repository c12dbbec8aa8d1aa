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
    """How a rollout goes out.

    Attributes:
        first_wave: how many leases the first wave has; None: 2 % of the nodes, 6 to 20.
        budget: how many nodes more than is tolerable a wave may break, as far as is known by then.
        factor: a wave is at most so many times as large as the one before.
        overdue_s: when no answer is a failure.
        hold_on_any: the first failure already holds it for a person, however likely one is by chance.
    """

    first_wave: int | None = None
    budget: float = 3.0
    factor: float = 8.0
    overdue_s: float = 1800.0
    hold_on_any: bool = False


class Member(msgspec.Struct, frozen=True):
    """One node. `wave` is the wave whose lease it holds; `seen`: a person knows of its failure.

    `kind`: the class of hardware. `unheard_ms`: how much of the rollout's time had not counted when it
    was offered the release.
    """

    standing: Standing = Standing.WAITING
    wave: int = 0
    offered_ms: int | None = None
    resolved_ms: int | None = None
    reason: str = ""
    seen: bool = False
    unheard_ms: int = 0
    kind: str = ""


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """Where the whole stands; where each node stands is in the `Roster`.

    `wave` counts from 1; `wave_size` is how many leases it has. `unheard_ms`: time that does not count
    against nodes, because nobody could hear them.
    """

    options: Options
    status: Status = Status.PREPARING
    reason: str = ""
    wave: int = 0
    wave_size: int = 0
    unheard_ms: int = 0


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
    """These nodes now belong to the group, too: each with its class of hardware."""

    nodes: tuple[tuple[str, str], ...]


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
