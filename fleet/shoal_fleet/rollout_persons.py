"""What persons decide about a rollout: pause, resume, approve, freeze, stop. Pure; a part of `rollout`'s steps."""

import msgspec

from shoal_fleet.rollout_state import Deed, Freeze, Recall, Standing, Status
from shoal_fleet.rollout_turn import Turn


def pause(turn: Turn, reason: str, by: str) -> None:
    """Nobody is offered it until it is resumed."""
    if turn.status is Status.PAUSED:
        return
    turn.status, turn.reason = Status.PAUSED, reason or "by an operator"
    turn.note(Deed.PAUSED, f"paused in wave {turn.wave}: {turn.reason}", by=by)


def resume(turn: Turn, by: str) -> None:
    """A person has looked at the failures so far."""
    if turn.status not in {Status.HELD, Status.PAUSED}:
        return
    for node, member in turn.roster.members.items():
        if member.standing is Standing.FAILED and not member.seen:
            turn.put(node, msgspec.structs.replace(member, seen=True))
    turn.status, turn.reason = Status.RUNNING, ""
    turn.note(Deed.RESUMED, f"resumed in wave {turn.wave}", by=by)


def approve(turn: Turn, by: str) -> None:
    """A second person agrees."""
    if turn.approved_by:
        return
    turn.approved_by = by
    turn.note(Deed.APPROVAL, f"approved by {by}", by=by)
    if turn.status is Status.AWAITING:
        turn.status, turn.reason = Status.RUNNING, ""


def freeze(turn: Turn, freeze: Freeze | None) -> None:
    """The fleet is frozen, or (None) no longer."""
    was_on = turn.before.freeze is not None
    turn.freeze = freeze
    if freeze is None:
        if was_on:
            turn.note(Deed.FROZEN, "the freeze was ended")
        return
    text = f"the fleet is frozen: {freeze.reason or 'no reason given'}"
    if turn.before.options.overrides_freeze:
        text += " (this rollout goes on)"
    turn.note(Deed.FROZEN, text, {"until_ms": freeze.until_ms or 0}, by=freeze.by)


def thaw(turn: Turn) -> None:
    """A freeze that is over by the clock."""
    if turn.freeze is not None and not turn.freeze.holds_at(turn.now_ms):
        turn.note(Deed.FROZEN, "the freeze is over", {"until_ms": turn.freeze.until_ms or 0})
        turn.freeze = None


def stop(turn: Turn, reason: str, *, back: bool, by: str = "") -> None:
    """The end: who is not through goes back; with `back` those that serve it, too."""
    turn.status, turn.reason = Status.STOPPED, reason
    text = f"stopped: {reason}" + (" (nodes that serve it go back)" if back else "")
    turn.note(Deed.STOPPED, text, turn.figures(), by=by)
    for node in turn.roster.members:
        member = turn.changes.get(node) or turn.roster.members[node]
        if member.offered_ms is None:
            continue
        if member.standing is Standing.OFFERED or (back and member.standing is Standing.SERVING):
            turn.put(node, msgspec.structs.replace(member, standing=Standing.RECALLED))
            turn.actions.append(Recall(node))
        elif member.standing is Standing.FAILED:
            turn.actions.append(Recall(node))
