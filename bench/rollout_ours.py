"""Shoal's rollout engine, the real one, under the virtual fleet's events. For rollout.py."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rollout_fleet import Board
from shoal_fleet.rollout import step
from shoal_fleet.rollout_roster import Roster
from shoal_fleet.rollout_state import (
    Event,
    Fails,
    Member,
    Offer,
    Options,
    Prepare,
    Prepared,
    Ready,
    Rollout,
    Serves,
    Standing,
    Status,
    Tick,
)
from shoal_fleet.rollout_turn import Outcome
from shoal_fleet.selection import stratify

DAY_S = 86_400.0


class Shoal:
    """The engine with these options. What the controller's shell does around it stands here again, in short.

    Attributes:
        events: steps of the engine.
        engine_s, first_day_s: seconds of CPU that they took, in all and in the first simulated day.
    """

    def __init__(self, options: Options | None = None, *, seed: str = "") -> None:
        self._rollout = Rollout(options=options or Options())
        self._seed = seed
        self._online: set[str] = set()
        self.events = 0
        self.engine_s = self.first_day_s = 0.0

    def begin(self, boards: list[Board]) -> Iterable[int]:
        order = stratify(
            ((str(n), (b.kind, b.site, b.link)) for n, b in enumerate(boards)), seed=self._seed
        )
        self._roster = Roster((node, Member(kind=boards[int(node)].kind)) for node in order)
        self._online = {str(number) for number, board in enumerate(boards) if not board.online_s}
        return self._feed(Prepared(), 0.0)

    def returned(self, board: int, now_s: float) -> Iterable[int]:
        self._online.add(str(board))
        return self._feed(Ready(frozenset((str(board),))), now_s)

    def answered(self, board: int, now_s: float, *, serves: bool) -> Iterable[int]:
        node = str(board)
        return self._feed(Serves(node) if serves else Fails(node, "golden outputs differ"), now_s)

    def woke(self, now_s: float) -> Iterable[int]:
        return self._feed(Tick(), now_s)

    def wakes_s(self) -> float | None:
        """When the first that was offered it is overdue."""
        for node in self._roster.offered():
            member = self._roster.members[node]
            return (member.offered_ms or 0) / 1000 + self._rollout.options.overdue_s
        return None

    def keeps(self, board: int) -> bool:
        return self._roster.members[str(board)].standing is Standing.OFFERED

    def ended(self) -> str:
        status = self._rollout.status
        return status.value if status in {Status.HELD, Status.STOPPED} else ""

    @property
    def waves(self) -> int:
        """How many have been opened."""
        return self._rollout.wave

    def _feed(self, event: Event, now_s: float) -> list[int]:
        offered: list[int] = []
        next_event: Event | None = event
        while next_event is not None:
            wave = self._rollout.wave
            outcome = self._step(next_event, now_s)
            offered += [int(act.node) for act in outcome.actions if isinstance(act, Offer)]
            # As the controller: deltas before a wave, and a new wave is open to all who are there.
            if any(isinstance(act, Prepare) for act in outcome.actions):
                next_event = Prepared()
            else:
                has_opened = self._rollout.wave != wave
                next_event = Ready(frozenset(self._online)) if has_opened else None
        return offered

    def _step(self, event: Event, now_s: float) -> Outcome:
        before_s = time.process_time()
        outcome = step(self._rollout, self._roster, event, round(now_s * 1000))
        self._rollout = outcome.rollout
        self._roster.put(outcome.changes)
        took_s = time.process_time() - before_s
        self.engine_s += took_s
        if now_s <= DAY_S:
            self.first_day_s += took_s
        self.events += 1
        return outcome
