"""Whoever may publish tries to move a device: what was recorded, what is for others, what is nobody's to say."""

import random
from collections import Counter

import pytest
from tests.shoal_agent.test_policies import (
    ALICE,
    BATH,
    BOB,
    LATER_MS,
    MINE,
    NOW_MS,
    OVEN,
    TOPICS,
    Node,
    mandate,
    node,
)

from shoal_agent.trust import POLICY_OP
from shoal_broker.session import Inbound
from shoal_contract import messages
from shoal_contract.messages import Command, Policy
from shoal_contract.signatures import Signer

ROOT, STRANGER = Signer(b"\x01" * 32), Signer(b"\x09" * 32)
ELSEWHERE = (
    TOPICS.commands("n2"),
    TOPICS.commands("n11"),
    TOPICS.group_commands("all"),
    BATH,
    "other/n/n1/c",
    MINE + "/",
)
HONEST = 80
KEPT = 64
"""The node remembers so many commands; the first honest ones are forgotten by then."""


class Attacker:
    """Has recorded everything, may publish anywhere, and holds keys that do not count for what it wants."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)  # noqa: S311 - a test that can be repeated
        self.recorded: list[tuple[str, bytes]] = []
        self.now_ms = NOW_MS
        self._number = 1 << 40

    def fresh(self, op="device.set", *, expires_ms=LATER_MS, args=None) -> bytes:
        self._number += 1
        issued_ms = min(self.now_ms, expires_ms - 1000)
        number = self._number.to_bytes(8, "big")
        return messages.encode(Command(number, op, args or {}, issued_ms, expires_ms))

    def replayed(self) -> tuple[str, bytes]:
        """The first that were recorded, which the node has forgotten, too."""
        return self.draw.choice(self.recorded)

    def cross_node(self) -> tuple[str, bytes]:
        return MINE, ROOT.sign(self.fresh(), topic=self.draw.choice(ELSEWHERE))

    def cross_topic(self) -> tuple[str, bytes]:
        topic, data = self.draw.choice(self.recorded)
        return (OVEN if topic == MINE else MINE), data

    def expired(self) -> tuple[str, bytes]:
        late_ms = NOW_MS - self.draw.randrange(1, 1 << 30)
        return MINE, ROOT.sign(self.fresh(expires_ms=late_ms), topic=MINE)

    def wrong_issuer(self) -> tuple[str, bytes]:
        by = self.draw.choice((STRANGER, BOB, Signer(self.draw.randbytes(32))))
        return MINE, by.sign(self.fresh(), topic=MINE)

    def widened_scope(self) -> tuple[str, bytes]:
        """Alice may ping, in the oven's group: she sets the device, or lets somebody set it."""
        topic = self.draw.choice((MINE, OVEN))
        if self.draw.random() < 0.5:
            return topic, ALICE.sign(self.fresh(), topic=topic)
        wide = Policy(self.draw.randrange(2, 1 << 20), NOW_MS, [mandate(BOB, ops=["*"])])
        document = self.draw.choice((ALICE, STRANGER)).sign(messages.encode(wide), topic=topic)
        return topic, ALICE.sign(self.fresh(POLICY_OP, args={"document": document}), topic=topic)

    def unsigned(self) -> tuple[str, bytes]:
        return MINE, self.fresh()

    def damaged(self) -> tuple[str, bytes]:
        """A command that nobody has seen yet, with one bit of it turned over."""
        data = bytearray(ROOT.sign(self.fresh(), topic=MINE))
        data[self.draw.randrange(len(data))] ^= 1 << self.draw.randrange(8)
        return MINE, bytes(data)


KINDS = (
    Attacker.replayed,
    Attacker.cross_node,
    Attacker.cross_topic,
    Attacker.expired,
    Attacker.wrong_issuer,
    Attacker.widened_scope,
    Attacker.unsigned,
    Attacker.damaged,
)


async def _hear(made: Node, topic: str, data: bytes) -> None:
    await made._inbox.command(Inbound(topic=topic, payload=data, qos=1, retain=False))


async def _recorded(made: Node, attacker: Attacker) -> None:
    """Honest commands to the node and to its group, each carried out once."""
    for number in range(HONEST):
        topic = MINE if number % 2 else OVEN
        made.now_ms = attacker.now_ms = NOW_MS + number
        command = made.command(issued_ms=made.now_ms)
        data = ROOT.sign(messages.encode(command), topic=topic)
        await _hear(made, topic, data)
        await made.answer(command.id)
        attacker.recorded.append((topic, data))
    assert made.set == HONEST


@pytest.mark.parametrize(
    "tries",
    [
        pytest.param(800, id="short"),
        pytest.param(100_000, id="full", marks=[pytest.mark.long, pytest.mark.timeout(3000)]),
    ],
)
async def test_nothing_that_was_not_said_for_here_and_now_moves_the_device(
    tries, tmp_path, monkeypatch, record_property
):
    monkeypatch.setattr("shoal_agent.journal.KEPT_COMMANDS", KEPT)
    attacker, counts = Attacker(7), Counter[str]()
    async with node(tmp_path) as made:
        taken = await made.take(Policy(1, NOW_MS, [mandate(ops=["ping"], groups=["oven"])]))
        assert taken.result == {"version": 1}
        await _recorded(made, attacker)
        for number in range(tries):
            kind = KINDS[number % len(KINDS)]
            topic, data = kind(attacker)
            await _hear(made, topic, data)
            counts[kind.__name__] += 1
        # Behind all of them, and it runs: what waits in the queue has run by then.
        made.now_ms += 1
        last = made.command(issued_ms=made.now_ms)
        await made.say(last)
        await made.answer(last.id)
        executed = made.set - HONEST - 1
    told = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
    print(f"{tries:,} tries ({told}): {executed} executed")
    record_property("tries", tries)
    record_property("bad", executed)
    assert executed == 0
