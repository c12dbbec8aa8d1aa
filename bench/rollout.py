"""Rollouts in virtual time: the engine beside other engines' rules, by what a bad release breaks and how long a good one takes.

The fleet is rollout_fleet.py, the engine under it rollout_ours.py, the others' rules rollout_peers.py, their
settings rollout_settings.py, the picture rollout_plot.py. What the figures mean: docs/benchmarks.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import rollout_plot
from measure import Column, Figure, Goal, Options, Row, Table
from rollout_fleet import RARE_KIND, Board, Course, Release, Rules, course, fleet
from rollout_ours import Shoal
from rollout_settings import PEERS, Setting

NODES = 10_000
SEEDS, QUICK_SEEDS = 21, 3
# For figures that count false stops, "of 100".
GOOD_SEEDS, QUICK_GOOD_SEEDS = 100, 5
SCREENING_SEEDS = 2
BAD, GOOD = Release(0.1, is_silent=True), Release(base=0.01)
# A setting that stops more good releases than this is of no use to anybody.
MOST_FALSE_STOPS = 0.1
# Slower ones are left out of the search: nobody waits for a week.
SLOWEST_H = 72.0
PICTURE = Path(__file__).parents[1] / "build" / "rollout.svg"


@dataclass(frozen=True, slots=True)
class Case:
    """A release, the fleet it goes to, and how many boards it may break in the median."""

    name: str
    nodes: int
    release: Release
    most_broken: float


CASES = (
    Case("reports failure on 10 %", NODES, Release(0.1), 13),
    Case("reports failure on 30 %", NODES, Release(0.3), 8),
    Case("reports failure on 100 %", NODES, Release(1.0), 20),
    Case("silently bricks 10 %", NODES, BAD, 20),
    Case("silently bricks 50 %", NODES, Release(0.5, is_silent=True), 11),
    Case("silently bricks 10 % of 300", 300, BAD, 12),
)
SIZES = (1_000, 10_000, 100_000)


@dataclass(frozen=True, slots=True)
class Judged:
    """One way of rolling out: what it broke with the bad release, how long it took with the good one."""

    name: str
    broken: Figure
    hours: Figure
    false_stops: int
    rollouts: int

    @property
    def is_useful(self) -> bool:
        """It gets through with a good release, nearly always."""
        return self.false_stops <= MOST_FALSE_STOPS * self.rollouts

    def is_as_good_as(self, other: Judged) -> bool:
        """On both axes, and better on one."""
        ours = (self.broken.median, self.hours.median)
        theirs = (other.broken.median, other.hours.median)
        return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]

    def is_better_than(self, other: Judged) -> bool:
        """On both axes."""
        return (
            self.is_useful
            and self.broken.median < other.broken.median
            and self.hours.median < other.hours.median
        )


def run(options: Options, say: Callable[[str], None]) -> Table:
    """The table; the picture goes to build/rollout.svg."""
    seeds = range(QUICK_SEEDS if options.is_quick else SEEDS)
    good_seeds = range(QUICK_GOOD_SEEDS if options.is_quick else GOOD_SEEDS)
    goals = [*_cases(seeds, say), *_good(good_seeds, say), *_canary(seeds, say)]
    ours = _judge("shoal", _ours, seeds, say)
    found: dict[str, list[Judged]] = {}
    for peer, (default, settings) in PEERS.items():
        found[peer] = _front(peer, default, settings, seeds, say)
    everybody = [judged for of_peer in found.values() for judged in of_peer]
    better = [judged.name for judged in everybody if judged.is_better_than(ours)]
    goals.append(Goal("peer settings better on both axes", "", _figure([len(better)]), 0))
    notes = [f"better on both axes: {name}" for name in better]
    notes += _engine_cpu(SIZES[:2] if options.is_quick else SIZES, say)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(rollout_plot.drawn(_points(ours, found)), encoding="utf-8")
    rows = [_row(ours, is_ours=True)]
    for peer, of_peer in found.items():
        rows += [_row(judged, is_ours=False) for judged in _told(of_peer)]
        tried = len(PEERS[peer][1])
        notes.append(f"{peer}: {tried} settings tried, {len(of_peer) - 1} of them at the front")
    return Table(
        title=f"rollout: {NODES:,} boards in virtual time",
        columns=(
            Column("broken", "broken by 10 % silent"),
            Column("hours", "hours to 85 %, good", 2),
            Column("false", "good stopped, %", 0, spread=False),
        ),
        rows=tuple(rows),
        goals=tuple(goals),
        settings=(
            "90 % online, 10 % return with mean 2 days; horizon 14 days",
            "an install takes 5 minutes (median; lognormal, sigma 0.5); of the boards that fail anyway half says so",
            f"medians of {len(seeds)} fleets, of good releases {len(good_seeds)}",
            "a hold counts as a stop: nobody is there to resume; the good release of the table fails on 1 %",
            f"a peer's setting that stops more than {MOST_FALSE_STOPS:.0%} of good releases is left out",
            "peers: their documented rules, written again (bench/rollout_peers.py); none has leases",
        ),
        notes=tuple(notes),
    )


def _ours(seed: int) -> Shoal:
    return Shoal(seed=str(seed))


@lru_cache(maxsize=64)
def _boards(nodes: int, release: Release, seed: int) -> list[Board]:
    return fleet(nodes, release, seed)


def _course(nodes: int, release: Release, seed: int, rules: Rules) -> Course:
    return course(_boards(nodes, release, seed), rules)


def _cases(seeds: Sequence[int], say: Callable[[str], None]) -> list[Goal]:
    goals = []
    for case in CASES:
        say(case.name)
        broken = [_course(case.nodes, case.release, s, _ours(s)).broken for s in seeds]
        goals.append(Goal(f"broken, {case.name}", "nodes", _figure(broken), case.most_broken))
    return goals


def _good(seeds: Sequence[int], say: Callable[[str], None]) -> list[Goal]:
    goals = []
    for base, most in ((0.01, 0.0), (0.02, 2.0)):
        hours, stops = [], 0
        for seed in seeds:
            say(f"good release, {base:.0%} fail, {seed + 1} of {len(seeds)}")
            took = course(fleet(NODES, Release(base=base), seed), _ours(seed))
            stops += bool(took.ended)
            hours.append(float("inf") if took.through_h is None else took.through_h)
        name = f"good release, {base:.0%} fail anyway"
        goals.append(Goal(f"{name}: to 85 %", "h", _figure(hours), 3.5, decimals=2))
        share = stops * 100 / len(seeds)
        goals.append(Goal(f"{name}: false stops of 100", "", _figure([share]), most))
    return goals


def _canary(seeds: Sequence[int], say: Callable[[str], None]) -> list[Goal]:
    """A release that fails on the rarest hardware only must not get past the first wave."""
    say("one hardware class")
    release = Release(1.0, only=RARE_KIND)
    later = 0
    for seed in seeds:
        rules = _ours(seed)
        took = _course(NODES, release, seed, rules)
        later += rules.waves > 1 or not took.ended
    return [Goal("fails on one class only (5 %): got past the canary", "", _figure([later]), 0)]


def _judge(
    name: str, rules: Callable[[int], Rules], seeds: Sequence[int], say: Callable[[str], None]
) -> Judged:
    say(name)
    broken = [_course(NODES, BAD, seed, rules(seed)).broken for seed in seeds]
    good = [_course(NODES, GOOD, seed, rules(seed)) for seed in seeds]
    hours = [float("inf") if one.through_h is None else one.through_h for one in good]
    stops = sum(bool(one.ended) or one.through_h is None for one in good)
    return Judged(name, _figure(broken), _figure(hours), stops, len(seeds))


def _front(
    peer: str,
    default: Setting,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    say: Callable[[str], None],
) -> list[Judged]:
    """The default, and the settings that no other setting of the peer beats on both axes.

    A few fleets find those that may be among them, all fleets judge.
    """
    looked = [
        (setting, _judge(f"{peer}: {setting.name}", setting.rules, seeds[:SCREENING_SEEDS], say))
        for setting in settings
    ]
    chances = [
        setting
        for setting, judged in looked
        if judged.hours.median <= SLOWEST_H and not any(o.is_as_good_as(judged) for _, o in looked)
    ]
    front = [_judge(f"{peer}: {setting.name}", setting.rules, seeds, say) for setting in chances]
    front = [
        judged
        for judged in front
        if judged.is_useful and not any(other.is_as_good_as(judged) for other in front)
    ]
    return [_judge(f"{peer}: default", default.rules, seeds, say), *front]


def _told(of_peer: Sequence[Judged]) -> list[Judged]:
    """The default, and the setting that breaks least, of those the fastest."""
    default, *front = of_peer
    if not front:
        return [default]
    safest = min(front, key=lambda judged: (judged.broken.median, judged.hours.median))
    return [default, safest]


def _row(judged: Judged, *, is_ours: bool) -> Row:
    share = judged.false_stops * 100 / judged.rollouts
    figures = {"broken": judged.broken, "hours": judged.hours, "false": _figure([share])}
    return Row(judged.name, is_ours, figures)


def _points(ours: Judged, found: dict[str, list[Judged]]) -> list[rollout_plot.Point]:
    points = [rollout_plot.Point("shoal", ours.broken.median, ours.hours.median, is_default=True)]
    for peer, (default, *front) in found.items():
        points += [
            rollout_plot.Point(
                peer, judged.broken.median, judged.hours.median, is_default=judged is default
            )
            for judged in (default, *front)
        ]
    return points


def _engine_cpu(sizes: Sequence[int], say: Callable[[str], None]) -> list[str]:
    lines = []
    for nodes in sizes:
        say(f"engine, {nodes:,} boards")
        rules = _ours(0)
        began = time.process_time()
        course(fleet(nodes, GOOD, 0), rules)
        whole_s = time.process_time() - began
        lines.append(
            f"engine, {nodes:,} boards: {rules.first_day_s:.2f} s of CPU in the first simulated day,"
            f" {rules.engine_s / rules.events * 1e6:.1f} us a step ({rules.events:,} steps; the simulation {whole_s:.0f} s)"
        )
    return lines


def _figure(values: Sequence[float]) -> Figure:
    return Figure(statistics.median(values), min(values), max(values))
