"""The rollout engine: `step(rollout, roster, event, now) -> outcome`. Pure: no I/O, no clock.

A release goes out in waves. A wave is a number of leases; a node claims one when it is ready, so a
node that is offline neither blocks a wave nor holds a stale permission. The next wave opens when nine
tenths of the last are resolved, those who have not answered could all fail without it being strange
(`rollout_gate`), and the deltas from what waiting nodes have are built. Failures that speak against the
release (`rollout_evidence`) hold the rollout for a person; more of them stop it. A node that never answers
counts as a failure. Who is ready (online, in its window, with what the release requires) is `admission`'s business.

A step costs what changes, not what the fleet numbers: it reads the `Roster` and tells what to put there.
"""

from collections.abc import Iterable, Mapping
from typing import Final, assert_never

import msgspec

from shoal_fleet import rollout_persons as persons
from shoal_fleet.rollout_evidence import FEW, HOLD_AT, STOP_AT, against, in_words
from shoal_fleet.rollout_gate import first_wave, gate, next_size, worst_share
from shoal_fleet.rollout_roster import Roster
from shoal_fleet.rollout_state import (
    Approval,
    Approve,
    Deed,
    Event,
    Fails,
    Frozen,
    Joined,
    Member,
    Offer,
    Pause,
    Prepare,
    Prepared,
    Ready,
    Resume,
    Rollout,
    Serves,
    Standing,
    Status,
    Stop,
    Tick,
)
from shoal_fleet.rollout_turn import Outcome, Turn

_JUDGED: Final = frozenset(status for status in Status if status.is_open)
_NAMED: Final = 3
"""So many nodes a note names before it counts the rest."""


def step(rollout: Rollout, roster: Roster, event: Event, now_ms: int) -> Outcome:
    """What the rollout becomes by this event, and what is to be done. The roster stays as it is.

    A final rollout stays as it is, but for going back. An event about a node that is no member changes nothing.
    """
    if not rollout.status.is_open and not (isinstance(event, Stop) and event.back):
        return Outcome(rollout, {}, ())
    turn = Turn(rollout, roster, now_ms)
    _take(turn, event)
    _judge(turn)
    if isinstance(event, Ready):
        _offer(turn, event.nodes)
    # Resuming opens nothing by itself: the gate is passed anew at the next event.
    if not isinstance(event, Resume):
        was_preparing = rollout.status is Status.PREPARING
        _advance(turn, is_prepared=was_preparing and isinstance(event, Prepared))
    return turn.outcome()


def uncounted(rollout: Rollout, passed_ms: int) -> Rollout:
    """The same when the last `passed_ms` do not count against nodes that were offered the release.

    Nobody listened, or the clock was set (then it may be negative).
    """
    return msgspec.structs.replace(rollout, unheard_ms=rollout.unheard_ms + passed_ms)


def _take(turn: Turn, event: Event) -> None:
    match event:
        case Prepared():
            if turn.status is Status.PREPARING:
                turn.status = Status.RUNNING
        case Joined(nodes):
            _join(turn, nodes)
        case Serves(node):
            _serves(turn, node)
        case Fails(node, reason):
            _fails(turn, node, reason)
        case Ready():
            # The rules below look at who is ready.
            pass
        case Tick():
            persons.thaw(turn)
        case _:
            _take_from_a_person(turn, event)


def _take_from_a_person(turn: Turn, event: Pause | Resume | Approve | Frozen | Stop) -> None:
    match event:
        case Pause(reason, by):
            persons.pause(turn, reason, by)
        case Resume(by):
            persons.resume(turn, by)
        case Approve(by):
            persons.approve(turn, by)
        case Frozen(freeze):
            persons.freeze(turn, freeze)
        case Stop(reason, back, by):
            persons.stop(turn, reason, back=back, by=by)
        case _:
            assert_never(event)


def _join(turn: Turn, nodes: Iterable[tuple[str, str]]) -> None:
    for node, kind in nodes:
        if turn.member(node) is None:
            turn.put(node, Member(kind=kind))


def _serves(turn: Turn, node: str) -> None:
    member = turn.member(node)
    if member is None or member.standing in {Standing.SERVING, Standing.RECALLED}:
        return
    if member.standing is Standing.FAILED:
        turn.note(Deed.SERVES, f"{node} serves it after all", {"node": node})
    turn.put(
        node,
        msgspec.structs.replace(
            member, standing=Standing.SERVING, resolved_ms=turn.now_ms, reason=""
        ),
    )


def _fails(turn: Turn, node: str, reason: str) -> None:
    member = turn.member(node)
    if member is None:
        return
    if member.offered_ms is None:
        if member.standing is Standing.WAITING:
            # It failed this very release before: it is not offered it again.
            turn.put(
                node,
                msgspec.structs.replace(
                    member, standing=Standing.EXCLUDED, reason=reason, seen=True
                ),
            )
        return
    if member.standing not in {Standing.OFFERED, Standing.SERVING}:
        return
    turn.note(Deed.FAILED, f"{node} failed: {reason}", {"node": node, "wave": member.wave})
    turn.newly_failed.append(node)
    turn.put(
        node,
        msgspec.structs.replace(
            member,
            standing=Standing.FAILED,
            resolved_ms=turn.now_ms,
            reason=reason,
            seen=False,
        ),
    )


