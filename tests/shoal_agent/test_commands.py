import asyncio
from contextlib import asynccontextmanager

import pytest

from shoal_agent.commands import Commands
from shoal_agent.errors import OperationError
from shoal_agent.journal import Journal
from shoal_agent.operations import Operations
from shoal_broker.outbox import Outbox
from shoal_broker.store import Store
from shoal_contract import messages
from shoal_contract.messages import Cancel, CancelAnswer, Cancelled, Command, CommandUpdate, State
from shoal_contract.operations import Argument, Operation

NOW_MS = 1_000_000
LEVEL = Argument("level", "int", "how bright", required=True, minimum=0, maximum=10)


class Lamp:
    """A device of the tests: counts its effects and can be held in the middle of one."""

    def __init__(self) -> None:
        self.levels: list[int] = []
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()

    def operations(self) -> Operations:
        async def set_level(arguments, _):
            self.levels.append(arguments["level"])
            return {"level": arguments["level"]}

        async def slow(_, __):
            self.began.set()
            await self.may_end.wait()
            return "done"

        async def broken(_, __):
            raise OperationError("the lamp is broken")

        async def defect(_, __):
            raise ZeroDivisionError

        async def huge(_, __):
            return bytes(200_000)

        async def far(_, tell):
            for percent in (20, 21, 22):
                await tell(percent, f"step {percent}")
            self.began.set()
            await self.may_end.wait()

        table = Operations()
        table.add(Operation("far", "", "operate"), far)
        table.add(Operation("set", "", "operate", (LEVEL,)), set_level)
        table.add(Operation("slow", "", "operate"), slow)
        table.add(Operation("once", "", "operate", repeatable=False), slow)
        table.add(Operation("quick", "", "operate", timeout_s=0.01), slow)
        table.add(Operation("broken", "", "operate"), broken)
        table.add(Operation("defect", "", "operate"), defect)
        table.add(Operation("huge", "", "operate"), huge)
        return table


class Node:
    """Commands on a real journal; `answers` reads what stands in the outbox."""

    def __init__(self, store: Store, commands: Commands) -> None:
        self.store = store
        self.commands = commands
        self.changed = asyncio.Event()

    async def send(self, command) -> None:
        await (self.commands.cancel if isinstance(command, Cancel) else self.commands.accept)(
            command
        )

    async def answers(self) -> list:
        rows = await self.store.read(
            lambda db: db.execute("SELECT payload FROM outbox ORDER BY id").fetchall()
        )
        return [messages.decode(payload) for (payload,) in rows]

    async def states(self, command_id: bytes) -> list[State]:
        return [
            a.state
            for a in await self.answers()
            if isinstance(a, CommandUpdate) and a.id == command_id
        ]

    async def until(self, command_id: bytes, state: State) -> CommandUpdate:
        while True:
            self.changed.clear()
            for answer in await self.answers():
                if isinstance(answer, CommandUpdate) and (answer.id, answer.state) == (
                    command_id,
                    state,
                ):
                    return answer
            await self.changed.wait()


@asynccontextmanager
async def running(path, lamp, *, clock_ms=lambda: NOW_MS):
    async with Store.open(path / "agent.db") as store:
        await Outbox.load(store)
        node: Node
        commands = Commands(
            journal=await Journal.load(store),
            operations=lamp.operations(),
            results_topic="shoal/n/n1/r",
            outbox_changed=lambda: node.changed.set(),  # noqa: PLW0108 - the node comes after
            clock_ms=clock_ms,
        )
        node = Node(store, commands)
        await commands.recover()
        task = asyncio.create_task(commands.run())
        try:
            yield node
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def command(number: int, op: str = "set", args=None, *, expires_ms=NOW_MS + 1000, priority=4):
    return Command(
        bytes([number]) * 8,
        op,
        {"level": 3} if args is None else args,
        NOW_MS,
        expires_ms,
        priority,
    )


async def test_a_command_climbs_the_ladder(tmp_path):
    lamp = Lamp()
    async with running(tmp_path, lamp) as node:
        await node.send(command(1))
        update = await node.until(b"\x01" * 8, State.SUCCEEDED)
        assert update.result == {"level": 3}
        assert await node.states(update.id) == [State.ACCEPTED, State.RUNNING, State.SUCCEEDED]


async def test_a_repeat_gets_the_first_answer_and_has_no_second_effect(tmp_path):
    lamp = Lamp()
    async with running(tmp_path, lamp) as node:
        await node.send(command(1))
        await node.until(b"\x01" * 8, State.SUCCEEDED)
        await node.send(command(1))
        await node.send(command(1, args={"level": 9}))
        assert (await node.states(b"\x01" * 8))[-2:] == [State.SUCCEEDED, State.SUCCEEDED]
    assert lamp.levels == [3]
    async with running(tmp_path, lamp) as node:
        await node.send(command(1))
        assert (await node.states(b"\x01" * 8))[-1] is State.SUCCEEDED
    assert lamp.levels == [3], "not after a restart either"


