"""The table of readings as it always was."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0004_baseline"
down_revision: str | None = None

BIG: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TABLES: Final = sa.MetaData()
"""As they were then: what the code declares today is no business of an old revision."""

sa.Table(
    "readings",
    TABLES,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("node", sa.String(), nullable=False),
    sa.Column("device", sa.String(), nullable=False),
    sa.Column("boot", BIG, nullable=False),
    sa.Column("seq", BIG, nullable=False),
    sa.Column("label", sa.String(), nullable=False),
    sa.Column("confidence", sa.Double(), nullable=False),
    sa.Column("release", sa.LargeBinary(), nullable=False),
    sa.Column("by", sa.String(), nullable=False),
    sa.Column("at_ms", BIG, nullable=False),
    sa.Column("latency_us", BIG, nullable=False),
    sa.UniqueConstraint("node", "device", "boot", "seq"),
    sa.Index("readings_by_release", "release"),
)


def upgrade() -> None:
    """Make what is missing."""
    TABLES.create_all(op.get_bind())