def _judge(turn: Turn) -> None:
    """Overdue nodes, then whether to stop or hold."""
    if turn.status not in _JUDGED:
        return
    _fail_overdue(turn)
    if not turn.newly_failed:
        return
    weight = against(turn.counts)
    text, figures = in_words(turn.counts, weight), turn.figures(evidence=round(weight, 3))
    if weight >= STOP_AT:
        persons.stop(turn, text, back=True)
        return
    why = ""
    if turn.counts.unseen and weight >= HOLD_AT:
        why = text
    elif turn.counts.unseen and turn.before.options.hold_on_any:
        why = f"{text}; any failure holds it"
    elif turn.counts.unseen and turn.counts.all_started < FEW:
        why = f"{text}; of fewer than {FEW} any failure holds it"
    # A rollout that a person has paused stays paused: nobody is offered anything there, too.
    if why and turn.status in {Status.RUNNING, Status.PREPARING, Status.AWAITING}:
        _hold(turn, why, figures)
    else:
        text += f"; {HOLD_AT:g} holds it, {STOP_AT:g} stops it"
        turn.note(Deed.WEIGHED, text, figures)


def _fail_overdue(turn: Turn) -> None:
    unheard_ms = turn.before.unheard_ms
    overdue_s = turn.before.options.overdue_s
    for node in turn.roster.offered():
        member = turn.member(node)
        if member is None or member.offered_ms is None:
            continue
        passed_ms = turn.now_ms - member.offered_ms - (unheard_ms - member.unheard_ms)
        if passed_ms < overdue_s * 1000:
            return
        if member.standing is Standing.OFFERED:
            _fails(turn, node, f"no answer within {overdue_s:g} s")


def _hold(turn: Turn, why: str, figures: Mapping[str, float | str]) -> None:
    node = turn.newly_failed[0]
    turn.status = Status.HELD
    turn.reason = f"{node} failed: {turn.changes[node].reason}"
    if turn.counts.unseen > 1:
        turn.reason += f" (and {turn.counts.unseen - 1} more)"
    turn.note(Deed.HELD, f"held in wave {turn.wave}: {why}", figures)


def _offer(turn: Turn, ready: frozenset[str]) -> None:
    """Leases of the open wave to nodes that are ready, in order."""
    if turn.status is not Status.RUNNING or turn.is_frozen:
        return
    free = turn.wave_size - turn.counts.leases.get(turn.wave, 0)
    if free <= 0:
        return
    given: list[str] = []
    for node in turn.roster.first_waiting(ready, free):
        member = turn.member(node)
        if member is None or member.standing is not Standing.WAITING:
            continue
        given.append(node)
        turn.put(
            node,
            msgspec.structs.replace(
                member,
                standing=Standing.OFFERED,
                wave=turn.wave,
                offered_ms=turn.now_ms,
                unheard_ms=turn.before.unheard_ms,
            ),
        )
        turn.actions.append(Offer(node))
    if given:
        names = ", ".join(given[:_NAMED])
        if len(given) > _NAMED:
            names += f" and {len(given) - _NAMED} more"
        text = f"{len(given)} of {free} free leases of wave {turn.wave}: {names}"
        turn.note(Deed.LEASES, text, turn.figures(given=len(given), free=free))


def _advance(turn: Turn, *, is_prepared: bool) -> None:
    """The next wave, or the end."""
    if turn.status is not Status.RUNNING:
        return
    counts = turn.counts
    waiting, offered = counts.at(Standing.WAITING), counts.at(Standing.OFFERED)
    if not waiting and not offered:
        _end(turn)
        return
    if not waiting or turn.is_frozen:
        return
    if not gate(counts, turn.wave, turn.wave_size).is_passed:
        return
    if _needs_approval(turn):
        turn.status = Status.AWAITING
        what = "the first wave" if turn.wave == 0 else "the waves behind the canary"
        turn.reason = f"{what} needs a second person's approval"
        turn.note(Deed.APPROVAL, f"waits: {turn.reason}", turn.figures())
    elif is_prepared:
        _open_wave(turn)
    else:
        turn.status = Status.PREPARING
        turn.actions.append(Prepare())


def _end(turn: Turn) -> None:
    counts = turn.counts
    serving, failed = counts.at(Standing.SERVING), counts.at(Standing.FAILED)
    turn.status = Status.DONE
    turn.reason = f"{serving} of {sum(counts.standing.values())} nodes serve it"
    if failed:
        turn.reason += f", {failed} failed"
    turn.note(Deed.DONE, f"done: {turn.reason}", turn.figures(serving=serving))


def _needs_approval(turn: Turn) -> bool:
    match turn.before.options.approval:
        case Approval.NONE:
            return False
        case Approval.START:
            return not turn.approved_by
        case Approval.CANARY:
            return turn.wave > 0 and not turn.approved_by


def _open_wave(turn: Turn) -> None:
    options, nodes = turn.before.options, len(turn.roster.members)
    failures, started = turn.counts.all_failures, turn.counts.all_started
    if turn.wave == 0:
        size, why = first_wave(options, nodes), f"the canary of {nodes} nodes"
        figures = turn.figures(leases=size, nodes=nodes)
    else:
        size = next_size(options, nodes, turn.wave_size, failures, started)
        passed = gate(turn.counts, turn.wave, turn.wave_size)
        worst = worst_share(failures, started)
        why = (
            f"{passed.answered} of {passed.size} have answered, {failures} of {started} failed,"
            f" so that at most {worst:.1%} would"
        )
        figures = turn.figures(leases=size, answered=passed.answered, worst=round(worst, 4))
    turn.wave += 1
    turn.wave_size = size
    turn.note(Deed.WAVE, f"wave {turn.wave} opens with {size} leases: {why}", figures)
