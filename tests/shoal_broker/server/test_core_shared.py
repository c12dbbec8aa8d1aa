"""Shared subscriptions: one member each, in turn; nothing is lost with a member."""

from tests.shoal_broker.server.desk import NEVER, Desk

from shoal_broker.codec import ConnectPacket, DisconnectPacket
from shoal_broker.server.counters import Dropped


def members(desk, count, **options):
    clients = [desk.connect(f"m{n}", **options) for n in range(count)]
    for client in clients:
        client.subscribe("$share/g/t/+")
    return clients


def test_members_take_turns():
    desk = Desk()
    group = members(desk, 3)
    sender = desk.connect("s")
    for n in range(6):
        assert sender.publish("t/x", bytes([n])) == 0
    assert [client.payloads() for client in group] == [
        [b"\0", b"\3"],
        [b"\1", b"\4"],
        [b"\2", b"\5"],
    ]


def test_groups_and_plain_subscriptions_each_get_it():
    desk = Desk()
    one, other, plain = desk.connect("1"), desk.connect("2"), desk.connect("3")
    one.subscribe("$share/a/t")
    other.subscribe("$share/b/t")
    plain.subscribe("t", "$share/a/elsewhere")
    desk.connect("s").publish("t")
    assert [len(c.messages()) for c in (one, other, plain)] == [1, 1, 1]


def test_who_is_away_is_passed_over():
    desk = Desk()
    first, second = members(desk, 2, session_expiry_interval=NEVER)
    first.drop()
    sender = desk.connect("s")
    for n in range(3):
        sender.publish("t/x", bytes([n]))
    assert second.payloads() == [b"\0", b"\1", b"\2"]


def test_with_everybody_away_it_waits_for_one_of_them():
    desk = Desk()
    (only,) = members(desk, 1, session_expiry_interval=NEVER)
    only.drop()
    assert desk.connect("s").publish("t/x", b"later") == 0
    back = desk.stranger()
    back.send(ConnectPacket("m0", session_expiry_interval=NEVER))
    assert back.payloads() == [b"later"]


def test_what_a_member_did_not_acknowledge_goes_to_another_when_it_leaves_for_ever():
    desk = Desk()
    first, second = members(desk, 2)
    sender = desk.connect("s")
    for n in range(4):
        sender.publish("t/x", bytes([n]))
    kept = first.messages()
    first.acknowledge(kept[:1])
    second.acknowledge(second.messages())
    first.send(DisconnectPacket())
    assert second.payloads() == [b"\2"]


def test_a_member_that_comes_back_keeps_its_own():
    desk = Desk()
    first, second = members(desk, 2, session_expiry_interval=60)
    desk.connect("s").publish("t/x", b"mine")
    assert first.payloads() == [b"mine"]
    first.drop()
    assert second.messages() == []
    back = desk.stranger()
    back.send(ConnectPacket("m0"))
    (message,) = back.messages()
    assert (message.payload, message.duplicate) == (b"mine", True)


def test_an_expired_session_hands_its_work_on():
    desk = Desk()
    first, second = members(desk, 2, session_expiry_interval=60)
    desk.connect("s").publish("t/x", b"work")
    first.drop()
    second.send()
    desk.wait(61)
    assert second.payloads() == [b"work"]


def test_the_last_member_leaving_loses_it_and_that_is_counted():
    desk = Desk()
    (only,) = members(desk, 1)
    desk.connect("s").publish("t/x")
    only.drop()
    assert desk.core.counters.dropped[Dropped.SESSION_ENDED] == 1


def test_a_full_member_is_passed_over_and_a_full_group_refuses():
    desk = Desk(max_queued_messages=1)
    first, second = members(desk, 2)
    sender = desk.connect("s")
    assert [sender.publish("t/x", bytes([n])) for n in range(3)] == [0, 0, 0x97]
    assert first.payloads() == [b"\0"]
    got = second.messages()
    second.acknowledge(got)
    assert sender.publish("t/x", b"again") == 0
    assert second.payloads() == [b"again"]
