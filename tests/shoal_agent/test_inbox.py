"""The inbox with a real journal, outbox and session; the broker is away, the messages are handed in."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from shoal_agent.belonging import Belonging
from shoal_agent.commands import Commands
from shoal_agent.inbox import Inbox
from shoal_agent.journal import Journal
from shoal_agent.operations import Operations
from shoal_agent.pipelines.fleet import FleetPipelines
from shoal_agent.trust import Trust
from shoal_agent.wanted import WantedState
from shoal_broker.outbox import Outbox, OutboxMessage
from shoal_broker.session import Inbound, Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract import messages, receipts
from shoal_contract.messages import Cancel, Command, CommandUpdate, Receipt, State, Wanted
from shoal_contract.topics import Topics

TOPICS = Topics()


@asynccontextmanager
async def node(tmp_path, keys=()):
    trust = Trust(keys)
    inbox = Inbox(TOPICS, "n1", trust)
    async with Store.open(tmp_path / "agent.db") as store:
        outbox = await Outbox.load(store)
        journal = await Journal.load(store)
        async with Session.open(
            SessionConfig(host="127.0.0.1", port=1, client_id="n1"), outbox=outbox
        ) as session:
            commands = Commands(
                journal=journal,
                operations=Operations(),
                results_topic=TOPICS.results("n1"),
                outbox_changed=session.outbox_changed,
                clock_ms=lambda: 1000,
            )
            belonging = Belonging(session, TOPICS, inbox.command)
            updater = SimpleNamespace(wake=lambda: None)
            # No inference request comes here.
            inbox.open(
                SimpleNamespace(
                    commands=commands,
                    outbox=outbox,
                    belonging=belonging,
                    wanted=WantedState(journal, trust, topic=TOPICS.wanted("n1")),
                    updater=updater,
                    session=session,
                    pipelines=await FleetPipelines.load(store, None),
                )
            )
            yield SimpleNamespace(inbox=inbox, outbox=outbox, store=store, session=session)


def inbound(topic: str, message) -> Inbound:
    payload = message if isinstance(message, bytes) else messages.encode(message)
    return Inbound(topic=topic, payload=payload, qos=1, retain=False)


async def answers(made) -> list:
    rows = await made.store.read(
        lambda db: db.execute("SELECT payload FROM outbox ORDER BY id").fetchall()
    )
    return [messages.decode(payload) for (payload,) in rows]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"\x80",
        b"\x81\x17",
        b"\x82\x01\x02",
        bytes(100_000),
        b"\x83\x05\xf5\x44boot",
        messages.encode(Receipt(b"no whole name")),
    ],
)
async def test_garbage_is_counted_and_has_no_effect(tmp_path, payload):
    async with node(tmp_path) as made:
        await made.inbox.command(inbound(TOPICS.commands("n1"), payload))
        assert made.inbox.stats.malformed + made.inbox.stats.unknown_kind == 1
        assert await answers(made) == []


async def test_a_command_of_a_group_is_answered_like_one_of_our_own(tmp_path):
    async with node(tmp_path) as made:
        command = Command(bytes(8), "nothing", {}, 0, 5000)
        await made.inbox.command(inbound(TOPICS.group_commands("all"), command))
        await made.inbox.command(inbound(TOPICS.commands("n1"), command))
        await made.inbox.command(inbound(TOPICS.commands("n1"), Cancel(bytes(8))))
        refused = [answer for answer in await answers(made) if isinstance(answer, CommandUpdate)]
        assert [answer.state for answer in refused] == [State.REFUSED, State.REFUSED]


async def test_a_receipt_ends_what_it_names_and_nothing_else(tmp_path):
    async with node(tmp_path) as made:
        topic = TOPICS.telemetry("n1", "digits")
        names = [receipts.name(topic, payload) for payload in (b"1", b"2", b"3")]
        for payload, name in zip((b"1", b"2", b"3"), names, strict=True):
            await made.outbox.put(
                OutboxMessage(topic=topic, payload=payload, receipt=name, droppable=True)
            )
        receipt = Receipt(names[0] + names[2] + bytes(8))
        await made.inbox.command(inbound(TOPICS.commands("n1"), receipt))
        rows = await made.outbox.take(max_rows=9, max_bytes=999)
        assert [row.message.payload for row in rows] == [b"2"]


async def test_the_groups_of_the_wanted_state_are_subscribed_to_and_left_again(tmp_path):
    async with node(tmp_path) as made:

        def subscribed() -> set[str]:
            return set(made.session._dispatcher.subscriptions)

        wanted = inbound(TOPICS.wanted("n1"), Wanted(1, 1, [], ["oven", "north", "all"], 10_000))
        await made.inbox.wanted(wanted)
        assert subscribed() == {"shoal/g/oven/c", "shoal/g/north/c"}
        assert made.session.backoff.first_s == 20.0
        await made.inbox.wanted(inbound(TOPICS.wanted("n1"), Wanted(2, 1, [], ["north"])))
        assert subscribed() == {"shoal/g/north/c"}
        assert made.session.backoff.first_s == made.session.config.backoff_initial_s


async def test_a_wanted_state_of_an_older_controller_has_no_groups(tmp_path):
    async with node(tmp_path) as made:
        old = bytes.fromhex("8407010180")
        await made.inbox.wanted(inbound(TOPICS.wanted("n1"), old))
        assert made.inbox.stats.malformed == 0
        assert not made.session._dispatcher.subscriptions
