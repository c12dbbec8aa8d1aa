"""When the next wave may open and how large it is, by what is counted so far. Pure."""

import math
from dataclasses import dataclass
from typing import Final

from shoal_fleet.chances import chance_of_at_least, upper_share
from shoal_fleet.rollout_roster import Counts
from shoal_fleet.rollout_state import Options, Standing

GATE_SHARE: Final = 0.9
TOLERATED_SHARE: Final = 0.02
STRANGE_BELOW: Final = 0.2
"""Failures that are less likely than this are strange: a wave waits for its slow nodes while all of them
failing would be, and the next one is no larger while those that have failed are."""
DOUBT: Final = 0.2
"""How sure a wave's size is that the release is no worse than it takes it to be: 1 - DOUBT."""
CANARY_SHARE: Final = 0.02
CANARY_MOST: Final = 20
CANARY_LEAST: Final = 6


@dataclass(frozen=True, slots=True)
class Gate:
    """What stands between a wave and the next one.

    Attributes:
        claimed, answered, needed: leases of the wave that were claimed, have an answer, and must have one.
        size: how many leases the wave has.
        unanswered: leases without an answer, of all waves.
        is_strange: all of those failing, beside what has failed, would be.
    """

    claimed: int
    answered: int
    needed: int
    size: int
    unanswered: int
    is_strange: bool

    @property
    def is_passed(self) -> bool:
        """The next wave may open."""
        return (
            self.claimed >= self.size
            and self.answered >= self.needed
            and not (self.unanswered and self.is_strange)
        )

    @property
    def why(self) -> str:
        """What is missing, in words; empty: nothing."""
        if self.claimed < self.size:
            return f"{self.claimed} of {self.size} leases are claimed"
        if self.answered < self.needed:
            return f"{self.answered} of {self.size} have answered, {self.needed} must"
        if not self.is_passed:
            return f"{self.unanswered} have not answered: all of them failing would be strange"
        return ""


def gate(counts: Counts, wave: int, wave_size: int) -> Gate:
    """The gate behind this wave. Before the first one (0) nothing is in the way."""
    unanswered = counts.at(Standing.OFFERED)
    return Gate(
        claimed=counts.leases.get(wave, 0),
        answered=counts.resolved.get(wave, 0),
        needed=math.ceil(GATE_SHARE * wave_size),
        size=wave_size,
        unanswered=unanswered,
        is_strange=is_strange(counts.all_failures + unanswered, counts.all_started),
    )


def is_strange(failures: int, started: int) -> bool:
    """Whether a tolerable release would rarely have so many."""
    return chance_of_at_least(failures, started, TOLERATED_SHARE) < STRANGE_BELOW


def first_wave(options: Options, nodes: int) -> int:
    """How many leases the first wave has."""
    if options.first_wave is not None:
        return options.first_wave
    return max(CANARY_LEAST, min(CANARY_MOST, math.ceil(CANARY_SHARE * nodes)))


def worst_share(failures: int, started: int) -> float:
    """As bad as the release can still be taken to be, but for the doubt."""
    return upper_share(failures, started, DOUBT)


def next_size(options: Options, nodes: int, wave_size: int, failures: int, started: int) -> int:
    """As many as may be started when the release is as bad as it can still be taken to be."""
    worst = worst_share(failures, started)
    most = math.ceil(wave_size * options.factor)
    if worst > TOLERATED_SHARE:
        most = min(most, math.ceil(options.budget / (worst - TOLERATED_SHARE)))
    return max(most, first_wave(options, nodes))


def coming_waves(
    options: Options,
    nodes: int,
    *,
    waiting: int,
    wave_size: int = 0,
    free: int = 0,
    started: int = 0,
    failures: int = 0,
) -> list[int]:
    """How many of the `waiting` nodes each wave from now on starts when nothing more fails.

    Of `nodes` in the whole rollout, `started` ever got a lease. The wave that is open has `wave_size` leases, of
    which `free` are nobody's; 0: none is open yet.
    """
    sizes: list[int] = []
    size = free
    while waiting > 0:
        if size > 0:
            sizes.append(min(size, waiting))
            waiting -= sizes[-1]
            started += sizes[-1]
        if wave_size:
            wave_size = next_size(options, nodes, wave_size, failures, started)
        else:
            wave_size = first_wave(options, nodes)
        size = wave_size
    return sizes
