"""The command ladder: accepted -> running -> succeeded | failed | refused | expired | cancelled.

A command's id and its first answer are committed in one transaction with the answer's outbox row, before
the broker gets its acknowledgement; a repeat gets the first answer again. So every command has exactly
one final state, whatever is killed when. Which operations there are is `operations`' business.
"""

import asyncio
import heapq
import itertools
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from shoal_agent.errors import AgentError
from shoal_agent.journal import (
    Journal,
    add_command,
    find_answer,
    find_op,
    forget_old_commands,
    forgotten_ms,
    raise_clock_floor,
    set_answer,
)
from shoal_agent.operations import Operations, Tell
from shoal_agent.patience import until_stored
from shoal_agent.trust import ANYBODY, POLICY_OP, Asker, Trust
from shoal_broker import outbox
from shoal_broker.outbox import Lane, OutboxMessage
from shoal_contract import messages
from shoal_contract.errors import DecodeError, EncodeError
from shoal_contract.messages import (
    Cancel,
    CancelAnswer,
    Cancelled,
    Command,
    CommandUpdate,
    State,
)
from shoal_contract.operations import check_arguments

log = structlog.get_logger()

RUNNERS = 4
PROGRESS_EVERY_S = 1.0
MAX_QUEUED = 256
_FINAL = [state for state in State if state.is_final]


@dataclass(slots=True)
class CommandStats:
    """Counters since the start."""

    received: int = 0
    repeated: int = 0


