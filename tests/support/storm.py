"""A storm: commands and samples flow while the broker and the agents are killed, over and over; then an account.

It sends through a real controller, kills real processes, and compares the records of those who must agree: the
controller's table, what the boards wrote down of each effect, and what the device saw answered.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.support.board import DISPLAY_CHANNEL, Board, short_folder
from tests.support.fleet_program import FleetProgram
from tests.support.killed_programs import Killed, killed_broker
from tests.support.programs import Program

from shoal_broker.session import Inbound, Session, SessionConfig
from shoal_contract import envelope, messages
from shoal_contract.frames import Status
from shoal_contract.messages import Command, State
from shoal_contract.topics import Channel, Topics
from shoal_fleet import digits
from shoal_fleet.issuer import read_signer

TALLYING_AGENT = Path(__file__).with_name("tallying_agent.py")
SAMPLES_HZ = 20
EXPIRES_S = 86_400.0
PATIENCE_S = 30.0
"""The account is closed when everything is settled, or when nothing has moved for so long."""

READY_S = 60.0
LOOK_EVERY_S = 0.1
FINAL = frozenset(state.name.lower() for state in State if state.is_final)
LADDER = ["sent", "accepted", "running"]
MOST_SENTENCES = 12


@dataclass(slots=True)
class Sent:
    """A command that the controller has taken; `number` is what its effect leaves behind."""

    id: str
    number: int
    board: Board
    op: str


@dataclass(slots=True)
class Account:
    """What became of everything. `broken` has a sentence for each promise that was not kept."""

    broker: str
    commands: int = 0
    broker_kills: int = 0
    agent_kills: int = 0
    controller_kills: int = 0
    lost: int = 0
    final: dict[str, int] = field(default_factory=dict)
    cut_short: int = 0
    """Running when its agent was killed: neither operation may be repeated, so FAILED, and says so."""
    twice: int = 0
    answered_samples: int = 0
    lost_samples: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return json.dumps(asdict(self))


class Witness:
    """A client that sees which commands have reached the broker."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.session: Session

    @classmethod
    @asynccontextmanager
    async def open(cls, port: int) -> AsyncIterator[Self]:
        witness = cls()

        async def take(inbound: Inbound) -> None:
            message = messages.decode(envelope.unpack(inbound.payload).payload)
            if isinstance(message, Command):
                witness.seen.add(message.id.hex())

        async with Session.open(
            SessionConfig(
                host="127.0.0.1",
                port=port,
                client_id="witness",
                transport="codec",
                backoff_initial_s=0.05,
                backoff_max_s=0.5,
            ),
            subscriptions={Topics().every(Channel.COMMANDS): take},
        ) as witness.session:
            yield witness


