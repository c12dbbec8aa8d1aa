"""The rows of `make bench-trust`: which tests count what, and what is wanted of the counts. Pure.

The tests themselves are run, none is copied: each records how many it tried, how many of them got through, and
where time counts the slowest.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

HANG_S, ALARM_S, RECOVERY_S = 0.1, 60.0, 60.0
COMMANDS = "tests/shoal_agent/test_hostile_commands.py"
WANTED = "tests/shoal_agent/test_wanted.py"
FLIPS = "tests/shoal_agent/updater/test_bit_flips.py"
JUDGE = "tests/shoal_agent/updater/test_judge.py"
ENROLMENT = "tests/shoal_fleet/identity/test_enrolment.py"
FUZZ = "tests/shoal_contract/test_decoder_fuzz.py"
MATRIX = "tests/system/test_certificate_matrix.py"
CLOCKS = "tests/system/test_enrolment_clocks.py"
FAKETIME = "tests/system/test_faketime.py"
TRAVELS = "tests/shoal_agent/updater/test_signed_releases.py"

_COMMAND_TEST = f"{COMMANDS}::test_nothing_that_was_not_said_for_here_and_now_moves_the_device"
_WANTED_TEST = f"{WANTED}::test_nothing_that_was_not_signed_for_here_and_now_is_followed"
_FLIP_TEST = f"{FLIPS}::test_no_bit_of_ten_thousand_can_be_flipped_and_pass_for_another_release"
_ZEROED_TEST = f"{JUDGE}::test_lost_metadata_and_an_old_timestamp_bring_nothing_back"
_JUMP_TEST = (
    f"{JUDGE}::test_a_clock_that_jumps_in_the_middle_of_an_update_takes_nothing_bad_and_recovers"
)
_WRONG_TEST = f"{JUDGE}::test_a_wrong_clock_takes_nothing_that_has_run_out_and_recovers"
_FUZZ_TEST = (
    f"{FUZZ}::test_whatever_comes_is_a_value_or_the_decoders_error_within_a_tenth_of_a_second"
)
IDLE_TEST = f"{TRAVELS}::test_only_what_changed_travels"


@dataclass(frozen=True, slots=True)
class Row:
    """A figure: the tests of the short form, those of the full one, and its goal.

    Args:
        name: of the figure.
        bad: what must not happen, as a word.
        short: pytest's ids; `full`: those of the full counts, else the same.
        tries: so many at least.
        within_s: the slowest that was recorded must not take longer.
        weight: how long it takes beside the others, roughly.
    """

    name: str
    bad: str
    short: tuple[str, ...]
    full: tuple[str, ...] = ()
    tries: int = 1
    within_s: float | None = None
    weight: int = 1

    def tests(self, *, is_full: bool) -> tuple[str, ...]:
        """The ids to run."""
        return self.full if is_full and self.full else self.short


ROWS = (
    Row(
        "hostile commands at the simulated MCU",
        "executed",
        (f"{_COMMAND_TEST}[full]",),
        tries=100_000,
        weight=9,
    ),
    Row("hostile wanted states", "followed", (f"{_WANTED_TEST}[bench]",), tries=14_000, weight=4),
    Row(
        "single bits flipped in metadata, manifest, delta, model",
        "accepted",
        (f"{_FLIP_TEST}[bench]",),
        (f"{_FLIP_TEST}[long]",),
        tries=10_000,
        weight=5,
    ),
    Row(
        "metadata files zeroed, every subset, then an old timestamp",
        "accepted",
        (f"{_ZEROED_TEST}[zeroed]",),
        tuple(f"{_ZEROED_TEST}[{damage}]" for damage in ("zeroed", "removed", "halved")),
        tries=64,
        weight=4,
    ),
    Row(
        "certificates that are not good", "let in", (MATRIX,), tries=54, within_s=ALARM_S, weight=6
    ),
    Row(
        "one token raced by 50 boards",
        "winners but one",
        (f"{ENROLMENT}::test_of_fifty_boards_with_one_token_one_wins",),
        tries=50,
    ),
    Row(
        "a token used twice, expired, revoked, unknown",
        "admitted",
        (
            f"{ENROLMENT}::test_a_token_is_good_once",
            f"{ENROLMENT}::test_a_token_that_has_expired_was_revoked_or_is_none_is_refused",
        ),
        tries=7,
    ),
    Row(
        "releases by a clock in 1970, -1 d, +1 d, +10 y, jumping in mid-update",
        "bad ones accepted",
        (_WRONG_TEST, _JUMP_TEST),
        tries=13,
    ),
    Row(
        "boards that enrol and connect by such a clock (faketime)",
        "bad ones accepted",
        (CLOCKS, FAKETIME),
        tries=5,
        within_s=RECOVERY_S,
        weight=3,
    ),
    Row(
        "mutated CBOR, COSE, messages, manifests, frames at their decoders",
        "crashes",
        (f"{_FUZZ_TEST}[million]",),
        (f"{_FUZZ_TEST}[ten]",),
        tries=1_000_000,
        within_s=HANG_S,
        weight=8,
    ),
)


@dataclass(slots=True)
class Outcome:
    """What the tests of one file and name said."""

    tries: int = 0
    bad: int = 0
    worst_s: float = 0.0
    idle_bytes: int | None = None
    ran: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Line:
    """A row as it is printed; `is_met` None: it is only told."""

    figure: str
    measured: str
    goal: str
    is_met: bool | None


def read(report: bytes) -> dict[str, Outcome]:
    """What a JUnit report of pytest says, by `path::test[id]`."""
    found: dict[str, Outcome] = {}
    for case in ET.fromstring(report).iter("testcase"):  # noqa: S314 - pytest wrote it for us
        path = case.get("classname", "").replace(".", "/") + ".py"
        outcome = found.setdefault(f"{path}::{case.get('name')}", Outcome())
        outcome.ran += 1
        outcome.failures += [case.get("name", "")] * (
            len(case.findall("failure")) + len(case.findall("error"))
        )
        outcome.skipped += [skip.get("message", "") for skip in case.findall("skipped")]
        for told in case.iter("property"):
            value = told.get("value", "")
            match told.get("name"):
                case "tries":
                    outcome.tries += int(value)
                case "bad":
                    outcome.bad += int(value)
                case "worst_s":
                    outcome.worst_s = max(outcome.worst_s, float(value))
                case "idle_bytes":
                    outcome.idle_bytes = int(value)
    return found


def of(tests: Sequence[str], outcomes: Mapping[str, Outcome]) -> Outcome:
    """The outcomes of these ids together; an id without a test or a parameter means all below it."""
    whole = Outcome()
    for name, outcome in outcomes.items():
        if not any(name == test or re.match(re.escape(test) + r"(::|\[)", name) for test in tests):
            continue
        whole.ran += 1
        whole.tries += outcome.tries
        whole.bad += outcome.bad
        whole.worst_s = max(whole.worst_s, outcome.worst_s)
        whole.failures += outcome.failures
        whole.skipped += outcome.skipped
        if outcome.idle_bytes is not None:
            whole.idle_bytes = outcome.idle_bytes
    return whole


def judged(row: Row, outcome: Outcome) -> Line:
    """The line of a row. What was skipped or failed is not met: nothing was shown."""
    goal = f"0 of >= {row.tries:,}" + ("" if row.within_s is None else f", <= {row.within_s:g} s")
    measured = f"{outcome.bad:,} {row.bad} of {outcome.tries:,}"
    if row.within_s is not None:
        measured += f", slowest {outcome.worst_s:.3f} s"
    if outcome.failures:
        measured += f"; {len(outcome.failures)} tests failed"
    if outcome.skipped:
        measured += f"; not run: {outcome.skipped[0]}"
    is_met = (
        outcome.ran > 0
        and not outcome.failures
        and not outcome.skipped
        and outcome.bad == 0
        and outcome.tries >= row.tries
        and (row.within_s is None or outcome.worst_s <= row.within_s)
    )
    return Line(row.name, measured, goal, is_met)
