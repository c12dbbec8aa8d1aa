"""The controller's tables (SQLAlchemy, SQLite) and the two ways to use them: `read` and `write`.

What the rows mean is the business of the modules that own them. Times are Unix milliseconds.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import (
    JSON,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Insert,
    LargeBinary,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shoal_fleet.errors import StateError

SCHEMA_VERSION: Final = 4
BUSY_TIMEOUT_S: Final = 10.0
POOL_TIMEOUT_S: Final = 30.0
"""How long a read or write waits for one of the connections to the file."""


class FleetBase(DeclarativeBase):
    """Tables of fleet.db: what the controller knows and decided."""


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
    """A rollout; `state` is the engine's own state as JSON, without the nodes."""

    __tablename__ = "rollouts"
    id: Mapped[int] = mapped_column(primary_key=True)
    release: Mapped[bytes] = mapped_column(ForeignKey("releases.id"))
    group: Mapped[str]
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
    """One decision of a rollout with its reason."""

    __tablename__ = "decisions"
    id: Mapped[int] = mapped_column(primary_key=True)
    rollout: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), index=True)
    at_ms: Mapped[int]
    text: Mapped[str]


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
    """Tables of readings.db: many small writes that must not wait for anybody's decisions."""


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


class Database:
    """One SQLite file. One writer at a time; readers go beside it (write-ahead log)."""

    def __init__(self, engine: AsyncEngine, connection: AsyncConnection) -> None:
        self._connection = connection
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        self._writing = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: Path,
        base: type[DeclarativeBase],
    ) -> AsyncIterator[Self]:
        """Open or create the file with the tables of `base`; what is committed survives a power cut.

        Raises:
            StateError: it cannot be used, or a newer version wrote it.
        """
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{path}",
            connect_args={"timeout": BUSY_TIMEOUT_S},
            pool_timeout=POOL_TIMEOUT_S,
        )
        _set_pragmas(engine.sync_engine)
        try:
            try:
                async with engine.begin() as connection:
                    version = (await connection.execute(text("PRAGMA user_version"))).scalar_one()
                    if version > SCHEMA_VERSION:
                        raise StateError(
                            f"{path}: written by a newer version of Shoal (schema {version})"
                        )
                    steps = _steps(base, version)
                    for statement in steps.before:
                        await connection.execute(text(statement))
                    await connection.run_sync(base.metadata.create_all)
                    for statement in steps.after:
                        await connection.execute(text(statement))
                    await connection.execute(text(f"PRAGMA user_version = {SCHEMA_VERSION}"))
            except DBAPIError as exc:
                raise StateError(f"{path}: cannot be used as a database: {exc.orig}") from exc
            async with engine.connect() as connection:
                yield cls(engine, connection)
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that sees the last commit; nothing that is written in it is kept.

        Raises:
            StateError: the file cannot be read.
        """
        try:
            async with self._sessions() as session:
                yield session
        except (DBAPIError, PoolTimeoutError) as exc:
            raise StateError(f"the database cannot be read: {_reason(exc)}") from exc

    async def append(self, statement: Insert, rows: Sequence[dict[str, Any]]) -> int:
        """Insert all of `rows` in one commit; how many were added. Cheaper than `write` by half.

        Raises:
            StateError: the disk does not take it.
        """
        try:
            async with self._writing:
                try:
                    result = await self._connection.execute(statement, rows)
                    await self._connection.commit()
                except BaseException:
                    await self._connection.rollback()
                    raise
        except DBAPIError as exc:
            raise StateError(f"the database cannot be written: {_reason(exc)}") from exc
        return result.rowcount

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A session whose changes are on the disk when the block has ended, or not at all.

        Raises:
            StateError: the disk does not take them.
        """
        try:
            async with self._writing, self._sessions() as session, session.begin():
                yield session
        except (DBAPIError, PoolTimeoutError) as exc:
            raise StateError(f"the database cannot be written: {_reason(exc)}") from exc


def _reason(exc: DBAPIError | PoolTimeoutError) -> str:
    if isinstance(exc, DBAPIError):
        return str(exc.orig)
    return f"every connection to it was in use for {POOL_TIMEOUT_S:g} s"


@dataclass(frozen=True, slots=True)
class _Steps:
    """What leads from one version of the tables to the next, around the making of new ones."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


_COMMANDS_PER_NODE: Final = _Steps(
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


_MEMBERS_IN_ROWS: Final = _Steps(
    after=(
        (
            "INSERT INTO rollout_members (rollout, node, place, kind, standing, wave, offered_ms, resolved_ms,"
            " reason, seen, unheard_ms)"
            " SELECT r.id, m.key, row_number() OVER (PARTITION BY r.id ORDER BY m.id) - 1, '',"
            " m.value ->> 'standing', m.value ->> 'wave', m.value ->> 'offered_ms', m.value ->> 'resolved_ms',"
            " m.value ->> 'reason', m.value ->> 'seen', -(m.value ->> 'grace_ms')"
            " FROM rollouts r, json_each(CAST(r.state AS TEXT), '$.members') m"
        ),
        ("UPDATE rollouts SET state = CAST(json_remove(CAST(state AS TEXT), '$.members') AS BLOB)"),
    ),
)


def _steps(base: type[DeclarativeBase], version: int) -> _Steps:
    """From `version` to this one; 0 is a new file."""
    if base is not FleetBase:
        return _Steps()
    due = [
        step
        for last, step in ((1, _COMMANDS_PER_NODE), (3, _MEMBERS_IN_ROWS))
        if 0 < version <= last
    ]
    return _Steps(
        before=tuple(statement for step in due for statement in step.before),
        after=tuple(statement for step in due for statement in step.after),
    )


def _set_pragmas(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()