@pytest.mark.parametrize(
    ("sent", "state", "reason"),
    [
        (command(1, "fly"), State.REFUSED, "no operation 'fly'"),
        (command(1, args={}), State.REFUSED, "needs level"),
        (command(1, args={"level": 11}), State.REFUSED, "at most 10"),
        (command(1, expires_ms=NOW_MS - 1), State.EXPIRED, "after its time"),
        (command(1, "broken", {}), State.FAILED, "the lamp is broken"),
        (command(1, "defect", {}), State.FAILED, "ZeroDivisionError"),
        (command(1, "quick", {}), State.FAILED, "no result after 0.01 s"),
        (command(1, "huge", {}), State.FAILED, "cannot be sent"),
    ],
)
async def test_what_cannot_succeed_ends_with_a_reason(tmp_path, sent, state, reason):
    lamp = Lamp()
    async with running(tmp_path, lamp) as node:
        await node.send(sent)
        assert reason in (await node.until(sent.id, state)).reason
    assert lamp.levels == []


async def test_a_command_that_expires_in_the_queue_does_not_run(tmp_path):
    lamp = Lamp()
    now = [NOW_MS]
    async with running(tmp_path, lamp, clock_ms=lambda: now[0]) as node:
        for number in range(2, 6):
            await node.send(command(number, "slow", {}))
        await lamp.began.wait()
        await node.send(command(1))
        now[0] += 2000
        lamp.may_end.set()
        await node.until(b"\x01" * 8, State.EXPIRED)
    assert lamp.levels == []


async def test_the_more_urgent_command_runs_first(tmp_path):
    lamp = Lamp()
    async with running(tmp_path, lamp) as node:
        for number in range(2, 6):
            await node.send(command(number, "slow", {}))
        for number in range(2, 6):
            await node.until(bytes([number]) * 8, State.RUNNING)
        await node.send(command(10, args={"level": 1}, priority=1))
        await node.send(command(11, args={"level": 9}, priority=9))
        lamp.may_end.set()
        await node.until(b"\x0a" * 8, State.SUCCEEDED)
    assert lamp.levels == [9, 1]


async def test_cancelling_has_three_answers(tmp_path):
    lamp = Lamp()
    async with running(tmp_path, lamp) as node:
        await node.send(command(1))
        await node.until(b"\x01" * 8, State.SUCCEEDED)
        for number in range(2, 6):
            await node.send(command(number, "slow", {}))
            await node.until(bytes([number]) * 8, State.RUNNING)
        await node.send(command(7))
        for number in (1, 7, 2, 99):
            await node.send(Cancel(bytes([number]) * 8))
        await node.until(b"\x02" * 8, State.CANCELLED)
        answers = {a.id[0]: a.answer for a in await node.answers() if isinstance(a, Cancelled)}
        lamp.may_end.set()
        await node.until(b"\x03" * 8, State.SUCCEEDED)
        assert (await node.states(b"\x07" * 8))[-1] is State.CANCELLED
    assert answers == {
        1: CancelAnswer.TOO_LATE,
        2: CancelAnswer.CANCELLED,
        7: CancelAnswer.CANCELLED,
        99: CancelAnswer.REFUSED,
    }
    assert lamp.levels == [3], "the cancelled one had no effect"


async def test_a_restart_takes_up_what_may_be_repeated_and_fails_what_may_not(tmp_path):
    lamp = Lamp()
    async with running(tmp_path, lamp) as node:
        for number, op in ((1, "slow"), (2, "once")):
            await node.send(command(number, op, {}))
            await node.until(bytes([number]) * 8, State.RUNNING)
    lamp = Lamp()
    lamp.may_end.set()
    async with running(tmp_path, lamp) as node:
        await node.until(b"\x01" * 8, State.SUCCEEDED)
        assert "not safe" in (await node.until(b"\x02" * 8, State.FAILED)).reason


async def test_an_operation_says_how_far_it_is_but_not_more_often_than_people_read(tmp_path):
    lamp = Lamp()
    async with running(tmp_path, lamp) as node:
        await node.send(command(1, "far", {}))
        await lamp.began.wait()
        told = [answer for answer in await node.answers() if answer.progress]
        assert [(t.state, t.progress, t.reason) for t in told] == [(State.RUNNING, 20, "step 20")]
        # A repeat hears the newest.
        await node.send(command(1, "far", {}))
        assert (await node.answers())[-1].progress == 20
        lamp.may_end.set()
        await node.until(b"\x01" * 8, State.SUCCEEDED)
