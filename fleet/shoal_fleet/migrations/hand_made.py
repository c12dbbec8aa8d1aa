"""What led from one version of an SQLite file to the next before there were revisions. Never changes again."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class Steps:
    """What leads from one version of the tables to the next, around the making of new ones."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


_COMMANDS_PER_NODE: Final = Steps(
    before=(
        "DROP INDEX ix_commands_state",
        "DROP INDEX ix_commands_issued_ms",
        "DROP INDEX ix_commands_node",
        "DROP INDEX ix_command_history_command",
        "ALTER TABLE commands RENAME TO commands_1",
        "ALTER TABLE command_history RENAME TO command_history_1",
    ),
    after=(
        (
            'INSERT INTO commands (id, node, "group", op, args, issued_ms, expires_ms, priority, state,'
            " presumed, progress, reason, result, by_hand) SELECT id, node, '', op, args, issued_ms, expires_ms,"
            " priority, state, presumed, progress, reason, result, 0 FROM commands_1"
        ),
        (
            "INSERT INTO command_history (id, command, node, state, at_ms, reason)"
            " SELECT h.id, h.command, c.node, h.state, h.at_ms, h.reason"
            " FROM command_history_1 h JOIN commands_1 c ON c.id = h.command"
        ),
        "DROP TABLE command_history_1",
        "DROP TABLE commands_1",
    ),
)

_MEMBERS_IN_ROWS: Final = Steps(
    after=(
        (
            "INSERT INTO rollout_members (rollout, node, place, kind, standing, wave, offered_ms, resolved_ms,"
            " reason, seen, unheard_ms)"
            " SELECT r.id, m.key, row_number() OVER (PARTITION BY r.id ORDER BY m.id) - 1, '',"
            " m.value ->> 'standing', m.value ->> 'wave', m.value ->> 'offered_ms', m.value ->> 'resolved_ms',"
            " m.value ->> 'reason', m.value ->> 'seen', -(m.value ->> 'grace_ms')"
            " FROM rollouts r, json_each(CAST(r.state AS TEXT), '$.members') m"
        ),
        "UPDATE rollouts SET state = CAST(json_remove(CAST(state AS TEXT), '$.members') AS BLOB)",
    ),
)


def steps_from(connection: Connection) -> Steps:
    """From the version that the file says it has to schema 4; nothing for a new one, or another database."""
    if connection.dialect.name != "sqlite":
        return Steps()
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    due = [
        step
        for last, step in ((1, _COMMANDS_PER_NODE), (3, _MEMBERS_IN_ROWS))
        if 0 < version <= last
    ]
    return Steps(
        before=tuple(statement for step in due for statement in step.before),
        after=tuple(statement for step in due for statement in step.after),
    )
