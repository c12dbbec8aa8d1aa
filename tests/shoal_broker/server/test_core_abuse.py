"""Whatever clients send, the core goes on for the others and forgets the offender."""

from __future__ import annotations

import random

import pytest
from tests.shoal_broker.server.desk import NEVER, Desk

from shoal_broker.codec import (
    ConnectPacket,
    DisconnectPacket,
    PubAckPacket,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    QoS,
    SubscribePacket,
    TopicFilter,
    UnsubscribePacket,
    Will,
    encode,
)

TALK = [
    ConnectPacket(
        "m", session_expiry_interval=5, topic_alias_max=3, will=Will("a/w", payload=b"w")
    ),
    SubscribePacket(1, [TopicFilter("a/+"), TopicFilter("$share/g/a/#")], subscription_id=5),
    PublishPacket("a/b", b"payload", qos=QoS.AT_LEAST_ONCE, packet_id=3, retain=True),
    PublishPacket("a/é", b"\xff", topic_alias=2, user_properties=[("k", "v")]),
    PublishPacket("", b"again", topic_alias=2),
    PubAckPacket(1),
    PublishPacket("a/b", b"once", qos=QoS.EXACTLY_ONCE, packet_id=4),
    PubRelPacket(4),
    PubRecPacket(2),
    PubCompPacket(2),
    UnsubscribePacket(2, ["a/+"]),
    DisconnectPacket(session_expiry_interval=3),
]


def abuse(seed: int, rounds: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - the same every time
    desk = Desk(max_queued_messages=50, max_sessions=500)
    witness = desk.connect("witness", session_expiry_interval=NEVER)
    witness.subscribe("proof")
    for number in range(rounds):
        offender = desk.stranger()
        if rng.random() < 0.7:
            offender.send(TALK[0])
        data = bytearray(b"".join(encode(p) for p in rng.choices(TALK, k=3)))
        for _ in range(rng.randint(0, 4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x23, 0x30, 0x82, 0xFF))
        offender.send_bytes(bytes(data))
        if rng.random() < 0.3 and not offender.closed:
            offender.drop()
        if number % 10 == 0:
            desk.wait(1)
    witness.take()
    assert witness.publish_and_hear("proof")
    for connection in list(desk.core.connections):
        if connection is not witness.connection:
            connection.owner.drop()
    # No expiry that a mutant may have asked for lasts longer than this, but "never".
    desk.wait(0xFFFFFFFF)
    left = [s for s in desk.core.router.sessions.values() if s.expiry_interval_s != NEVER]
    assert left == []
    for session in desk.core.router.sessions.values():
        assert session.held_messages <= 50
        assert session.held_bytes >= 0


def test_mutated_conversations_harm_nobody_else(capfd):
    abuse(1, 1_500)
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.timeout(600)
def test_many_mutated_conversations_harm_nobody_else(capfd):
    abuse(2, 100_000)
    assert "panicked" not in capfd.readouterr().err
