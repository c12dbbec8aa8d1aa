"""Commands that were sent, followed to their one final state on each node.

A state never goes back. When a command was never accepted and has expired, the controller presumes
EXPIRED; only the node's own word, should it have been cut off with the answer, corrects that. How
commands leave is the business of `orders`.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from shoal_broker.outbox import Outbox
from shoal_broker.session import Lane, Session
from shoal_contract import cbor, messages
from shoal_contract.messages import (
    Cancel,
    CancelAnswer,
    Cancelled,
    CommandUpdate,
    State,
)
from shoal_contract.topics import Topics
from shoal_fleet.clock import now_ms
from shoal_fleet.command_views import (
    SENT,
    STATE_NAMES,
    cancel_answer,
    is_final,
    view,
    whole,
)
from shoal_fleet.database import Database
from shoal_fleet.errors import NotFoundError, StateError
from shoal_fleet.issuer import Issuer
from shoal_fleet.orders import receipt
from shoal_fleet.tables import CommandHistoryRow, CommandRow

log = structlog.get_logger(__name__)

GRACE_MS: Final = 10_000
SWEEP_EVERY_S: Final = 2.0
CANCEL_EXPIRY_S: Final = 3600.0
MAX_LISTED: Final = 1000


@dataclass(slots=True)
class CommandStats:
    """Counters since the process started."""

    unknown: int = 0


@dataclass(slots=True, eq=False)
class _Arrived:
    """A node's word that is not committed yet."""

    node: str
    update: CommandUpdate
    settled: bool = False
    error: StateError | None = None
    is_final: bool = False
    is_news: bool = False


# Gets the node, its word, and whether the controller only presumes that.
Observer = Callable[[str, CommandUpdate, bool], Awaitable[None]]


