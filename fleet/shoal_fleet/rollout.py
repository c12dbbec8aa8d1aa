"""The rollout engine: `step(rollout, roster, event, now) -> outcome`. Pure: no I/O, no clock.

A release goes out in waves. A wave is a number of leases; a node claims one when it is ready, so a
node that is offline neither blocks a wave nor holds a stale permission. The next wave opens when nine
tenths of the last are resolved and those who have not answered could all fail without it being strange.
Failures that speak against the release hold the rollout for a person; more of them stop it. A node that
never answers counts as a failure. Each class of hardware is judged by itself, too.

A step costs what changes, not what the fleet numbers: it reads the `Roster` and tells what to put there.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, assert_never

import msgspec

from shoal_fleet.chances import chance_of_at_least, evidence, upper_share
from shoal_fleet.rollout_roster import Roster
from shoal_fleet.rollout_state import (
    Action,
    Event,
    Fails,
    Joined,
    Member,
    Note,
    Offer,
    Options,
    Prepared,
    Ready,
    Recall,
    Resume,
    Rollout,
    Serves,
    Standing,
    Status,
    Stop,
    Tick,
)

GATE_SHARE: Final = 0.9
TOLERATED_SHARE: Final = 0.02
HOLD_AT: Final = 50.0
"""Of rollouts of a good release, at most one in so many is ever held."""
STOP_AT: Final = 200.0
FEW: Final = 10
"""While fewer nodes have started, figures say nothing: any failure is a person's business."""
STRANGE_BELOW: Final = 0.2
"""Failures that are less likely than this are strange: a wave waits for its slow nodes while all of them
failing would be, and the next one is no larger while those that have failed are."""
DOUBT: Final = 0.2
"""How sure a wave's size is that the release is no worse than it takes it to be: 1 - DOUBT."""
CANARY_SHARE: Final = 0.02
CANARY_MOST: Final = 20
CANARY_LEAST: Final = 6


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step makes of a rollout: `changes` belong into the roster, `actions` are to be done."""

    rollout: Rollout
    changes: Mapping[str, Member]
    actions: tuple[Action, ...]

    @property
    def is_empty(self) -> bool:
        """Nothing has changed but, perhaps, the time that does not count."""
        return not self.changes and not self.actions


def step(rollout: Rollout, roster: Roster, event: Event, now_ms: int) -> Outcome:
    """What the rollout becomes by this event, and what is to be done. The roster stays as it is.

    A final rollout stays as it is. An event about a node that is no member changes nothing.
    """
    if not rollout.status.is_open:
        return Outcome(rollout, {}, ())
    turn = _Turn(rollout, roster, now_ms)
    turn.take(event)
    turn.judge()
    if isinstance(event, Ready):
        turn.offer(event.nodes)
    # Resuming opens nothing by itself: the gate is passed anew at the next event.
    if not isinstance(event, Resume):
        turn.advance()
    return turn.outcome()


def uncounted(rollout: Rollout, passed_ms: int) -> Rollout:
    """The same when the last `passed_ms` do not count against nodes that were offered the release.

    Nobody listened, or the clock was set (then it may be negative).
    """
    return msgspec.structs.replace(rollout, unheard_ms=rollout.unheard_ms + passed_ms)


def first_wave(options: Options, nodes: int) -> int:
    """How many leases the first wave has."""
    if options.first_wave is not None:
        return options.first_wave
    return max(CANARY_LEAST, min(CANARY_MOST, math.ceil(CANARY_SHARE * nodes)))


class _Turn:
    """One step under way: what has changed so far lies over the roster."""

    def __init__(self, rollout: Rollout, roster: Roster, now_ms: int) -> None:
        self._before = rollout
        self._roster = roster
        self._now_ms = now_ms
        self._changes: dict[str, Member] = {}
        self._counts = roster.counts
        self._status = rollout.status
        self._reason = rollout.reason
        self._wave = rollout.wave
        self._wave_size = rollout.wave_size
        self._newly_failed: list[str] = []
        self._actions: list[Action] = []

    def outcome(self) -> Outcome:
        before = self._before
        after = Rollout(
            options=before.options,
            status=self._status,
            reason=self._reason,
            wave=self._wave,
            wave_size=self._wave_size,
            unheard_ms=before.unheard_ms,
        )
        return Outcome(after, self._changes, tuple(self._actions))

    # --- events

    def take(self, event: Event) -> None:
        match event:
            case Prepared():
                self.prepared()
            case Joined(nodes):
                self.join(nodes)
            case Serves(node):
                self.serves(node)
            case Fails(node, reason):
                self.fails(node, reason)
            case Resume():
                self.resume()
            case Stop(reason, back):
                self.stop(reason, back=back)
            case Ready() | Tick():
                # The rules below look at the clock and at who is ready.
                pass
            case _:
                assert_never(event)

    def prepared(self) -> None:
        if self._status is Status.PREPARING:
            self._status = Status.RUNNING
            self._open_wave(first_wave(self._before.options, len(self._roster.members)))

    def join(self, nodes: Iterable[tuple[str, str]]) -> None:
        for node, kind in nodes:
            if self._member(node) is None:
                self._put(node, Member(kind=kind))

    def serves(self, node: str) -> None:
        member = self._member(node)
        if member is None or member.standing in {Standing.SERVING, Standing.RECALLED}:
            return
        if member.standing is Standing.FAILED:
            self._note(f"{node} serves it after all")
        self._put(
            node,
            msgspec.structs.replace(
                member, standing=Standing.SERVING, resolved_ms=self._now_ms, reason=""
            ),
        )

    def fails(self, node: str, reason: str) -> None:
        member = self._member(node)
        if member is None:
            return
        if member.offered_ms is None:
            if member.standing is Standing.WAITING:
                # It failed this very release before: it is not offered it again.
                self._put(
                    node,
                    msgspec.structs.replace(
                        member, standing=Standing.EXCLUDED, reason=reason, seen=True
                    ),
                )
            return
        if member.standing not in {Standing.OFFERED, Standing.SERVING}:
            return
        self._note(f"{node} failed: {reason}")
        self._newly_failed.append(node)
        self._put(
            node,
            msgspec.structs.replace(
                member,
                standing=Standing.FAILED,
                resolved_ms=self._now_ms,
                reason=reason,
                seen=False,
            ),
        )

    def resume(self) -> None:
        if self._status is not Status.HELD:
            return
        for node, member in self._roster.members.items():
            if member.standing is Standing.FAILED and not member.seen:
                self._put(node, msgspec.structs.replace(member, seen=True))
        self._status, self._reason = Status.RUNNING, ""
        self._note(f"resumed in wave {self._wave}")

    def stop(self, reason: str, *, back: bool) -> None:
        self._status, self._reason = Status.STOPPED, reason
        self._note(f"stopped: {reason}")
        for node in self._roster.members:
            member = self._changes.get(node) or self._roster.members[node]
            if member.offered_ms is None:
                continue
            if member.standing is Standing.OFFERED or (
                back and member.standing is Standing.SERVING
            ):
                self._put(node, msgspec.structs.replace(member, standing=Standing.RECALLED))
                self._actions.append(Recall(node))
            elif member.standing is Standing.FAILED:
                self._actions.append(Recall(node))

    # --- rules

    def judge(self) -> None:
        """Overdue nodes, then whether to stop or hold."""
        if self._status not in {Status.RUNNING, Status.HELD}:
            return
        self._fail_overdue()
        if not self._newly_failed:
            return
        against = self._evidence()
        if against >= STOP_AT:
            self.stop(self._numbers(against), back=True)
        elif self._status is Status.RUNNING and self._counts.unseen:
            if against >= HOLD_AT:
                self._hold(self._numbers(against))
            elif self._before.options.hold_on_any or self._counts.all_started < FEW:
                self._hold(f"{self._counts.unseen} failed")

    def _fail_overdue(self) -> None:
        unheard_ms = self._before.unheard_ms
        overdue_s = self._before.options.overdue_s
        for node in self._roster.offered():
            member = self._member(node)
            if member is None or member.offered_ms is None:
                continue
            passed_ms = self._now_ms - member.offered_ms - (unheard_ms - member.unheard_ms)
            if passed_ms < overdue_s * 1000:
                return
            if member.standing is Standing.OFFERED:
                self.fails(node, f"no answer within {overdue_s:g} s")

    def _evidence(self) -> float:
        """Against the release: half of it from the whole fleet, half from the classes of hardware."""
        counts = self._counts
        whole = evidence(counts.all_failures, counts.all_started, TOLERATED_SHARE)
        kinds = sum(self._of_kind(kind) for kind in counts.failures) / len(counts.started)
        return (whole + kinds) / 2

    def _of_kind(self, kind: str) -> float:
        counts = self._counts
        return evidence(counts.failures.get(kind, 0), counts.started.get(kind, 0), TOLERATED_SHARE)

    def _numbers(self, against: float) -> str:
        """The failures in words, and those of one class where it is that class."""
        counts = self._counts
        failures, started = counts.all_failures, counts.all_started
        text = f"{failures} of {started} started nodes failed"
        worst = max(counts.failures, key=self._of_kind)
        if len(counts.started) > 1 and self._of_kind(worst) > evidence(
            failures, started, TOLERATED_SHARE
        ):
            text += f", {counts.failures[worst]} of {counts.started[worst]} that are {worst}"
        return f"{text} (evidence {against:.3g} to 1 against it)"

    def _hold(self, why: str) -> None:
        node = self._newly_failed[0]
        self._status = Status.HELD
        self._reason = f"{node} failed: {self._changes[node].reason}"
        if self._counts.unseen > 1:
            self._reason += f" (and {self._counts.unseen - 1} more)"
        self._note(f"held in wave {self._wave}: {why}")

    def offer(self, ready: frozenset[str]) -> None:
        """Leases of the open wave to nodes that are ready, in order."""
        if self._status is not Status.RUNNING:
            return
        free = self._wave_size - self._counts.leases.get(self._wave, 0)
        if free <= 0:
            return
        for node in self._roster.first_waiting(ready, free):
            member = self._member(node)
            if member is None or member.standing is not Standing.WAITING:
                continue
            self._put(
                node,
                msgspec.structs.replace(
                    member,
                    standing=Standing.OFFERED,
                    wave=self._wave,
                    offered_ms=self._now_ms,
                    unheard_ms=self._before.unheard_ms,
                ),
            )
            self._actions.append(Offer(node))

    def advance(self) -> None:
        """The next wave, or the end."""
        if self._status is not Status.RUNNING:
            return
        counts = self._counts
        waiting, offered = counts.at(Standing.WAITING), counts.at(Standing.OFFERED)
        if not waiting and not offered:
            serving, failed = counts.at(Standing.SERVING), counts.at(Standing.FAILED)
            self._status = Status.DONE
            self._reason = f"{serving} of {sum(counts.standing.values())} nodes serve it"
            if failed:
                self._reason += f", {failed} failed"
            self._note(f"done: {self._reason}")
            return
        if not waiting or counts.leases.get(self._wave, 0) < self._wave_size:
            return
        if counts.resolved.get(self._wave, 0) < math.ceil(GATE_SHARE * self._wave_size):
            return
        if self._is_strange(counts.all_failures + offered) and offered:
            return
        self._open_wave(self._next_size())

    def _next_size(self) -> int:
        """As many as may be started when the release is as bad as it can still be taken to be."""
        counts, options = self._counts, self._before.options
        worst = upper_share(counts.all_failures, counts.all_started, DOUBT)
        most = math.ceil(self._wave_size * options.factor)
        if worst > TOLERATED_SHARE:
            most = min(most, math.ceil(options.budget / (worst - TOLERATED_SHARE)))
        return max(most, first_wave(options, len(self._roster.members)))

    def _is_strange(self, failures: int) -> bool:
        """Whether a tolerable release would rarely have so many."""
        chance = chance_of_at_least(failures, self._counts.all_started, TOLERATED_SHARE)
        return chance < STRANGE_BELOW

    def _open_wave(self, size: int) -> None:
        self._wave += 1
        self._wave_size = size
        self._note(f"wave {self._wave} opens with {size} leases")

    def _member(self, node: str) -> Member | None:
        return self._changes.get(node) or self._roster.members.get(node)

    def _put(self, node: str, member: Member) -> None:
        if not self._changes:
            self._counts = self._counts.copy()
        before = self._member(node)
        if before is not None:
            self._counts.add(before, -1)
        self._changes[node] = member
        self._counts.add(member)

    def _note(self, text: str) -> None:
        self._actions.append(Note(text))
