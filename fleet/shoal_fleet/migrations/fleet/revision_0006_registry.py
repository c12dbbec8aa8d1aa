"""Who leads (of several controllers on one PostgreSQL), and other names of nodes."""

import sqlalchemy as sa
from alembic import op

revision = "0006_registry"
down_revision: str | None = "0005_rollouts"


def upgrade() -> None:
    """Add both tables; the first term is still to begin."""
    leadership = op.create_table(
        "leadership",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("term", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
    )
    op.bulk_insert(leadership, [{"id": 1, "term": 0}])
    op.create_table(
        "aliases",
        sa.Column("alias", sa.String(), primary_key=True),
        sa.Column("node", sa.String(), sa.ForeignKey("nodes.name"), nullable=False),
    )
    op.create_index(op.f("ix_aliases_node"), "aliases", ["node"])
