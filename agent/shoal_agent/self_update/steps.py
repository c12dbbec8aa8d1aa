"""What the switcher does next in a trial. Pure: nothing is read or written here.

Every act may be cut off and is then decided anew from what is on the disk, so each one may be done twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shoal_agent.self_update.standing import Trial

MAX_STARTS: Final = 3
"""So many times a new release may be waited for, power cuts among them; then the one before is back."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is true now.

    Attributes:
        current: the tree that `current` leads to.
        restarted: this process has restarted the agent since it moved or found the link.
        answer: the token that the running agent last wrote; empty: none.
        waited_s, limit_s: how long it has been waited for since then, and may be.
    """

    current: str
    restarted: bool
    answer: str
    waited_s: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class Point:
    """Lead `current` to this tree."""

    tree: str


@dataclass(frozen=True, slots=True)
class Restart:
    """Restart the agent, of whatever tree is current."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done yet."""


@dataclass(frozen=True, slots=True)
class Keep:
    """The new release did well: the trial is over."""


@dataclass(frozen=True, slots=True)
class GoBack:
    """It did not: it is refused with this reason, and the tree before is to run again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Returned:
    """The tree before is current and was restarted: the trial is over."""


Act = Point | Restart | Wait | Keep | GoBack | Returned


def next_act(trial: Trial, seen: Seen) -> Act:
    """The one act that is next; after it, it is asked again."""
    if trial.phase == "returning":
        if seen.current != trial.previous:
            return Point(trial.previous)
        return Returned() if seen.restarted else Restart()
    if trial.starts > MAX_STARTS:
        return GoBack(f"{trial.tree} was not healthy after {MAX_STARTS} starts")
    if seen.current != trial.tree:
        return Point(trial.tree)
    if seen.answer == trial.token:
        return Keep()
    if not seen.restarted:
        return Restart()
    if seen.waited_s >= seen.limit_s:
        return GoBack(f"{trial.tree} was not healthy within {seen.limit_s:g} s")
    return Wait()