class Commands:
    """The table of commands and the way to the nodes.

    Attributes:
        observer: awaited with every new state of a command, when that is committed.
    """

    def __init__(
        self,
        database: Database,
        session: Session,
        outbox: Outbox,
        topics: Topics,
        *,
        issuer: Issuer,
    ) -> None:
        self.stats = CommandStats()
        self.observer: Observer | None = None
        self._database = database
        self._session = session
        self._outbox = outbox
        self._topics = topics
        self._issuer = issuer
        # Who waits for news of a command; dropped when the last one left.
        self._waiting: dict[bytes, list[asyncio.Event]] = defaultdict(list)
        self._cancel_answers: dict[tuple[bytes, str], Cancelled] = {}
        self._arrived: list[_Arrived] = []
        self._committing = asyncio.Lock()

    async def update(self, node: str, update: CommandUpdate) -> None:
        """What a node says of a command; returns when it is committed.

        Updates that come while a commit is under way share the next one, in their order.

        Raises:
            StateError: the disk does not take it.
        """
        mine = _Arrived(node, update)
        self._arrived.append(mine)
        async with self._committing:
            if not mine.settled:
                await self._commit_arrived()
        if mine.error is not None:
            raise mine.error
        if mine.is_news and self.observer is not None:
            await self.observer(node, update, False)

    async def _commit_arrived(self) -> None:
        """Whoever comes first commits for everybody who waits."""
        group, self._arrived = self._arrived, []
        error: StateError | None = StateError("the commit was interrupted")
        try:
            async with self._database.write() as session:
                for arrived in group:
                    arrived.is_final = await self._apply(session, arrived)
            error = None
        except StateError as exc:
            error = exc
            return
        finally:
            for arrived in group:
                arrived.settled, arrived.error = True, error
        self._outbox.received(
            receipt(arrived.update.id, arrived.node) for arrived in group if arrived.is_final
        )
        for arrived in group:
            self._tell(arrived.update.id)

    async def _apply(self, session: AsyncSession, arrived: _Arrived) -> bool:
        """Whether the node's last word on the command stands now."""
        node, update = arrived.node, arrived.update
        row = await session.get(CommandRow, (update.id, node))
        if row is None:
            self.stats.unknown += 1
            log.info("update of an unknown command", command=update.id.hex(), node=node)
            return True
        if not _is_news(row, update):
            return is_final(row) and not row.presumed
        arrived.is_news = True
        if update.state != row.state:
            session.add(
                CommandHistoryRow(
                    command=row.id,
                    node=node,
                    state=int(update.state),
                    at_ms=update.at_ms,
                    reason=update.reason,
                )
            )
        row.state = int(update.state)
        row.presumed = False
        row.progress = update.progress
        row.reason = update.reason
        row.result = None if update.result is None else cbor.encode(update.result)
        return is_final(row)

    async def cancelled(self, node: str, answer: Cancelled) -> None:
        """A node's answer to a request to cancel."""
        if answer.id in self._waiting:
            self._cancel_answers[(answer.id, node)] = answer
            self._tell(answer.id)

    async def cancel(self, command_id: bytes, *, wait_s: float) -> dict[str, Any]:
        """Ask the node to stop a command, or every node of a group.

        Returns:
            `answer`: "cancelled", "too_late", "refused", or None when none came in time. For a group
            the answers under `nodes`, and the one that they share, else "mixed".

        Raises:
            NotFoundError: no such command.
        """
        rows = await self._rows(command_id)
        answers = await asyncio.gather(*(self._cancel_one(row, wait_s) for row in rows))
        if not rows[0].group:
            return answers[0]
        shared = {answer["answer"] for answer in answers}
        return {
            "id": command_id.hex(),
            "answer": shared.pop() if len(shared) == 1 else "mixed",
            "reason": "",
            "nodes": {row.node: answer for row, answer in zip(rows, answers, strict=True)},
        }

    async def _cancel_one(self, row: CommandRow, wait_s: float) -> dict[str, Any]:
        command_id, key = row.id, (row.id, row.node)
        if is_final(row) and not row.presumed:
            reason = f"it has {STATE_NAMES[row.state]}"
            return cancel_answer(command_id, CancelAnswer.TOO_LATE, reason)
        news = asyncio.Event()
        self._waiting[command_id].append(news)
        try:
            topic = self._topics.commands(row.node)
            await self._session.publish(
                topic,
                self._issuer.sealed(messages.encode(Cancel(command_id)), topic=topic),
                expiry_s=CANCEL_EXPIRY_S,
                lane=Lane.URGENT,
            )
            async with asyncio.timeout(wait_s):
                while key not in self._cancel_answers:
                    news.clear()
                    await news.wait()
            answer = self._cancel_answers[key]
            return cancel_answer(command_id, answer.answer, answer.reason)
        except TimeoutError:
            return cancel_answer(command_id, None, "the node has not answered")
        finally:
            self._leave(command_id, news)

    async def get(
        self,
        command_id: bytes,
        *,
        wait_s: float = 0.0,
        seen: int | None = None,
        progress: int | None = None,
    ) -> dict[str, Any]:
        """The command with its history.

        Args:
            command_id: 8 bytes.
            wait_s: wait so long for more than `seen` history entries, or without it for a final state.
            seen: how many history entries the caller knows.
            progress: the percent that he knows, if other ones are news, too.

        Raises:
            NotFoundError: no such command.
        """
        news = asyncio.Event()
        self._waiting[command_id].append(news)
        deadline = asyncio.get_running_loop().time() + wait_s
        try:
            while True:
                news.clear()
                command = await self._describe(command_id)
                known = len(command["history"])
                if (
                    command["final"]
                    or (seen is not None and known > seen)
                    or (progress is not None and command.get("progress", 0) != progress)
                ):
                    return command
                try:
                    async with asyncio.timeout_at(deadline):
                        await news.wait()
                except TimeoutError:
                    return command
        finally:
            self._leave(command_id, news)

    async def list_newest(self, *, node: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest commands, newest first, without their history."""
        query = select(CommandRow).order_by(CommandRow.issued_ms.desc(), CommandRow.id)
        if node is not None:
            query = query.where(CommandRow.node == node)
        async with self._database.read() as session:
            rows = await session.scalars(query.limit(min(limit, MAX_LISTED)))
            return [view(row) for row in rows]

    async def counts(self) -> dict[str, int]:
        """How many commands stand in each state."""
        async with self._database.read() as session:
            rows = await session.execute(
                select(CommandRow.state, func.count()).group_by(CommandRow.state)
            )
            found = {state: count for state, count in rows}  # noqa: C416 - rows are no pairs to mypy
        return {name: found.get(state, 0) for state, name in STATE_NAMES.items()}

    async def sweep(self) -> NoReturn:
        """For ever: presume EXPIRED what nobody accepted in time."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            await self.presume_expired(now_ms())

    async def presume_expired(self, at_ms: int) -> None:
        """EXPIRED for commands that were never accepted and ran out before `at_ms`."""
        async with self._database.write() as session:
            rows = (
                await session.scalars(
                    select(CommandRow).where(
                        CommandRow.state == SENT, CommandRow.expires_ms < at_ms - GRACE_MS
                    )
                )
            ).all()
            for row in rows:
                row.state = int(State.EXPIRED)
                row.presumed = True
                row.reason = "the node did not accept it in time"
                session.add(
                    CommandHistoryRow(
                        command=row.id,
                        node=row.node,
                        state=row.state,
                        at_ms=at_ms,
                        reason=row.reason,
                    )
                )
        for row in rows:
            log.info("command expired", command=row.id.hex(), node=row.node, op=row.op)
            self._tell(row.id)
            if self.observer is not None:
                word = CommandUpdate(row.id, State.EXPIRED, at_ms, row.reason)
                await self.observer(row.node, word, True)

    async def _rows(self, command_id: bytes) -> Sequence[CommandRow]:
        async with self._database.read() as session:
            rows = (
                await session.scalars(select(CommandRow).where(CommandRow.id == command_id))
            ).all()
        if not rows:
            raise NotFoundError(f"there is no command {command_id.hex()}")
        return rows

    async def _describe(self, command_id: bytes) -> dict[str, Any]:
        # One statement: with two, a commit between them would show a history ahead of its state.
        query = (
            select(CommandRow, CommandHistoryRow)
            .join(
                CommandHistoryRow,
                (CommandHistoryRow.command == CommandRow.id)
                & (CommandHistoryRow.node == CommandRow.node),
            )
            .where(CommandRow.id == command_id)
            .order_by(CommandHistoryRow.id)
        )
        async with self._database.read() as session:
            found = (await session.execute(query)).all()
        if not found:
            raise NotFoundError(f"there is no command {command_id.hex()}")
        rows = {row.node: row for row, _ in found}
        return whole([rows[node] for node in sorted(rows)], [step for _, step in found])

    def _tell(self, command_id: bytes) -> None:
        for news in self._waiting.get(command_id, ()):
            news.set()

    def _leave(self, command_id: bytes, news: asyncio.Event) -> None:
        self._waiting[command_id].remove(news)
        if not self._waiting[command_id]:
            del self._waiting[command_id]
            for key in [key for key in self._cancel_answers if key[0] == command_id]:
                del self._cancel_answers[key]


def _is_news(row: CommandRow, update: CommandUpdate) -> bool:
    """States go forward only; within RUNNING the progress may change."""
    if row.state != SENT and State(row.state).is_final:
        return row.presumed
    if update.state == State.RUNNING and row.state == State.RUNNING:
        return update.progress != row.progress or update.reason != row.reason
    return update.state > row.state
