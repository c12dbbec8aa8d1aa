"""When a board asks for a certificate: pure, but for the chances that are passed in.

The wall clock of a board may be anything. Before a certificate's time it is wrong for sure, and nothing is done until it
is right; far behind it, a renewal is asked for, and then not again for a share of the certificate's life.
"""

from typing import Final

from shoal_agent.identity.store import Facts
from shoal_agent.identity.task import Outcome

LOOK_EVERY_S: Final = 60.0
"""So soon is a clock noticed that was put right."""
FIRST_S: Final = 1.0
LONGEST_S: Final = 60.0
HOPELESS_S: Final = 300.0
CLOCK_TOLERANCE_MS: Final = 300_000

_RENEW_AT: Final = 1 / 3
_SPREAD: Final = 1 / 10
_AGAIN: Final = 1 / 6
_SECOND_MS: Final = 1000
_MOST_DOUBLINGS: Final = 10


def renews_at_ms(facts: Facts) -> int:
    """A third into its life, and up to a tenth later: each key has its own moment, whenever it is asked for."""
    share = int(facts.key[:8] or "0", 16) / 0xFFFFFFFF
    life_ms = facts.not_after_ms - facts.not_before_ms
    return facts.not_before_ms + round(life_ms * (_RENEW_AT + share * _SPREAD))


def is_due(facts: Facts | None, *, node: str, now_ms: int) -> bool:
    """Whether to ask now: for the first certificate, one in another name, or one that is old enough."""
    if facts is None or facts.node != node:
        return True
    return not is_clock_behind(facts, now_ms) and now_ms >= renews_at_ms(facts)


def look_in_s(facts: Facts | None, *, now_ms: int, quiet_s: float) -> float:
    """When to look again, where nothing is due: at the next moment, but soon enough for a clock that is set.

    Args:
        facts: of the certificate in use.
        now_ms: the wall clock.
        quiet_s: nothing is asked for during so long.
    """
    if facts is None:
        return LOOK_EVERY_S
    until_s = (renews_at_ms(facts) - now_ms) / _SECOND_MS
    return min(LOOK_EVERY_S, max(FIRST_S, until_s, quiet_s))


def is_clock_behind(facts: Facts, now_ms: int) -> bool:
    """The clock says that our certificate was not issued yet."""
    return now_ms < facts.not_before_ms


def expires_soon(facts: Facts, now_ms: int) -> bool:
    """Less than a third of its life is left."""
    return facts.not_after_ms - now_ms < (facts.not_after_ms - facts.not_before_ms) / 3


def quiet_s(facts: Facts) -> float:
    """How long no further certificate is asked for behind an issue, whatever the clock says."""
    return (facts.not_after_ms - facts.not_before_ms) / _SECOND_MS * _AGAIN


def wait_s(outcome: Outcome, failures: int, chance: float) -> float:
    """How long to wait after an attempt without a certificate; full jitter.

    Args:
        outcome: of the attempt.
        failures: in a row, this one included.
        chance: 0 to 1, drawn for this wait.
    """
    match outcome.kind:
        case "pending":
            return max(FIRST_S, outcome.retry_s * (1 + chance) / 2)
        case "refused":
            longest = outcome.retry_s or HOPELESS_S
            return longest * (1 + chance) / 2
    window: float = min(LONGEST_S, FIRST_S * 2.0 ** min(failures, _MOST_DOUBLINGS))
    return window * chance


def clock_off_s(outcome: Outcome, now_ms: int) -> float:
    """By how much our clock is ahead of the controller's; 0 where that is little, or was not told."""
    if not outcome.door_ms or abs(now_ms - outcome.door_ms) <= CLOCK_TOLERANCE_MS:
        return 0.0
    return (now_ms - outcome.door_ms) / _SECOND_MS
