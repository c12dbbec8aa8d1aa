"""A fleet in virtual time, and a rollout's rules upon it. For rollout.py; it knows no rules itself.

Nine nodes of ten are online; the others come back, on the average after two days. An install takes about
five minutes (lognormal). A bad release breaks a share of the nodes: they report a failure, or they never
answer again. Of what fails anyway, with any release, half says so.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

ONLINE_SHARE = 0.9
AWAY_MEAN_S = 2 * 86_400.0
INSTALL_MEDIAN_S = 300.0
INSTALL_SIGMA = 0.5
HORIZON_S = 14 * 86_400.0
THROUGH_SHARE = 0.85
# Hardware classes with their shares of the fleet, and how many sites and links there are.
KINDS = (("rpi4", 0.5), ("rpi5", 0.3), ("imx8", 0.15), ("rk3588", 0.05))
RARE_KIND = "rk3588"
SITES, LINKS = 20, ("lan", "lte")


@dataclass(frozen=True, slots=True)
class Release:
    """How a release behaves.

    Attributes:
        breaks: the share of nodes that it breaks.
        is_silent: a broken node never answers again; else it reports the failure.
        base: the share of nodes that fail with any release.
        only: the only class of hardware that it breaks; empty: any.
    """

    breaks: float = 0.0
    is_silent: bool = False
    base: float = 0.0
    only: str = ""


@dataclass(slots=True)
class Board:
    """One node: what it is, when it is there, and what the release will do to it."""

    kind: str
    site: str
    link: str
    online_s: float
    install_s: float
    breaks: bool
    fails: bool
    is_silent: bool


class Rules(Protocol):
    """How somebody rolls out. Boards are named by their number.

    What is assigned is installed as soon as the board is online, unless `keeps` says no by then.
    """

    def begin(self, boards: list[Board]) -> Iterable[int]:
        """At 0 s: who is assigned first."""

    def returned(self, board: int, now_s: float) -> Iterable[int]:
        """A board came online: who is assigned."""

    def answered(self, board: int, now_s: float, *, serves: bool) -> Iterable[int]:
        """A board has installed it, or says that it failed: who is assigned."""

    def woke(self, now_s: float) -> Iterable[int]:
        """The time that `wakes_s` named has come: who is assigned."""

    def wakes_s(self) -> float | None:
        """When to be woken next; asked after each call."""

    def keeps(self, board: int) -> bool:
        """Whether an assignment that was not begun still holds."""

    def ended(self) -> str:
        """Why it goes no further by itself; empty: it goes on, or is through."""


@dataclass(frozen=True, slots=True)
class Course:
    """What became of a rollout. `through_h`: hours until 85 % of the fleet serve the release; None: never."""

    broken: int
    started: int
    through_h: float | None
    ended: str
    ended_h: float | None


def fleet(nodes: int, release: Release, seed: int) -> list[Board]:
    """The same seed gives the same boards, whoever rolls out."""
    draw = random.Random(f"{nodes} {release} {seed}")  # noqa: S311 - a simulation
    kinds, shares = zip(*KINDS, strict=True)
    boards: list[Board] = []
    for _ in range(nodes):
        kind = draw.choices(kinds, shares)[0]
        away_s = 0.0 if draw.random() < ONLINE_SHARE else draw.expovariate(1 / AWAY_MEAN_S)
        breaks = draw.random() < release.breaks and release.only in {"", kind}
        fails = draw.random() < release.base
        is_silent = release.is_silent if breaks else draw.random() < 0.5
        boards.append(
            Board(
                kind=kind,
                site=f"site-{draw.randrange(SITES)}",
                link=draw.choice(LINKS),
                online_s=away_s,
                install_s=INSTALL_MEDIAN_S * draw.lognormvariate(0.0, INSTALL_SIGMA),
                breaks=breaks,
                fails=fails,
                is_silent=is_silent,
            )
        )
    return boards


_RETURN, _ANSWER, _WAKE = range(3)


def course(boards: list[Board], rules: Rules) -> Course:
    """One rollout from its start to the horizon, or until nothing happens any more."""
    return _Run(boards, rules).to_the_end()


class _Run:
    """A rollout under way: what will happen and when, and what has become of the boards."""

    def __init__(self, boards: list[Board], rules: Rules) -> None:
        self._boards = boards
        self._rules = rules
        self._events: list[tuple[float, int, int, int]] = []
        self._pushed = 0
        self._assigned, self._begun = set[int](), set[int]()
        self._serving = self._broken = 0
        self._needed = THROUGH_SHARE * len(boards)
        self._through_s: float | None = None
        self._ended, self._ended_s = "", 0.0
        self._wake_s: float | None = None

    def to_the_end(self) -> Course:
        for number, board in enumerate(self._boards):
            if board.online_s > 0.0:
                self._push(board.online_s, _RETURN, number)
        self._assign(self._rules.begin(self._boards), 0.0)
        while self._events:
            now_s, _, what, board = heapq.heappop(self._events)
            if now_s > HORIZON_S:
                break
            self._happen(what, board, now_s)
        return Course(
            broken=self._broken,
            started=len(self._begun),
            through_h=None if self._through_s is None else self._through_s / 3600,
            ended=self._ended,
            ended_h=self._ended_s / 3600 if self._ended else None,
        )

    def _happen(self, what: int, number: int, now_s: float) -> None:
        rules = self._rules
        if what == _RETURN:
            if number in self._assigned and rules.keeps(number):
                self._begin(number, now_s)
            self._assign(rules.returned(number, now_s), now_s)
        elif what == _ANSWER:
            board = self._boards[number]
            serves = not board.breaks and not board.fails
            self._serving += serves
            if serves and self._through_s is None and self._serving >= self._needed:
                self._through_s = now_s
            self._assign(rules.answered(number, now_s, serves=serves), now_s)
        elif now_s == self._wake_s:
            self._wake_s = None
            self._assign(rules.woke(now_s), now_s)

    def _assign(self, chosen: Iterable[int], now_s: float) -> None:
        for number in chosen:
            if number not in self._assigned:
                self._assigned.add(number)
                if self._boards[number].online_s <= now_s:
                    self._begin(number, now_s)
        at_s = self._rules.wakes_s()
        if at_s is not None and (self._wake_s is None or at_s < self._wake_s):
            self._wake_s = max(at_s, now_s)
            self._push(self._wake_s, _WAKE, 0)
        if not self._ended and (why := self._rules.ended()):
            self._ended, self._ended_s = why, now_s

    def _begin(self, number: int, now_s: float) -> None:
        if number in self._begun:
            return
        self._begun.add(number)
        board = self._boards[number]
        self._broken += board.breaks
        if not ((board.breaks or board.fails) and board.is_silent):
            self._push(now_s + board.install_s, _ANSWER, number)

    def _push(self, at_s: float, what: int, number: int) -> None:
        self._pushed += 1
        heapq.heappush(self._events, (at_s, self._pushed, what, number))
