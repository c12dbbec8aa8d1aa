"""The rollout engine's values: where a rollout and its nodes stand, what happens, what is to be done. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

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
    """Where a rollout stands. The last two are final.

    PREPARING: the deltas for the next wave are built. AWAITING: for a second person's approval. HELD: by the
    rules, for a person. PAUSED: by a person.
    """

    PREPARING = "preparing"
    RUNNING = "running"
    AWAITING = "awaiting"
    HELD = "held"
    PAUSED = "paused"
    STOPPED = "stopped"
    DONE = "done"

    @property
    def is_open(self) -> bool:
        """Something may still happen."""
        return self not in {Status.STOPPED, Status.DONE}


class Approval(StrEnum):
    """What a rollout waits with for a second person."""

    NONE = ""
    START = "start"
    CANARY = "canary"


class Freeze(msgspec.Struct, frozen=True, kw_only=True):
    """No wave opens and no lease is given, until a moment or (None) until it is ended."""

    reason: str = ""
    by: str = ""
    until_ms: int | None = None

    def holds_at(self, at_ms: int) -> bool:
        """Whether it is on at this moment."""
        return self.until_ms is None or at_ms < self.until_ms


USUAL_PRIORITY: Final = 4


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a rollout goes out.

    Attributes:
        first_wave: how many leases the first wave has; None: 2 % of the nodes, 6 to 20.
        budget: how many nodes more than is tolerable a wave may break, as far as is known by then.
        factor: a wave is at most so many times as large as the one before.
        overdue_s: when no answer is a failure.
        hold_on_any: the first failure already holds it for a person, however likely one is by chance.
        window: when leases are given, by the clock of the node's site; empty: always.
        tz: the time zone of nodes without the label `tz`.
        priority: of two rollouts that could give a node a lease, the one with the higher gives it.
        approval: what waits for a second person.
        overrides_freeze: it goes on while the fleet is frozen.
    """

    first_wave: int | None = None
    budget: float = 3.0
    factor: float = 8.0
    overdue_s: float = 1800.0
    hold_on_any: bool = False
    window: str = ""
    tz: str = "UTC"
    priority: int = USUAL_PRIORITY
    approval: Approval = Approval.NONE
    overrides_freeze: bool = False


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
    against nodes, because nobody could hear them. `by`: who started it. `freeze`: the fleet's, as far as the
    rollout was told.
    """

    options: Options
    status: Status = Status.PREPARING
    reason: str = ""
    wave: int = 0
    wave_size: int = 0
    unheard_ms: int = 0
    by: str = ""
    approved_by: str = ""
    freeze: Freeze | None = None

    def is_frozen_at(self, at_ms: int) -> bool:
        """Whether a freeze keeps it from opening waves and giving leases."""
        return (
            self.freeze is not None
            and not self.options.overrides_freeze
            and self.freeze.holds_at(at_ms)
        )


# ------------------------------------------------------------------ events
@dataclass(frozen=True, slots=True)
class Prepared:
    """The deltas from what waiting nodes have are built: the next wave may open."""


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
class Pause:
    """A person wants nobody to be offered it for now."""

    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Resume:
    """A person has looked at the failures so far and wants to go on."""

    by: str = ""


@dataclass(frozen=True, slots=True)
class Approve:
    """A second person agrees."""

    by: str


@dataclass(frozen=True, slots=True)
class Frozen:
    """The fleet's freeze is this now; None: it was ended."""

    freeze: Freeze | None


@dataclass(frozen=True, slots=True)
class Stop:
    """A person wants no more of it. `back`: nodes that serve it go back, too."""

    reason: str
    back: bool = False
    by: str = ""


Event = Prepared | Ready | Joined | Serves | Fails | Tick | Pause | Resume | Approve | Frozen | Stop


# ------------------------------------------------------------------ actions
class Deed(StrEnum):
    """What kind of decision a note is about."""

    STARTED = "started"
    PREPARED = "prepared"
    APPROVAL = "approval"
    WAVE = "wave"
    LEASES = "leases"
    FAILED = "failed"
    SERVES = "serves"
    WEIGHED = "weighed"
    HELD = "held"
    PAUSED = "paused"
    RESUMED = "resumed"
    FROZEN = "frozen"
    STOPPED = "stopped"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Prepare:
    """Build the deltas from what waiting nodes have now, then say `Prepared`."""


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
    """A decision, its reason and the figures behind it, for the record. `by`: the person whose decision it is."""

    text: str
    deed: Deed
    figures: Mapping[str, float | str] = field(default_factory=dict)
    by: str = ""


Action = Prepare | Offer | Recall | Note
