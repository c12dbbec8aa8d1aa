"""The tables as the last version made them that counted in steps of its own (schema 4)."""

from typing import Final

import sqlalchemy as sa
from alembic import op

from shoal_fleet.migrations.hand_made import steps_from

revision = "0004_baseline"
down_revision: str | None = None

BIG: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TABLES: Final = sa.MetaData()
"""As they were then: what the code declares today is no business of an old revision."""

sa.Table(
    "blobs",
    TABLES,
    sa.Column("digest", sa.LargeBinary(), primary_key=True),
    sa.Column("size_bytes", BIG, nullable=False),
    sa.Column("chunk_bytes", BIG, nullable=False),
    sa.Column("chunk_digests", sa.LargeBinary(), nullable=False),
)
sa.Table(
    "certificates",
    TABLES,
    sa.Column("serial", sa.String(), primary_key=True),
    sa.Column("node", sa.String(), nullable=False, index=True),
    sa.Column("key", sa.LargeBinary(), nullable=False),
    sa.Column("public_key", sa.LargeBinary(), nullable=False),
    sa.Column("certificate", sa.LargeBinary(), nullable=False),
    sa.Column("how", sa.String(), nullable=False),
    sa.Column("issued_ms", BIG, nullable=False),
    sa.Column("not_after_ms", BIG, nullable=False),
    sa.Column("retired_ms", BIG),
    sa.Column("revoked_ms", BIG, index=True),
)
sa.Table(
    "commands",
    TABLES,
    sa.Column("id", sa.LargeBinary(), primary_key=True),
    sa.Column("node", sa.String(), primary_key=True, index=True),
    sa.Column("group", sa.String(), nullable=False),
    sa.Column("op", sa.String(), nullable=False),
    sa.Column("args", sa.LargeBinary(), nullable=False),
    sa.Column("issued_ms", BIG, nullable=False, index=True),
    sa.Column("expires_ms", BIG, nullable=False),
    sa.Column("priority", BIG, nullable=False),
    sa.Column("state", BIG, nullable=False, index=True),
    sa.Column("presumed", sa.Boolean(), nullable=False),
    sa.Column("progress", BIG, nullable=False),
    sa.Column("reason", sa.String(), nullable=False),
    sa.Column("result", sa.LargeBinary()),
    sa.Column("by_hand", sa.Boolean(), nullable=False),
)
sa.Table(
    "deltas",
    TABLES,
    sa.Column("base", sa.LargeBinary(), primary_key=True),
    sa.Column("target", sa.LargeBinary(), primary_key=True),
    sa.Column("blob", sa.LargeBinary()),
)
sa.Table(
    "door_commands",
    TABLES,
    sa.Column("command", sa.LargeBinary(), primary_key=True),
    sa.Column("user", sa.String(), nullable=False),
    sa.Column("node", sa.String(), nullable=False),
    sa.Column("op", sa.String(), nullable=False),
    sa.Column("request", sa.String()),
    sa.Column("correlation", sa.LargeBinary()),
    sa.Column("done", sa.Boolean(), nullable=False, index=True),
)
sa.Table(
    "door_mirrors",
    TABLES,
    sa.Column("user", sa.String(), primary_key=True),
    sa.Column("node", sa.String(), primary_key=True),
)
sa.Table(
    "enrol_tokens",
    TABLES,
    sa.Column("digest", sa.LargeBinary(), primary_key=True),
    sa.Column("node", sa.String()),
    sa.Column("labels", sa.JSON(), nullable=False),
    sa.Column("made_ms", BIG, nullable=False),
    sa.Column("expires_ms", BIG, nullable=False),
    sa.Column("used_ms", BIG),
    sa.Column("used_by", sa.String(), index=True),
    sa.Column("revoked_ms", BIG),
    sa.Column("admitted", sa.Boolean(), nullable=False),
)
sa.Table(
    "mandates",
    TABLES,
    sa.Column("name", sa.String(), primary_key=True),
    sa.Column("key", sa.LargeBinary(), nullable=False, unique=True),
    sa.Column("ops", sa.JSON(), nullable=False),
    sa.Column("groups", sa.JSON(), nullable=False),
    sa.Column("may_delegate", sa.Boolean(), nullable=False),
    sa.Column("until_ms", BIG, nullable=False),
    sa.Column("made_ms", BIG, nullable=False),
    sa.Column("revoked_ms", BIG),
)
sa.Table(
    "nodes",
    TABLES,
    sa.Column("name", sa.String(), primary_key=True),
    sa.Column("first_seen_ms", BIG, nullable=False),
    sa.Column("last_seen_ms", BIG, nullable=False),
    sa.Column("online", sa.Boolean(), nullable=False),
    sa.Column("labels", sa.JSON(), nullable=False),
    sa.Column("reported", sa.LargeBinary()),
    sa.Column("wanted_revision", BIG, nullable=False),
    sa.Column("published_revision", BIG, nullable=False),
)
sa.Table(
    "pending_nodes",
    TABLES,
    sa.Column("node", sa.String(), primary_key=True),
    sa.Column("key", sa.LargeBinary(), primary_key=True),
    sa.Column("address", sa.String(), nullable=False),
    sa.Column("hardware", sa.String(), nullable=False),
    sa.Column("first_ms", BIG, nullable=False),
    sa.Column("last_ms", BIG, nullable=False),
    sa.Column("accepted_ms", BIG),
    sa.Column("rejected_ms", BIG),
)
sa.Table(
    "pipelines",
    TABLES,
    sa.Column("target", sa.String(), primary_key=True),
    sa.Column("stream", sa.String(), primary_key=True),
    sa.Column("content", sa.JSON(none_as_null=True)),
    sa.Column("changed_ms", BIG, nullable=False),
)
sa.Table(
    "published",
    TABLES,
    sa.Column("digest", sa.LargeBinary(), primary_key=True),
    sa.Column("chunks", BIG, nullable=False),
    sa.Column("complete", sa.Boolean(), nullable=False),
)
sa.Table(
    "releases",
    TABLES,
    sa.Column("id", sa.LargeBinary(), primary_key=True),
    sa.Column("name", sa.String(), nullable=False, index=True),
    sa.Column("version", sa.String(), nullable=False),
    sa.Column("description", sa.String(), nullable=False),
    sa.Column("manifest", sa.LargeBinary(), nullable=False),
    sa.Column("model_file", sa.LargeBinary(), nullable=False),
    sa.Column("size_bytes", BIG, nullable=False),
    sa.Column("quality", sa.JSON(), nullable=False),
    sa.Column("added_ms", BIG, nullable=False),
    sa.UniqueConstraint("name", "version"),
)
sa.Table(
    "revocations",
    TABLES,
    sa.Column("node", sa.String(), primary_key=True),
    sa.Column("revoked_ms", BIG, nullable=False),
    sa.Column("reason", sa.String(), nullable=False),
)
sa.Table(
    "surfaces",
    TABLES,
    sa.Column("group", sa.String(), primary_key=True),
    sa.Column("approved", sa.JSON(none_as_null=True)),
    sa.Column("denied", sa.JSON(), nullable=False),
)
sa.Table(
    "command_history",
    TABLES,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("command", sa.LargeBinary(), nullable=False, index=True),
    sa.Column("node", sa.String(), nullable=False),
    sa.Column("state", BIG, nullable=False),
    sa.Column("at_ms", BIG, nullable=False),
    sa.Column("reason", sa.String(), nullable=False),
    sa.ForeignKeyConstraint(["command", "node"], ["commands.id", "commands.node"]),
)
sa.Table(
    "policies",
    TABLES,
    sa.Column("node", sa.String(), sa.ForeignKey("nodes.name"), primary_key=True),
    sa.Column("version", BIG, nullable=False),
    sa.Column("content", sa.LargeBinary(), nullable=False),
    sa.Column("command", sa.LargeBinary(), nullable=False),
)
sa.Table(
    "reports",
    TABLES,
    sa.Column("release", sa.LargeBinary(), sa.ForeignKey("releases.id"), primary_key=True),
    sa.Column("name", sa.String(), primary_key=True),
    sa.Column("content", sa.LargeBinary(), nullable=False),
)
sa.Table(
    "rollouts",
    TABLES,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("release", sa.LargeBinary(), sa.ForeignKey("releases.id"), nullable=False),
    sa.Column("group", sa.String(), nullable=False),
    sa.Column("status", sa.String(), nullable=False, index=True),
    sa.Column("state", sa.LargeBinary(), nullable=False),
    sa.Column("created_ms", BIG, nullable=False),
    sa.Column("updated_ms", BIG, nullable=False),
)
sa.Table(
    "wanted",
    TABLES,
    sa.Column("node", sa.String(), sa.ForeignKey("nodes.name"), primary_key=True),
    sa.Column("model", sa.String(), primary_key=True),
    sa.Column("release", sa.LargeBinary(), nullable=False),
    sa.Column("previous", sa.LargeBinary()),
    sa.Column("rollout", BIG),
)
sa.Table(
    "decisions",
    TABLES,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("rollout", BIG, sa.ForeignKey("rollouts.id"), nullable=False, index=True),
    sa.Column("at_ms", BIG, nullable=False),
    sa.Column("text", sa.String(), nullable=False),
)
sa.Table(
    "rollout_members",
    TABLES,
    sa.Column("rollout", BIG, sa.ForeignKey("rollouts.id"), primary_key=True),
    sa.Column("node", sa.String(), primary_key=True),
    sa.Column("place", BIG, nullable=False),
    sa.Column("kind", sa.String(), nullable=False),
    sa.Column("standing", sa.String(), nullable=False),
    sa.Column("wave", BIG, nullable=False),
    sa.Column("offered_ms", BIG),
    sa.Column("resolved_ms", BIG),
    sa.Column("reason", sa.String(), nullable=False),
    sa.Column("seen", sa.Boolean(), nullable=False),
    sa.Column("unheard_ms", BIG, nullable=False),
)


def upgrade() -> None:
    """Make what is missing; an older file of SQLite is led here from any of its own versions."""
    connection = op.get_bind()
    steps = steps_from(connection)
    for statement in steps.before:
        op.execute(statement)
    TABLES.create_all(connection)
    for statement in steps.after:
        op.execute(statement)