class Commands:
    """Receives, answers and runs commands.

    Args:
        results_topic: where updates go.
        outbox_changed: tells the session that rows were added.
        clock_ms: wall clock in Unix milliseconds (expiry is the issuer's clock).
        trust: who may ask for what; without it everybody for everything.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        operations: Operations,
        results_topic: str,
        outbox_changed: Callable[[], None],
        clock_ms: Callable[[], int],
        trust: Trust | None = None,
    ) -> None:
        self._trust = trust or Trust(())
        self._floor_ms = 0
        self._journal = journal
        self._operations = operations
        self._results_topic = results_topic
        self._outbox_changed = outbox_changed
        self._clock_ms = clock_ms
        self._queue: list[tuple[int, int, Command]] = []
        self._order = itertools.count()
        self._ready = asyncio.Condition()
        self._running: dict[bytes, asyncio.Task[Any]] = {}
        self._cancelled: set[bytes] = set()
        self.stats = CommandStats()

    async def recover(self) -> None:
        """Take up what a restart left. To be awaited once, before the first `receive`."""
        self._floor_ms = await self._journal.clock_floor_ms()
        for command, state in await self._journal.unfinished_commands():
            operation = self._operations.find(command.op)
            if state is State.RUNNING and (operation is None or not operation.repeatable):
                reason = "the agent stopped while it ran; it is not safe to run it again"
                await self._answer(command.id, State.FAILED, reason=reason)
            else:
                await self._enqueue(command)

    async def run(self) -> None:
        """Run commands for ever, the most urgent first."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(RUNNERS):
                tasks.create_task(self._run_queue(), name=f"commands.runner.{number}")

    # ------------------------------------------------------------- receiving
    def set_clock_floor(self, at_ms: int) -> None:
        """This time has certainly come, and no later one is known of: what the journal was told."""
        self._floor_ms = at_ms

    def now_ms(self) -> int:
        """What the clock says, but never earlier than what a root's key has signed already."""
        return max(self._clock_ms(), self._floor_ms)

    async def accept(self, command: Command, asker: Asker = ANYBODY) -> None:
        """Take a command; returns when it and its first answer are durable."""
        self.stats.received += 1
        first = self._first_answer(command, asker)
        # A key of the configuration vouches for the time, too.
        tells_time = asker.key != b"" and self._trust.is_root(asker.key)

        def run(db: sqlite3.Connection) -> tuple[CommandUpdate, bool]:
            if (earlier := find_answer(db, command.id)) is not None:
                outbox.insert(db, self._row(earlier, command.priority))
                return earlier, True
            answer = first
            if asker.key and command.issued_ms <= forgotten_ms(db, asker.key):
                reason = (
                    "issued before commands that this node has forgotten: it may be one of them"
                )
                answer = CommandUpdate(command.id, State.REFUSED, first.at_ms, reason)
            add_command(db, command, answer, asker.key)
            forget_old_commands(db, _FINAL)
            if tells_time:
                raise_clock_floor(db, command.issued_ms)
            outbox.insert(db, self._row(answer, command.priority))
            return answer, False

        answer, is_repeat = await until_stored(
            lambda: self._journal.store.write(run), what="command"
        )
        self._outbox_changed()
        if is_repeat:
            self.stats.repeated += 1
            return
        if tells_time:
            self._floor_ms = max(self._floor_ms, command.issued_ms)
        if answer.state is State.ACCEPTED:
            await self._enqueue(command)

    def _first_answer(self, command: Command, asker: Asker) -> CommandUpdate:
        now_ms = self.now_ms()
        state, reason = State.ACCEPTED, ""
        operation = self._operations.find(command.op)
        if refusal := self._trust.refusal(asker, command.op, now_ms=now_ms):
            state, reason = State.REFUSED, refusal
        elif self._is_late(command):
            state, reason = State.EXPIRED, "it came after its time"
        elif operation is None:
            state, reason = State.REFUSED, f"this node has no operation {command.op!r}"
        elif len(self._queue) >= MAX_QUEUED:
            state, reason = State.REFUSED, f"{MAX_QUEUED} commands are waiting already"
        else:
            try:
                check_arguments(operation, command.args)
            except DecodeError as exc:
                state, reason = State.REFUSED, str(exc)
        log.info("command", op=command.op, id=command.id.hex(), state=state.name.lower())
        return CommandUpdate(command.id, state, now_ms, reason[:1024])

    def _is_late(self, command: Command) -> bool:
        # A policy has a version of its own, and is what sets right a clock floor that was too high.
        return command.op != POLICY_OP and self.now_ms() > command.expires_ms

    async def cancel(self, cancel: Cancel, asker: Asker = ANYBODY) -> None:
        """Stop a command if that is still possible; returns when the answer is durable."""

        def look(db: sqlite3.Connection) -> tuple[CommandUpdate | None, str | None]:
            return find_answer(db, cancel.id), find_op(db, cancel.id)

        known, op = await self._journal.store.read(look)
        refusal = self._trust.refusal(asker, op, now_ms=self.now_ms()) if op is not None else ""
        if known is None:
            answer, reason = CancelAnswer.REFUSED, "this node does not know the command"
        elif refusal:
            answer, reason = CancelAnswer.REFUSED, refusal
        elif known.state.is_final:
            answer, reason = CancelAnswer.TOO_LATE, f"it is {known.state.name.lower()} already"
        elif (task := self._running.get(cancel.id)) is not None:
            self._cancelled.add(cancel.id)
            task.cancel()
            answer, reason = CancelAnswer.CANCELLED, "it was stopped while it ran"
        elif await self._answer(cancel.id, State.CANCELLED, reason="cancelled before it ran"):
            answer, reason = CancelAnswer.CANCELLED, "it had not begun"
        else:
            answer, reason = CancelAnswer.TOO_LATE, "it has just ended"
        reply = messages.encode(Cancelled(cancel.id, answer, self._clock_ms(), reason))
        row = OutboxMessage(topic=self._results_topic, payload=reply, lane=Lane.URGENT)
        await until_stored(
            lambda: self._journal.store.write(lambda db: outbox.insert(db, row)), what="answer"
        )
        self._outbox_changed()

    # ------------------------------------------------------------- running
    async def _enqueue(self, command: Command) -> None:
        async with self._ready:
            heapq.heappush(self._queue, (-command.priority, next(self._order), command))
            self._ready.notify()

    async def _run_queue(self) -> None:
        while True:
            async with self._ready:
                await self._ready.wait_for(lambda: self._queue)
                _, _, command = heapq.heappop(self._queue)
            await self._run_one(command)

    async def _run_one(self, command: Command) -> None:
        operation = self._operations.find(command.op)
        if operation is None:
            await self._answer(command.id, State.REFUSED, reason="no such operation any more")
            return
        if self._is_late(command):
            await self._answer(command.id, State.EXPIRED, reason="its time ran out in the queue")
            return
        if not await self._answer(command.id, State.RUNNING):
            return
        arguments = check_arguments(operation, command.args)
        tell = self._teller(command.id)
        task = asyncio.create_task(
            self._operations.run(operation.name, arguments, tell), name=f"command.{operation.name}"
        )
        self._running[command.id] = task
        try:
            async with asyncio.timeout(operation.timeout_s):
                result = await task
            await self._answer(command.id, State.SUCCEEDED, result=result)
        except TimeoutError:
            reason = f"no result after {operation.timeout_s:g} s"
            await self._answer(command.id, State.FAILED, reason=reason)
        except asyncio.CancelledError:
            if command.id not in self._cancelled:
                task.cancel()
                raise  # the agent stops; a restart takes it up again
            await self._answer(command.id, State.CANCELLED, reason="cancelled while it ran")
        except AgentError as exc:
            await self._answer(command.id, State.FAILED, reason=str(exc))
        except Exception as exc:
            # An operation is the one place where a defect of ours must not end the agent.
            log.exception("operation failed", op=command.op)
            await self._answer(command.id, State.FAILED, reason=f"{type(exc).__name__}: {exc}")
        finally:
            self._running.pop(command.id, None)
            self._cancelled.discard(command.id)
        self._operations.after(operation.name)

    def _teller(self, command_id: bytes) -> Tell:
        """What an operation says of its progress, but not more often than people read."""
        told_s = -PROGRESS_EVERY_S

        async def tell(percent: int, what: str) -> None:
            nonlocal told_s
            if (now_s := time.monotonic()) - told_s < PROGRESS_EVERY_S:
                return
            told_s = now_s
            await self._answer(command_id, State.RUNNING, reason=what, progress=percent)

        return tell

    async def _answer(
        self,
        command_id: bytes,
        state: State,
        *,
        reason: str = "",
        result: object = None,
        progress: int = 0,
    ) -> bool:
        """Commit a command's next state with its message; False when it was final already."""
        update = CommandUpdate(command_id, state, self._clock_ms(), reason[:1024], result, progress)
        try:
            row = self._row(update)
        except EncodeError as exc:
            reason = f"the result cannot be sent: {exc}"
            update = CommandUpdate(command_id, State.FAILED, self._clock_ms(), reason[:1024])
            row = self._row(update)

        def run(db: sqlite3.Connection) -> bool:
            if not set_answer(db, update):
                return False
            outbox.insert(db, row)
            return True

        moved = await until_stored(lambda: self._journal.store.write(run), what="answer")
        self._outbox_changed()
        return moved

    def _row(self, update: CommandUpdate, priority: int = 4) -> OutboxMessage:
        return OutboxMessage(
            topic=self._results_topic,
            payload=messages.encode(update),
            lane=Lane.URGENT if priority > 6 else Lane.NORMAL,  # noqa: PLR2004 - 7 to 9 are urgent
            # Of an operation's progress only the newest is worth sending.
            coalesce_key=f"progress {update.id.hex()}" if update.progress else None,
        )