class Storm:
    """A site under a storm. Build it with `Storm.open`; `blow`, then `account`."""

    def __init__(
        self,
        fleet: Killed[FleetProgram],
        witness: Witness,
        broker: Killed[Program],
        device: Program,
    ) -> None:
        self.boards: list[Board] = []
        self.agents: list[Killed[Program]] = []
        self.sent: list[Sent] = []
        self.running_when_killed: set[str] = set()
        self._fleet = fleet
        self._witness = witness
        self._broker = broker
        self._device = device
        self._numbers = itertools.count(10_000)

    @classmethod
    @asynccontextmanager
    async def open(cls, kind: str, folder: Path) -> AsyncIterator[Self]:
        """A broker of this kind, a controller, two boards that take signed commands only.

        The first board has a device whose samples flow.
        """
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            broker, port = await enter(killed_broker(kind, folder / "broker"))
            fleet = await enter(Killed.open(lambda: FleetProgram.open(folder / "fleet", port)))
            witness = await enter(Witness.open(port))
            key = envelope.key_text(read_signer(folder / "fleet" / "state").public_key)
            boards = [
                Board(stack.enter_context(short_folder()), f"board-{number}") for number in (1, 2)
            ]
            device = await enter(boards[0].device(rate_hz=SAMPLES_HZ, limit=1_000_000))
            await enter(boards[0].bridge())
            storm = cls(fleet, witness, broker, device)
            for board, transport in zip(boards, ("aiomqtt", "codec"), strict=True):
                storm.boards.append(board)
                storm.agents.append(await enter(Killed.open(_starter(board, port, transport, key))))
            await storm._ready()
            yield storm

    async def blow(self, *, commands: int, rounds: int, kill_controller: bool = False) -> None:
        """Send so many commands; in each round the broker is killed once, and one agent once.

        By turns: the broker dies with everything that it acknowledged for an agent that is away; or each dies
        in the middle of the traffic. `kill_controller`: and so does the controller, with all answers under way.
        """
        shares = [commands * part // (4 * rounds) for part in range(4 * rounds + 1)]
        sizes = iter([after - before for before, after in itertools.pairwise(shares)])
        for number in range(rounds):
            victim = (number // 2) % len(self.boards)
            await self._until_the_fleet_is_connected()
            if number % 2 == 0:
                await self._while_traffic_flows(next(sizes), lambda v=victim: self._kill_agent(v))
                kept = await self._send(next(sizes))
                await self._until(
                    lambda kept=kept: {one.id for one in kept} <= self._witness.seen,
                    "the broker has the commands of an agent that is away",
                )
                await self._broker.kill()
                await self._send(next(sizes))
                await self._broker.start()
                await self._while_traffic_flows(next(sizes), self.agents[victim].start)
            else:
                await self._while_traffic_flows(next(sizes), self._broker.kill)
                await self._send(next(sizes))
                await self._broker.start()
                await self._while_traffic_flows(next(sizes), lambda v=victim: self._kill_agent(v))
                await self._send(next(sizes))
                await self.agents[victim].start()
            if kill_controller:
                await self._fleet.kill()
                await self._fleet.start()

    async def account(self, kind: str) -> Account:
        """Wait until everything is settled or nothing moves any more, then compare the records."""
        began_s = time.monotonic()
        self._device.signal(signal.SIGUSR1)  # no new samples
        account = Account(
            kind,
            commands=len(self.sent),
            broker_kills=self._broker.kills,
            agent_kills=sum(agent.kills for agent in self.agents),
            controller_kills=self._fleet.kills,
        )
        await self._until_nothing_moves()
        account.seconds = round(time.monotonic() - began_s, 1)
        described = [await self._fleet.program.get(f"/api/commands/{one.id}") for one in self.sent]
        self._account_commands(account, described)
        await self._account_samples(account)
        self._account_effects(account, described)
        if (more := len(account.broken) - MOST_SENTENCES) > 0:
            account.broken[MOST_SENTENCES:] = [f"and {more} more"]
        return account

    # ------------------------------------------------------------- doing
    async def _send(self, count: int) -> list[Sent]:
        sent = []
        for _ in range(count):
            number = next(self._numbers)
            board = self.boards[number % 2]
            # Every third of the board with the device is an effect that its microcontroller writes down.
            if board is self.boards[0] and number % 3 == 0:
                op = "device.set"
                args = {"device": "meter", "channel": DISPLAY_CHANNEL, "value": number}
            else:
                op, args = "tally", {"number": number}
            command = await self._fleet.program.send(board.node, op, args, expires_s=EXPIRES_S)
            sent.append(Sent(command, number, board, op))
        self.sent += sent
        return sent

    async def _while_traffic_flows(self, count: int, do: Callable[[], Any]) -> None:
        """Send `count`, and `do` something in the middle of it."""
        await self._send(count // 2)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send(count - count // 2))
            tasks.create_task(do())

    async def _kill_agent(self, index: int) -> None:
        await self.agents[index].kill()
        self.running_when_killed |= _running(self.boards[index])

    async def _ready(self) -> None:
        await self._until_the_fleet_is_connected()
        release = await self._fleet.program.serve_release(
            self.boards[0].node, digits.release_dir(1)
        )

        async def serves() -> bool:
            node = await self._fleet.program.get(f"/api/nodes/{self.boards[0].node}")
            return any(model["release"] == release for model in node["reported"]["models"])

        await self._until(serves, "the board serves its model")
        await self._until(lambda: len(self.boards[0].told("answered")) > 0, "samples flow")

    async def _until_the_fleet_is_connected(self) -> None:
        async def connected() -> bool:
            status = await self._fleet.program.get("/api/status")
            known = status["nodes_online"] == len(self.boards)
            return status["broker_connected"] and known and self._witness.session.connected

        await self._until(connected, "controller, witness and agents are connected")

    async def _until(self, holds: Callable[[], Any], what: str) -> None:
        try:
            async with asyncio.timeout(READY_S):
                while True:
                    found = holds()
                    if await found if asyncio.iscoroutine(found) else found:
                        return
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError as exc:
            raise AssertionError(f"not within {READY_S:g} s: {what}") from exc

    # ------------------------------------------------------------- counting
    async def _until_nothing_moves(self) -> None:
        moved_s, last = time.monotonic(), None
        while True:
            open_commands = len(self.sent) - await self._settled()
            unanswered = len(self.boards[0].told("sample")) - len(self.boards[0].told("answered"))
            missing = len(await self._missing_samples())
            now = (open_commands, unanswered, missing)
            if not any(now):
                return
            if now != last:
                moved_s, last = time.monotonic(), now
            if time.monotonic() - moved_s > PATIENCE_S:
                return
            await asyncio.sleep(0.5)

    async def _settled(self) -> int:
        counts = (await self._fleet.program.get("/api/status"))["commands"]
        return sum(count for state, count in counts.items() if state in FINAL)

    async def _missing_samples(self) -> set[int]:
        answered = {e["seq"] for e in self.boards[0].told("answered") if e["status"] == Status.OK}
        have = {row["seq"] for row in await self._fleet.program.readings(self.boards[0].node)}
        return answered - have

    def _account_commands(self, account: Account, described: list[dict[str, Any]]) -> None:
        account.final = dict(Counter(command["state"] for command in described))
        lost = [command for command in described if command["state"] not in FINAL]
        account.lost = len(lost)
        if lost:
            account.broken.append(f"{len(lost)} of {len(described)} commands have no final state")
        for command in described:
            states = [step["state"] for step in command["history"]]
            ladder = [state for state in LADDER if state in states]
            finals = [state for state in states if state in FINAL]
            if states != ladder + finals or len(finals) > 1:
                account.broken.append(f"the history of a command is {states}")

    def _account_effects(self, account: Account, described: list[dict[str, Any]]) -> None:
        effects = Counter(itertools.chain.from_iterable(map(_effects, self.boards)))
        for one, command in zip(self.sent, described, strict=True):
            times, cut = effects[one.number], one.id in self.running_when_killed
            what = f"{one.op} {one.number}, {command['state']} ({command['reason']})"
            if command["state"] == "succeeded" and not times:
                account.broken.append(f"succeeded, but nothing was done: {what}")
            if command["state"] in {"refused", "expired", "cancelled"}:
                account.broken.append(f"nobody asked for that: {what}")
            if command["state"] == "failed":
                if cut and "stopped while it ran" in command["reason"]:
                    account.cut_short += 1
                else:
                    account.broken.append(f"failed without need: {what}")
            if times > 1:
                account.twice += 1
                account.broken.append(f"done {times} times: {what}")
        strange = set(effects) - {one.number for one in self.sent}
        if strange:
            account.broken.append(f"effects that nobody ordered: {sorted(strange)[:5]}")

    async def _account_samples(self, account: Account) -> None:
        answered = self.boards[0].told("answered")
        account.answered_samples = sum(event["status"] == Status.OK for event in answered)
        lost = await self._missing_samples()
        account.lost_samples = len(lost)
        if lost:
            account.broken.append(
                f"{len(lost)} of {account.answered_samples} answered samples have no reading: "
                f"{sorted(lost)[:10]}"
            )
        rows = await self._fleet.program.readings(self.boards[0].node)
        if len(rows) != len({(row["device"], row["boot"], row["seq"]) for row in rows}):
            account.broken.append("a reading stands in the table twice")


def _starter(board: Board, port: int, transport: str, key: str) -> Callable[[], Any]:
    return lambda: board.agent(
        port,
        more=f'[trust]\ncommand_keys = ["{key}"]',
        device=board.node == "board-1",
        program=TALLYING_AGENT,
        before=(board.folder / "tally", "--"),
        transport=transport,
    )


def _running(board: Board) -> set[str]:
    """Commands that were running when the agent was killed; its files stay as they are."""
    with tempfile.TemporaryDirectory() as copy:
        for file in board.state.glob("agent.db*"):
            shutil.copy(file, copy)
        with sqlite3.connect(Path(copy) / "agent.db") as journal:
            rows = journal.execute(
                "SELECT id FROM commands WHERE state = ?", (int(State.RUNNING),)
            ).fetchall()
        journal.close()
    return {bytes(row[0]).hex() for row in rows}


def _effects(board: Board) -> Iterator[int]:
    """The number of every command that left something behind on this board."""
    tally = board.folder / "tally"
    if tally.exists():
        yield from map(int, tally.read_text().split())
    # A pipeline's command names its sample; an operator's has no context.
    yield from (event["value"] for event in board.told("set") if not event["context"])
