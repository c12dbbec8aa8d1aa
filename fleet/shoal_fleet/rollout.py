"""The rollout engine: `step(rollout, event, now) -> rollout, actions`. Pure: no I/O, no clock.

A release goes out in waves. A wave is a number of leases; a node claims one when it is ready, so a
node that is offline neither blocks a wave nor holds a stale permission. The next wave opens when nine
tenths of the last are resolved. A failure holds the rollout for a person; more failures than a good
release could plausibly have stop it. A node that never answers counts as a failure.
"""

import math
from collections.abc import Iterable
from typing import Final, assert_never

import msgspec

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
STOP_BELOW: Final = 5e-3
CANARY_SHARE: Final = 0.02
CANARY_MOST: Final = 20
CANARY_LEAST: Final = 6


def step(rollout: Rollout, event: Event, now_ms: int) -> tuple[Rollout, tuple[Action, ...]]:
    """What the rollout becomes by this event, and what is to be done.

    A final rollout stays as it is. An event about a node that is no member changes nothing.
    """
    if not rollout.status.is_open:
        return rollout, ()
    turn = _Turn(rollout, now_ms)
    turn.take(event)
    turn.judge()
    if isinstance(event, Ready):
        turn.offer(event.nodes)
    # Resuming opens nothing by itself: the gate is passed anew at the next event.
    if not isinstance(event, Resume):
        turn.advance()
    return turn.result()


def uncounted(rollout: Rollout, passed_ms: int) -> Rollout:
    """The same when the last `passed_ms` do not count against nodes that were offered the release.

    Nobody listened, or the clock was set (then it may be negative).
    """
    members = {
        node: msgspec.structs.replace(member, grace_ms=member.grace_ms + passed_ms)
        if member.standing is Standing.OFFERED
        else member
        for node, member in rollout.members.items()
    }
    return msgspec.structs.replace(rollout, members=members)


def first_wave(options: Options, nodes: int) -> int:
    """How many leases the first wave has."""
    if options.first_wave is not None:
        return options.first_wave
    return max(CANARY_LEAST, min(CANARY_MOST, math.ceil(CANARY_SHARE * nodes)))


def chance_of_at_least(failures: int, started: int, share: float) -> float:
    """P(Binomial(started, share) >= failures)."""
    if failures <= 0:
        return 1.0
    log_share, log_rest = math.log(share), math.log1p(-share)
    below = math.fsum(
        math.exp(
            math.lgamma(started + 1)
            - math.lgamma(k + 1)
            - math.lgamma(started - k + 1)
            + k * log_share
            + (started - k) * log_rest
        )
        for k in range(min(failures, started + 1))
    )
    return max(0.0, 1.0 - below)


_RESOLVED: Final = (Standing.SERVING, Standing.FAILED)


class _Turn:
    """One step under way: the members are copied when the first one changes."""

    def __init__(self, rollout: Rollout, now_ms: int) -> None:
        self._before = rollout
        self._now_ms = now_ms
        self._members = rollout.members
        self._status = rollout.status
        self._reason = rollout.reason
        self._wave = rollout.wave
        self._wave_size = rollout.wave_size
        self._actions: list[Action] = []

    def result(self) -> tuple[Rollout, tuple[Action, ...]]:
        after = Rollout(
            options=self._before.options,
            members=self._members,
            status=self._status,
            reason=self._reason,
            wave=self._wave,
            wave_size=self._wave_size,
        )
        return after, tuple(self._actions)

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
            self._open_wave(first_wave(self._before.options, len(self._members)))

    def join(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            if node not in self._members:
                self._put(node, Member())

    def serves(self, node: str) -> None:
        member = self._members.get(node)
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
        member = self._members.get(node)
        if member is None:
            return
        if member.offered_ms is None:
            if member.standing is Standing.WAITING:
                # It failed this very release before: it is not offered it again.
                self._put(node, Member(Standing.EXCLUDED, reason=reason, seen=True))
            return
        if member.standing not in {Standing.OFFERED, Standing.SERVING}:
            return
        self._note(f"{node} failed: {reason}")
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
        for node, member in self._before.members.items():
            if member.standing is Standing.FAILED:
                self._put(node, msgspec.structs.replace(member, seen=True))
        self._status, self._reason = Status.RUNNING, ""
        self._note(f"resumed in wave {self._wave}")

    def stop(self, reason: str, *, back: bool) -> None:
        self._status, self._reason = Status.STOPPED, reason
        self._note(f"stopped: {reason}")
        for node, member in list(self._members.items()):
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
        overdue_s = self._before.options.overdue_s
        for node, member in list(self._members.items()):
            if (
                member.standing is Standing.OFFERED
                and member.offered_ms is not None
                and self._now_ms - member.offered_ms - member.grace_ms >= overdue_s * 1000
            ):
                self.fails(node, f"no answer within {overdue_s:g} s")
        now = self.result()[0]
        failures, started = now.failures, now.started
        chance = chance_of_at_least(failures, started, TOLERATED_SHARE)
        if failures and chance < STOP_BELOW:
            self.stop(
                f"{failures} of {started} started nodes failed"
                f" (chance {chance:.1e} for a release that is good)",
                back=True,
            )
            return
        unseen = [
            node
            for node, member in self._members.items()
            if member.standing is Standing.FAILED and not member.seen
        ]
        if unseen and self._status is Status.RUNNING:
            self._status = Status.HELD
            self._reason = f"{unseen[0]} failed: {self._members[unseen[0]].reason}"
            if len(unseen) > 1:
                self._reason += f" (and {len(unseen) - 1} more)"
            self._note(f"held in wave {self._wave}: {len(unseen)} failed")

    def offer(self, ready: frozenset[str]) -> None:
        """Leases of the open wave to nodes that are ready, in order."""
        if self._status is not Status.RUNNING:
            return
        free = self._wave_size - self._in_wave()
        for node, member in list(self._members.items()):
            if free <= 0:
                return
            if member.standing is Standing.WAITING and node in ready:
                self._put(
                    node,
                    Member(Standing.OFFERED, wave=self._wave, offered_ms=self._now_ms),
                )
                self._actions.append(Offer(node))
                free -= 1

    def advance(self) -> None:
        """The next wave, or the end."""
        if self._status is not Status.RUNNING:
            return
        now = self.result()[0]
        if not now.count(Standing.WAITING, Standing.OFFERED):
            serving, failed = now.count(Standing.SERVING), now.count(Standing.FAILED)
            self._status = Status.DONE
            self._reason = f"{serving} of {len(self._members)} nodes serve it"
            if failed:
                self._reason += f", {failed} failed"
            self._note(f"done: {self._reason}")
            return
        if not now.count(Standing.WAITING) or self._in_wave() < self._wave_size:
            return
        resolved = sum(
            member.wave == self._wave and member.standing in _RESOLVED
            for member in self._members.values()
        )
        if resolved >= math.ceil(GATE_SHARE * self._wave_size):
            grown = math.ceil(self._wave_size * self._before.options.factor)
            self._open_wave(max(grown, self._wave_size))

    def _open_wave(self, size: int) -> None:
        self._wave += 1
        self._wave_size = size
        self._note(f"wave {self._wave} opens with {size} leases")

    def _in_wave(self) -> int:
        return sum(member.wave == self._wave for member in self._members.values())

    def _put(self, node: str, member: Member) -> None:
        if self._members is self._before.members:
            self._members = dict(self._members)
        self._members[node] = member

    def _note(self, text: str) -> None:
        self._actions.append(Note(text))
