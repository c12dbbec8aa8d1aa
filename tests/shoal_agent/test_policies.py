"""Mandates at a node: signed policies come as commands, and what they say holds over restarts."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from tests.shoal_agent.until import until

from shoal_agent.commands import Commands
from shoal_agent.inbox import Inbox
from shoal_agent.journal import KEPT_COMMANDS, Journal
from shoal_agent.operations import Operations
from shoal_agent.policies import Policies
from shoal_agent.trust import POLICY_OP, Trust
from shoal_broker.outbox import Outbox
from shoal_broker.session import Inbound
from shoal_broker.store import Store
from shoal_contract import messages, receipts
from shoal_contract.messages import (
    Cancel,
    CancelAnswer,
    Cancelled,
    Command,
    CommandUpdate,
    Mandate,
    Policy,
    Receipt,
    State,
)
from shoal_contract.operations import Operation
from shoal_contract.signatures import Signer
from shoal_contract.topics import Topics

TOPICS = Topics()
MINE, OVEN, BATH = (
    TOPICS.commands("n1"),
    TOPICS.group_commands("oven"),
    TOPICS.group_commands("bath"),
)
ROOT, ALICE, BOB = (Signer(bytes([n]) * 32) for n in (1, 2, 3))
NOW_MS = 1_000_000
LATER_MS = NOW_MS + 60_000


class Node:
    """A node of group "oven", its commands run; `say` is what the bus brings it."""

    def __init__(self, store, inbox, commands, trust) -> None:
        self.store = store
        self.commands = commands
        self.trust = trust
        self.set = 0
        self.now_ms = NOW_MS
        self._inbox = inbox
        self._numbers = iter(range(1, 1 << 20))

    async def say(self, message, *, by=ROOT, topic=MINE) -> None:
        data = by.sign(messages.encode(message), topic=topic)
        await self._inbox.command(Inbound(topic=topic, payload=data, qos=1, retain=False))

    async def ask(self, op="device.set", *, by=ROOT, topic=MINE, issued_ms=NOW_MS, **more):
        """The final answer to a command."""
        command = self.command(op, issued_ms=issued_ms, **more)
        await self.say(command, by=by, topic=topic)
        return await self.answer(command.id)

    def command(self, op="device.set", *, issued_ms=NOW_MS, expires_ms=LATER_MS, args=None):
        number = next(self._numbers).to_bytes(8, "big")
        return Command(number, op, args or {}, issued_ms, expires_ms)

    async def answer(self, command_id: bytes) -> CommandUpdate:
        found: list[CommandUpdate] = []

        async def is_final() -> bool:
            found[:] = [
                update
                for update in await self.outbox()
                if isinstance(update, CommandUpdate)
                and update.id == command_id
                and update.state.is_final
            ]
            return bool(found)

        while not await is_final():
            await until(lambda: True)
        return found[-1]

    async def outbox(self) -> list:
        rows = await self.store.read(
            lambda db: db.execute("SELECT payload FROM outbox ORDER BY id").fetchall()
        )
        return [messages.decode(payload) for (payload,) in rows]

    async def take(self, policy: Policy, *, signer=ROOT, by=ROOT, topic=MINE, for_topic=MINE):
        document = signer.sign(messages.encode(policy), topic=for_topic)
        return await self.ask(POLICY_OP, by=by, topic=topic, args={"document": document})


@asynccontextmanager
async def node(tmp_path, keys=(ROOT.public_key,)):
    trust = Trust(keys)
    inbox = Inbox(TOPICS, "n1", trust)
    async with Store.open(tmp_path / "agent.db") as store:
        outbox = await Outbox.load(store)
        journal = await Journal.load(store)
        belonging = SimpleNamespace(groups=frozenset({"oven"}))
        policies = Policies(
            journal=journal, trust=trust, topics=TOPICS, node="n1", belonging=belonging
        )
        await policies.restore()
        table = Operations()
        policies.declare(table)

        async def device_set(_, __):
            made.set += 1
            return {}

        table.add(Operation("device.set", "", "operate"), device_set)
        table.add(Operation("ping", "", "read"), device_set)
        commands = Commands(
            journal=journal,
            operations=table,
            results_topic=TOPICS.results("n1"),
            outbox_changed=lambda: None,
            clock_ms=lambda: made.now_ms,
            trust=trust,
        )
        policies.attach(commands)
        made = Node(store, inbox, commands, trust)
        made.box = outbox
        await commands.recover()
        inbox.open(SimpleNamespace(commands=commands, outbox=outbox, belonging=belonging))
        running = asyncio.create_task(commands.run())
        try:
            yield made
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def mandate(signer=ALICE, ops=("device.*",), groups=("oven",), **more) -> Mandate:
    return Mandate(signer.public_key, "alice", list(ops), list(groups), **more)


async def test_a_key_with_a_mandate_commands_within_it_and_no_further(tmp_path):
    async with node(tmp_path) as made:
        await made.say(made.command(), by=ALICE)
        assert await made.outbox() == []
        assert made.trust.refused["unknown_key"] == 1
        taken = await made.take(Policy(1, NOW_MS, [mandate()]))
        assert (taken.state, taken.result) == (State.SUCCEEDED, {"version": 1})
        assert (await made.ask(by=ALICE)).state is State.SUCCEEDED
        refused = await made.ask("ping", by=ALICE)
        assert (refused.state, refused.reason) == (
            State.REFUSED,
            "the mandate of alice does not include ping",
        )
        assert made.set == 1


async def test_a_mandate_for_one_group_says_nothing_on_anothers_topic(tmp_path):
    async with node(tmp_path) as made:
        await made.take(Policy(1, NOW_MS, [mandate(groups=["oven"])]))
        assert (await made.ask(by=ALICE, topic=OVEN)).state is State.SUCCEEDED
        # The node would have to be a member to hear it at all; it might have been until now.
        assert (await made.ask(by=ALICE, topic=BATH)).state is State.REFUSED
        assert made.set == 1


async def test_a_policy_holds_after_a_restart(tmp_path):
    async with node(tmp_path) as made:
        await made.take(Policy(1, NOW_MS, [mandate()]))
    async with node(tmp_path) as made:
        made.now_ms = NOW_MS
        command = made.command()
        command = Command(b"restart1", command.op, {}, NOW_MS, LATER_MS)
        await made.say(command, by=ALICE)
        assert (await made.answer(command.id)).state is State.SUCCEEDED


async def test_a_revoked_key_is_a_stranger_and_its_mandate_does_not_come_back_with_an_old_policy(
    tmp_path,
):
    first = Policy(1, NOW_MS, [mandate()])
    async with node(tmp_path) as made:
        await made.take(first)
        assert (await made.take(Policy(2, NOW_MS, revoked=[ALICE.public_key]))).result == {
            "version": 2
        }
        await made.say(made.command(), by=ALICE)
        assert made.trust.refused["unknown_key"] == 1
        old = await made.take(first)
        assert (old.state, old.reason) == (
            State.FAILED,
            "version 1 of this policy is not newer than 2",
        )
        await made.say(made.command(), by=ALICE)
        assert made.set == 0


async def test_the_same_policy_again_is_no_failure(tmp_path):
    async with node(tmp_path) as made:
        for _ in range(2):
            assert (await made.take(Policy(1, NOW_MS, [mandate()]))).state is State.SUCCEEDED


@pytest.mark.parametrize(
    ("signer", "for_topic", "says"),
    [
        (ALICE, MINE, "may not delegate"),
        (BOB, MINE, "a key that does not count here"),
        (ROOT, BATH, "not signed by"),
        (ROOT, TOPICS.commands("n2"), "not signed by"),
    ],
)
async def test_a_policy_of_somebody_else_or_for_somebody_else_is_refused(
    tmp_path, signer, for_topic, says
):
    async with node(tmp_path) as made:
        await made.take(Policy(1, NOW_MS, [mandate()]))
        answer = await made.take(Policy(9, NOW_MS), signer=signer, for_topic=for_topic)
        assert answer.state is State.FAILED
        assert says in answer.reason


async def test_a_policy_may_be_signed_for_a_group(tmp_path):
    async with node(tmp_path) as made:
        answer = await made.take(Policy(1, NOW_MS, [mandate()]), topic=OVEN, for_topic=OVEN)
        assert answer.state is State.SUCCEEDED


async def test_a_delegate_gives_less_than_it_has(tmp_path):
    async with node(tmp_path) as made:
        above = mandate(ops=["device.set", POLICY_OP], may_delegate=True)
        await made.take(Policy(1, NOW_MS, [above]))
        wide = mandate(BOB, ops=["*"], groups=["*"])
        assert (await made.take(Policy(1, NOW_MS, [wide]), signer=ALICE, by=ALICE)).result
        assert (await made.ask(by=BOB)).state is State.SUCCEEDED
        assert (await made.ask("ping", by=BOB)).state is State.REFUSED


@pytest.mark.parametrize("document", [b"x", "text", b"\x84\x43abc", bytes(49 * 1024)])
async def test_what_is_no_policy_is_refused(tmp_path, document):
    async with node(tmp_path) as made:
        answer = await made.ask(POLICY_OP, args={"document": document})
        assert answer.state in {State.FAILED, State.REFUSED}
        assert answer.reason


async def test_a_node_without_keys_takes_no_policy(tmp_path):
    async with node(tmp_path, keys=()) as made:
        answer = await made.take(Policy(1, NOW_MS, [mandate()]))
        assert answer.state is State.FAILED
        assert "no [trust] command_keys" in answer.reason


async def test_an_operation_that_is_not_approved_runs_for_nobody(tmp_path):
    async with node(tmp_path) as made:
        await made.take(Policy(1, NOW_MS, denied=["device.set"]))
        answer = await made.ask()
        assert (answer.state, answer.reason) == (State.REFUSED, "device.set is not approved here")
        assert (await made.ask("ping")).state is State.SUCCEEDED


async def test_only_who_may_ask_for_a_command_may_cancel_it(tmp_path):
    async with node(tmp_path) as made:
        await made.take(Policy(1, NOW_MS, [mandate(ops=["ping"])]))
        done = await made.ask()
        await made.say(Cancel(done.id), by=ALICE)
        await made.say(Cancel(done.id), by=ROOT)
        answers = [a for a in await made.outbox() if isinstance(a, Cancelled)]
        assert [a.answer for a in answers] == [CancelAnswer.REFUSED, CancelAnswer.TOO_LATE]


async def test_a_receipt_counts_from_a_root_only(tmp_path):
    async with node(tmp_path) as made:
        await made.take(Policy(1, NOW_MS, [mandate(ops=["*"], groups=["*"])]))
        heard = []
        made.box.received = heard.append
        name = receipts.name("t", b"x")
        await made.say(Receipt(name), by=ALICE)
        await made.say(Receipt(name), by=ROOT)
        assert len(heard) == 1


# ------------------------------------------------------------------ time and forgetting
async def test_an_expired_command_stays_expired_when_the_clock_goes_back(tmp_path):
    async with node(tmp_path) as made:
        held_back = made.command(issued_ms=NOW_MS, expires_ms=NOW_MS + 1000)
        assert (await made.ask(issued_ms=NOW_MS + 5000)).state is State.SUCCEEDED
    async with node(tmp_path) as made:
        made.now_ms = 0
        await made.say(held_back)
        # The first ask of the run before had the number 2: this one was never heard.
        assert (await made.answer(held_back.id)).state is State.EXPIRED


async def test_a_policy_sets_right_a_time_that_was_told_too_far_ahead(tmp_path):
    year_ms = 365 * 86_400_000
    async with node(tmp_path) as made:
        await made.ask(issued_ms=NOW_MS + 10 * year_ms, expires_ms=NOW_MS + 11 * year_ms)
        assert (await made.ask()).state is State.EXPIRED
        assert (await made.take(Policy(1, NOW_MS))).state is State.SUCCEEDED
        assert (await made.ask()).state is State.SUCCEEDED


async def test_a_delegate_does_not_tell_the_time(tmp_path):
    async with node(tmp_path) as made:
        await made.take(Policy(1, NOW_MS, [mandate()]))
        far_ms = NOW_MS + 10**12
        assert (await made.ask(by=ALICE, issued_ms=far_ms, expires_ms=far_ms)).state
        assert (await made.ask()).state is State.SUCCEEDED


async def test_a_command_that_may_have_been_forgotten_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr("shoal_agent.journal.KEPT_COMMANDS", 64)
    assert KEPT_COMMANDS > 64
    async with node(tmp_path) as made:
        first = made.command(issued_ms=NOW_MS)
        await made.say(first)
        await made.answer(first.id)
        for step in range(1, 80):
            await made.ask(issued_ms=NOW_MS + step)
        assert made.set == 80
        await made.say(first)
        await until(lambda: made.commands.stats.received == 81)
        answers = [
            a for a in await made.outbox() if isinstance(a, CommandUpdate) and a.id == first.id
        ]
        assert answers[-1].state is State.REFUSED
        assert "may be one of them" in answers[-1].reason
        assert made.set == 80
