"""Rollouts by label expression, decisions with their figures, freezes."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0005_rollouts"
down_revision: str | None = "0004_baseline"

BIG: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """What was decided before has a text and no figures."""
    op.add_column(
        "rollouts", sa.Column("expression", sa.String(), nullable=False, server_default="")
    )
    for name in ("deed", "by"):
        op.add_column("decisions", sa.Column(name, sa.String(), nullable=False, server_default=""))
    op.add_column("decisions", sa.Column("figures", sa.JSON(), nullable=False, server_default="{}"))
    op.create_table(
        "freezes",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("begun_ms", BIG, nullable=False),
        sa.Column("until_ms", BIG),
        sa.Column("ended_ms", BIG),
        sa.Column("ended_by", sa.String(), nullable=False),
    )
