"""Who asked the JSON door for which command, and telling them every state of it.

The table outlives the process: whoever asked is told how it ended, at least once. Nothing here may hold up
the fleet: an answer that the outbox has no room for is dropped before a command is, and a failure to
answer never keeps a node's word from being acknowledged.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from sqlalchemy import delete, select, update

from shoal_broker.bus_errors import BusError
from shoal_broker.session import Session
from shoal_contract.messages import CommandUpdate
from shoal_contract.topics import Channel, Topics
from shoal_fleet.command_views import STATE_NAMES
from shoal_fleet.commands import Commands
from shoal_fleet.database import Database
from shoal_fleet.errors import DoorRefusedError, NotFoundError, StateError
from shoal_fleet.json_door_rules import answer
from shoal_fleet.plain import plain
from shoal_fleet.tables import DoorCommandRow
from shoal_fleet.upsert import insert_into

log = structlog.get_logger(__name__)

ANSWER_EXPIRY_S: Final = 86_400.0
MAX_OPEN: Final = 1000
"""Commands of one user that have no final state yet."""


@dataclass(slots=True, eq=False)
class Asked:
    """A command whose states are told to `user`.

    `telling` keeps them in order. `is_presumed`: told as expired, which the node may still correct.
    """

    command: bytes
    user: str
    node: str
    op: str
    request: str | None
    correlation: bytes | None
    telling: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_presumed: bool = False


class DoorAnswers:
    """The commands that have no final state yet, and the way back to who asked for them.

    Attributes:
        failed: answers that could not be handed to the bus.
    """

    def __init__(
        self, database: Database, session: Session, topics: Topics, *, commands: Commands
    ) -> None:
        self.failed = 0
        self._database = database
        self._session = session
        self._topics = topics
        self._commands = commands
        self._open: dict[bytes, Asked] = {}

    async def load(self) -> None:
        """Take up what an earlier process left: tell what has ended meanwhile, follow the rest."""
        async with self._database.read() as session:
            rows = list(
                await session.scalars(select(DoorCommandRow).where(DoorCommandRow.done.is_(False)))
            )
        for row in rows:
            asked = Asked(row.command, row.user, row.node, row.op, row.request, row.correlation)
            self._open[row.command] = asked
            try:
                view = await self._commands.get(row.command)
            except NotFoundError:
                # The process ended before it was recorded: it comes again.
                await self.forget(asked)
                continue
            if view["final"]:
                await self.tell(asked, view)
        self._commands.observer = self.observe

    def find(self, command: bytes) -> Asked | None:
        """The command, when it is open."""
        return self._open.get(command)

    def make_room(self, user: str, *, request: str | None) -> None:
        """Raise DoorRefusedError when this user has too many open commands for another one."""
        mine = [asked for asked in self._open.values() if asked.user == user]
        if len(mine) < MAX_OPEN:
            return
        presumed = next((asked for asked in mine if asked.is_presumed), None)
        if presumed is None:
            raise DoorRefusedError(
                f"{MAX_OPEN} commands of {user} have no final state yet",
                why="busy",
                request=request,
            )
        del self._open[presumed.command]

    async def remember(self, asked: Asked) -> None:
        """On the disk before the command is: whoever answers it finds who asked.

        Raises:
            StateError: the disk does not take it.
        """
        async with self._database.write() as session:
            await session.execute(
                insert_into(session, DoorCommandRow)
                .values(
                    command=asked.command,
                    user=asked.user,
                    node=asked.node,
                    op=asked.op,
                    request=asked.request,
                    correlation=asked.correlation,
                    done=False,
                )
                .on_conflict_do_nothing()
            )
        self._open[asked.command] = asked

    async def forget(self, asked: Asked) -> None:
        """It came to nothing.

        Raises:
            StateError: the disk does not take it.
        """
        self.leave(asked)
        async with self._database.write() as session:
            await session.execute(
                delete(DoorCommandRow).where(DoorCommandRow.command == asked.command)
            )

    def leave(self, asked: Asked) -> None:
        """Tell nothing more of it."""
        self._open.pop(asked.command, None)

    async def observe(self, node: str, word: CommandUpdate, is_presumed: bool) -> None:  # noqa: FBT001 - the observer's signature
        """A command has a new state."""
        asked = self._open.get(word.id)
        if asked is None or asked.node != node:
            return
        async with asked.telling:
            payload = _answer_to(
                asked,
                at_ms=word.at_ms,
                state=STATE_NAMES[word.state],
                reason=word.reason,
                progress=word.progress,
                result=plain(word.result),
            )
            await self.say(asked.user, node, payload, asked.correlation)
            if word.state.is_final:
                asked.is_presumed = is_presumed
                await self._finish(asked)

    async def tell(self, asked: Asked, view: Mapping[str, Any]) -> None:
        """Say how a command stands."""
        payload = _answer_to(
            asked,
            at_ms=view["history"][-1]["at_ms"],
            state=view["state"],
            reason=view["reason"],
            progress=view["progress"],
            result=view["result"],
        )
        await self.say(asked.user, asked.node, payload, asked.correlation)
        if view["final"]:
            await self._finish(asked)

    async def say(self, user: str, node: str, payload: bytes, correlation: bytes | None) -> None:
        """Hand an answer to the bus, if it takes it."""
        try:
            await self._session.publish(
                self._topics.door(user, node, Channel.RESULTS),
                payload,
                correlation=correlation,
                expiry_s=ANSWER_EXPIRY_S,
                droppable=True,
            )
        except BusError as exc:
            self.failed += 1
            log.warning("door does not answer", user=user, node=node, reason=str(exc))

    async def _finish(self, asked: Asked) -> None:
        if not asked.is_presumed:
            self.leave(asked)
        done = update(DoorCommandRow).where(DoorCommandRow.command == asked.command)
        try:
            async with self._database.write() as session:
                await session.execute(done.values(done=True))
        except StateError as exc:
            # The next process will say it once more.
            log.warning("door cannot note an answer", user=asked.user, reason=str(exc))


def _answer_to(asked: Asked, *, at_ms: int, state: str, **facts: Any) -> bytes:
    return answer(
        node=asked.node,
        at_ms=at_ms,
        state=state,
        request=asked.request,
        command=asked.command,
        op=asked.op,
        **facts,
    )
