"""The controller's tables (SQLAlchemy). What the rows mean is the business of the modules that own them.

Times are Unix milliseconds. A change here needs a revision in `migrations`: a test compares the two.
"""

from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

BIG: Final = BigInteger().with_variant(Integer(), "sqlite")
"""Every integer: PostgreSQL's INTEGER is too small for milliseconds, and SQLite numbers rows only in an INTEGER."""


class Words(TypeDecorator[str]):
    """Text, of which PostgreSQL takes every character but NUL: nobody's message may be refused for ever."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """What is written."""
        if value is None or dialect.name == "sqlite":
            return value
        return value.replace("\x00", "\ufffd")


class FleetBase(DeclarativeBase):
    """What the controller knows and decided."""

    type_annotation_map = {int: BIG, float: Double(), str: Words()}  # noqa: RUF012 - SQLAlchemy's own declaration


class NodeRow(FleetBase):
    """A node. `reported` is its last reported state as it came, `wanted_revision` the newest one."""

    __tablename__ = "nodes"
    name: Mapped[str] = mapped_column(primary_key=True)
    first_seen_ms: Mapped[int]
    last_seen_ms: Mapped[int]
    online: Mapped[bool] = mapped_column(default=False)
    labels: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    reported: Mapped[bytes | None] = mapped_column(LargeBinary)
    wanted_revision: Mapped[int] = mapped_column(default=0)
    published_revision: Mapped[int] = mapped_column(default=0)


class AliasRow(FleetBase):
    """Another name by which people may call a node."""

    __tablename__ = "aliases"
    alias: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[str] = mapped_column(ForeignKey("nodes.name"), index=True)


class LeadershipRow(FleetBase):
    """One row: how often one of several controllers on this database became the one that acts."""

    __tablename__ = "leadership"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    term: Mapped[int]


class CommandRow(FleetBase):
    """A command to one node; one to a group has a row for each member, under one id.

    `state` 0: sent, not accepted yet. `presumed`: the node itself has not said so. `group`: the
    expression that named the members, "" for a command to one node. `by_hand`: somebody else publishes it.
    """

    __tablename__ = "commands"
    id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    node: Mapped[str] = mapped_column(primary_key=True, index=True)
    group: Mapped[str] = mapped_column(default="")
    op: Mapped[str]
    args: Mapped[bytes] = mapped_column(LargeBinary)
    issued_ms: Mapped[int] = mapped_column(index=True)
    expires_ms: Mapped[int]
    priority: Mapped[int]
    state: Mapped[int] = mapped_column(default=0, index=True)
    presumed: Mapped[bool] = mapped_column(default=False)
    progress: Mapped[int] = mapped_column(default=0)
    reason: Mapped[str] = mapped_column(default="")
    result: Mapped[bytes | None] = mapped_column(LargeBinary)
    by_hand: Mapped[bool] = mapped_column(default=False)


class CommandHistoryRow(FleetBase):
    """One state that a command went through on one node."""

    __tablename__ = "command_history"
    __table_args__ = (ForeignKeyConstraint(["command", "node"], ["commands.id", "commands.node"]),)
    id: Mapped[int] = mapped_column(primary_key=True)
    command: Mapped[bytes] = mapped_column(LargeBinary, index=True)
    node: Mapped[str]
    state: Mapped[int]
    at_ms: Mapped[int]
    reason: Mapped[str] = mapped_column(default="")


class DoorCommandRow(FleetBase):
    """A command that came through the JSON door: who asked, and how the answers are to say so.

    `done`: the final state was handed to the outbox.
    """

    __tablename__ = "door_commands"
    command: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    user: Mapped[str]
    node: Mapped[str]
    op: Mapped[str]
    request: Mapped[str | None]
    correlation: Mapped[bytes | None] = mapped_column(LargeBinary)
    done: Mapped[bool] = mapped_column(default=False, index=True)


class DoorMirrorRow(FleetBase):
    """A node whose presence or state is retained in the JSON door of a user."""

    __tablename__ = "door_mirrors"
    user: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[str] = mapped_column(primary_key=True)


class BlobRow(FleetBase):
    """A content-addressed file in the blob directory and how it is cut."""

    __tablename__ = "blobs"
    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    size_bytes: Mapped[int]
    chunk_bytes: Mapped[int]
    chunk_digests: Mapped[bytes] = mapped_column(LargeBinary)


class ReleaseRow(FleetBase):
    """A release; `id` is the sha256 of its manifest, `model_file` that of its model."""

    __tablename__ = "releases"
    __table_args__ = (UniqueConstraint("name", "version"),)
    id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    version: Mapped[str]
    description: Mapped[str]
    manifest: Mapped[bytes] = mapped_column(LargeBinary)
    model_file: Mapped[bytes] = mapped_column(LargeBinary)
    size_bytes: Mapped[int]
    quality: Mapped[dict[str, Any]] = mapped_column(JSON)
    added_ms: Mapped[int]


class ReportRow(FleetBase):
    """One file of the report that came with a release."""

    __tablename__ = "reports"
    release: Mapped[bytes] = mapped_column(ForeignKey("releases.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class DeltaRow(FleetBase):
    """A delta that was built; `blob` NULL: none that is worth sending."""

    __tablename__ = "deltas"
    base: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    target: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    blob: Mapped[bytes | None] = mapped_column(LargeBinary)


class PublishedRow(FleetBase):
    """A blob whose chunks are retained at the broker; not `complete` while they go out."""

    __tablename__ = "published"
    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    chunks: Mapped[int]
    complete: Mapped[bool] = mapped_column(default=False)


class WantedRow(FleetBase):
    """The release of a model that a node is to run, and the one that it was to run before."""

    __tablename__ = "wanted"
    node: Mapped[str] = mapped_column(ForeignKey("nodes.name"), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    release: Mapped[bytes] = mapped_column(LargeBinary)
    previous: Mapped[bytes | None] = mapped_column(LargeBinary)
    rollout: Mapped[int | None]


class RolloutRow(FleetBase):
    """A rollout; `state` is the engine's own state as JSON, without the nodes.

    `group` names its nodes, or the label `expression` did when it was started.
    """

    __tablename__ = "rollouts"
    id: Mapped[int] = mapped_column(primary_key=True)
    release: Mapped[bytes] = mapped_column(ForeignKey("releases.id"))
    group: Mapped[str]
    expression: Mapped[str] = mapped_column(default="")
    status: Mapped[str] = mapped_column(index=True)
    state: Mapped[bytes] = mapped_column(LargeBinary)
    created_ms: Mapped[int]
    updated_ms: Mapped[int]


class RolloutMemberRow(FleetBase):
    """Where a node stands in a rollout; `place`: the how-manieth it is offered the release."""

    __tablename__ = "rollout_members"
    rollout: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    node: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[int]
    kind: Mapped[str]
    standing: Mapped[str]
    wave: Mapped[int]
    offered_ms: Mapped[int | None]
    resolved_ms: Mapped[int | None]
    reason: Mapped[str]
    seen: Mapped[bool]
    unheard_ms: Mapped[int]


class DecisionRow(FleetBase):
    """One decision of a rollout: its kind, its reason, the figures behind it, and the person whose it is."""

    __tablename__ = "decisions"
    id: Mapped[int] = mapped_column(primary_key=True)
    rollout: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), index=True)
    at_ms: Mapped[int]
    deed: Mapped[str] = mapped_column(default="")
    text: Mapped[str]
    figures: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    by: Mapped[str] = mapped_column(default="")


class FreezeRow(FleetBase):
    """A time in which no rollout goes on; `until_ms` NULL: until it is ended, `ended_ms` NULL: it was not."""

    __tablename__ = "freezes"
    id: Mapped[int] = mapped_column(primary_key=True)
    reason: Mapped[str]
    by: Mapped[str]
    begun_ms: Mapped[int]
    until_ms: Mapped[int | None]
    ended_ms: Mapped[int | None]
    ended_by: Mapped[str] = mapped_column(default="")


class MandateRow(FleetBase):
    """A key that may command nodes, or might once: of a revoked one the row stays."""

    __tablename__ = "mandates"
    name: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    ops: Mapped[list[str]] = mapped_column(JSON)
    groups: Mapped[list[str]] = mapped_column(JSON)
    may_delegate: Mapped[bool]
    until_ms: Mapped[int]
    made_ms: Mapped[int]
    revoked_ms: Mapped[int | None]


class SurfaceRow(FleetBase):
    """What may run on the nodes of a group at all; `approved` NULL: everything that is not denied."""

    __tablename__ = "surfaces"
    group: Mapped[str] = mapped_column(primary_key=True)
    approved: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    denied: Mapped[list[str]] = mapped_column(JSON)


class PolicyRow(FleetBase):
    """The newest policy of a node: its version, what it says, and the command that carries it."""

    __tablename__ = "policies"
    node: Mapped[str] = mapped_column(ForeignKey("nodes.name"), primary_key=True)
    version: Mapped[int]
    content: Mapped[bytes] = mapped_column(LargeBinary)
    command: Mapped[bytes] = mapped_column(LargeBinary)


class PipelineRow(FleetBase):
    """A pipeline that a node or group is to run; `content` NULL: it was taken away."""

    __tablename__ = "pipelines"
    target: Mapped[str] = mapped_column(primary_key=True)
    stream: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    changed_ms: Mapped[int]


class ReadingsBase(DeclarativeBase):
    """Many small writes that must not wait for anybody's decisions."""

    type_annotation_map = {int: BIG, float: Double(), str: Words()}  # noqa: RUF012 - SQLAlchemy's own declaration


class ReadingRow(ReadingsBase):
    """One reading; (node, device, boot, seq) names it for ever."""

    __tablename__ = "readings"
    __table_args__ = (
        UniqueConstraint("node", "device", "boot", "seq"),
        Index("readings_by_release", "release"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    node: Mapped[str]
    device: Mapped[str]
    boot: Mapped[int]
    seq: Mapped[int]
    label: Mapped[str]
    confidence: Mapped[float]
    release: Mapped[bytes] = mapped_column(LargeBinary)
    by: Mapped[str]
    at_ms: Mapped[int]
    latency_us: Mapped[int]
