"""Commands as the API shows them: one node's, and a group's as a whole. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from shoal_contract import cbor
from shoal_contract.messages import MAX_MESSAGE_BYTES, CancelAnswer, State
from shoal_fleet.plain import plain
from shoal_fleet.tables import CommandHistoryRow, CommandRow

SENT: Final = 0
STATE_NAMES: Final = {SENT: "sent", **{state.value: state.name.lower() for state in State}}


def is_final(row: CommandRow) -> bool:
    """Whether the command has ended on this node, or is presumed to have."""
    return row.state != SENT and State(row.state).is_final


def view(row: CommandRow) -> dict[str, Any]:
    """A command to one node, without its history."""
    return {
        "id": row.id.hex(),
        "node": row.node,
        "group": row.group,
        "op": row.op,
        "args": plain(cbor.decode(row.args, max_bytes=MAX_MESSAGE_BYTES)),
        "issued_ms": row.issued_ms,
        "expires_ms": row.expires_ms,
        "priority": row.priority,
        "state": STATE_NAMES[row.state],
        "final": is_final(row),
        "progress": row.progress,
        "reason": row.reason,
        "result": None
        if row.result is None
        else plain(cbor.decode(row.result, max_bytes=MAX_MESSAGE_BYTES)),
    }


def whole(rows: Sequence[CommandRow], steps: Sequence[CommandHistoryRow]) -> dict[str, Any]:
    """A command with its history: the row itself, or what became of a group's on every node.

    A group's command is final when it is on every node, and its state is the one that they share,
    else "mixed".
    """
    history = [
        {
            "node": step.node,
            "state": STATE_NAMES[step.state],
            "at_ms": step.at_ms,
            "reason": step.reason,
        }
        for step in steps
    ]
    if not rows[0].group:
        return {**view(rows[0]), "history": history}
    commands = [view(row) for row in rows]
    states = Counter(command["state"] for command in commands)
    shared = ("id", "group", "op", "args", "issued_ms", "expires_ms", "priority")
    return {
        **{key: commands[0][key] for key in shared},
        "state": next(iter(states)) if len(states) == 1 else "mixed",
        "states": dict(states),
        "final": all(command["final"] for command in commands),
        "nodes": {command["node"]: command for command in commands},
        "history": history,
    }


def cancel_answer(command_id: bytes, answer: CancelAnswer | None, reason: str) -> dict[str, Any]:
    """What became of a request to cancel; None: no answer came."""
    name = None if answer is None else answer.name.lower()
    return {"id": command_id.hex(), "answer": name, "reason": reason}
