"""Whose word counts at a node: the door itself, and behind it a real journal, outbox and session."""

import pytest
from structlog.testing import capture_logs
from tests.shoal_agent.test_inbox import TOPICS, answers, inbound, node

from shoal_agent.trust import REASONS, SAY_EVERY_S, Trust
from shoal_broker.outbox import OutboxMessage
from shoal_contract import messages, receipts
from shoal_contract.messages import Cancel, CancelAnswer, Command, Receipt, State
from shoal_contract.signatures import Signer

OURS, STRANGER = Signer(b"\x01" * 32), Signer(b"\x02" * 32)
KEYS = [OURS.public_key]
MINE, OTHER, GROUP = TOPICS.commands("n1"), TOPICS.commands("n2"), TOPICS.group_commands("oven")
COMMAND = Command(bytes(8), "nothing", {}, 0, 5000)
PAYLOAD = messages.encode(COMMAND)


def signed(message=COMMAND, *, by=OURS, topic=MINE):
    return by.sign(messages.encode(message), topic=topic)


REFUSED = {
    "unsigned": PAYLOAD,
    "shape": signed()[:-1],
    "unknown_key": signed(by=STRANGER),
    "bad_signature": signed(topic=OTHER),
}


def test_without_keys_every_message_counts_signed_or_not():
    trust = Trust([])
    for data in (PAYLOAD, signed(), signed(by=STRANGER), signed(topic=OTHER)):
        assert trust.open(data, topic=MINE) == (PAYLOAD, b"")
    assert trust.open(b"garbage", topic=MINE) == (b"garbage", b"")
    assert trust.refused.total() == 0


def test_without_keys_a_broken_envelope_is_refused():
    trust = Trust([])
    assert trust.open(REFUSED["shape"], topic=MINE) is None
    assert trust.refused["shape"] == 1


@pytest.mark.parametrize("reason", REFUSED)
def test_with_keys_what_they_did_not_sign_for_this_topic_is_refused_and_counted(reason):
    trust = Trust(KEYS)
    assert trust.open(REFUSED[reason], topic=MINE) is None
    assert trust.refused == {**dict.fromkeys(REASONS, 0), reason: 1}
    assert trust.open(signed(), topic=MINE) == (PAYLOAD, OURS.public_key)


def test_a_second_key_counts_beside_the_first():
    trust = Trust([*KEYS, STRANGER.public_key])
    assert trust.open(signed(by=STRANGER), topic=MINE) == (PAYLOAD, STRANGER.public_key)
    assert trust.open(signed(), topic=MINE) == (PAYLOAD, OURS.public_key)


def test_refusals_are_one_line_a_minute_that_says_how_many():
    now_s = 100.0
    trust = Trust(KEYS, clock_s=lambda: now_s)
    with capture_logs() as lines:
        for _ in range(1000):
            trust.open(PAYLOAD, topic=MINE)
        now_s += SAY_EVERY_S
        trust.open(signed(by=STRANGER), topic=MINE)
    assert [(line["event"], line["why"], line["since_last_line"]) for line in lines] == [
        ("command refused", "unsigned", 1),
        ("command refused", "unknown_key", 1000),
    ]
    assert trust.refused["unsigned"] == 1000


@pytest.mark.parametrize("reason", REFUSED)
async def test_a_refused_command_has_no_effect_and_no_answer(tmp_path, reason):
    async with node(tmp_path, KEYS) as made:
        await made.inbox.command(inbound(MINE, REFUSED[reason]))
        assert await answers(made) == []
        assert made.inbox.stats.malformed == 0
        # Nothing of it was remembered: the real one is answered as new.
        await made.inbox.command(inbound(MINE, signed()))
        (answer,) = await answers(made)
        assert (answer.id, answer.state) == (COMMAND.id, State.REFUSED)


async def test_a_signed_command_that_is_replayed_elsewhere_or_again_has_one_effect(tmp_path):
    async with node(tmp_path, KEYS) as made:
        original = signed()
        for topic in (GROUP, OTHER, TOPICS.group_commands("all"), "other/n/n1/c"):
            await made.inbox.command(inbound(topic, original))
        assert await answers(made) == []
        for _ in range(3):
            await made.inbox.command(inbound(MINE, original))
        first, *repeats = await answers(made)
        assert repeats == [first, first]
        rows = await made.store.read(lambda db: db.execute("SELECT id FROM commands").fetchall())
        assert rows == [(COMMAND.id,)]


async def test_a_group_s_command_and_its_repeat_to_a_member_are_one_command(tmp_path):
    async with node(tmp_path, KEYS) as made:
        await made.inbox.command(inbound(GROUP, signed(topic=GROUP)))
        await made.inbox.command(inbound(MINE, signed(topic=MINE)))
        assert len(await answers(made)) == 2
        rows = await made.store.read(lambda db: db.execute("SELECT id FROM commands").fetchall())
        assert rows == [(COMMAND.id,)]


async def test_a_signed_command_that_comes_after_its_time_is_expired(tmp_path):
    # The node's clock stands at 1000.
    late = Command(b"too late", "nothing", {}, 0, 999)
    async with node(tmp_path, KEYS) as made:
        await made.inbox.command(inbound(MINE, signed(late)))
        (answer,) = await answers(made)
        assert answer.state is State.EXPIRED


async def test_a_request_to_cancel_has_to_be_signed_too(tmp_path):
    async with node(tmp_path, KEYS) as made:
        await made.inbox.command(inbound(MINE, Cancel(COMMAND.id)))
        assert await answers(made) == []
        await made.inbox.command(inbound(MINE, signed(Cancel(COMMAND.id))))
        (answer,) = await answers(made)
        assert answer.answer is CancelAnswer.REFUSED
        assert answer.reason == "this node does not know the command"


async def test_a_receipt_has_to_be_signed_too(tmp_path):
    async with node(tmp_path, KEYS) as made:
        topic = TOPICS.telemetry("n1", "digits")
        name = receipts.name(topic, b"1")
        await made.outbox.put(
            OutboxMessage(topic=topic, payload=b"1", receipt=name, droppable=True)
        )
        await made.inbox.command(inbound(MINE, Receipt(name)))
        assert len(made.outbox) == 1
        await made.inbox.command(inbound(MINE, signed(Receipt(name))))
        assert len(made.outbox) == 0
