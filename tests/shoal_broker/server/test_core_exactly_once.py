"""QoS 2 in both directions: once whatever repeats, over reconnects, within the windows of both ends."""

import pytest
from tests.shoal_broker.server.desk import NEVER, Desk

from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    PubAckPacket,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRecReasonCode,
    PubRelPacket,
    QoS,
    TopicFilter,
    Will,
)
from shoal_broker.server.counters import Dropped

TWICE = QoS.EXACTLY_ONCE


def at_2(topic: str, **options) -> TopicFilter:
    return TopicFilter(topic, max_qos=QoS.EXACTLY_ONCE, retain_as_published=False, **options)


def message(packet_id: int, payload: bytes = b"m", **options) -> PublishPacket:
    return PublishPacket("t", payload, qos=TWICE, packet_id=packet_id, **options)


def listening(desk: Desk, client_id: str = "l", topic: str = "t", **options):
    listener = desk.connect(client_id, **options)
    listener.subscribe(at_2(topic))
    return listener


def back(desk: Desk, client_id: str, **options):
    """The client is there again; what the broker repeats stays to be taken."""
    client = desk.stranger()
    client.send(ConnectPacket(client_id, session_expiry_interval=NEVER, **options))
    welcome = client.reader.next_packet()
    assert isinstance(welcome, ConnAckPacket)
    assert welcome.session_present
    return client


# --- from a client


def test_a_message_goes_through_all_four_packets():
    desk = Desk()
    listener = listening(desk)
    sender = desk.connect("s")
    sender.send(message(7))
    received = sender.take_one(PubRecPacket)
    assert (received.packet_id, int(received.reason_code)) == (7, 0)
    sender.send(PubRelPacket(7))
    completed = sender.take_one(PubCompPacket)
    assert (completed.packet_id, int(completed.reason_code)) == (7, 0)
    (got,) = listener.messages()
    assert (got.payload, got.qos, got.duplicate) == (b"m", TWICE, False)
    assert not desk.core.router.sessions["s"].unreleased


def test_a_repeat_before_its_release_is_answered_and_not_delivered():
    desk = Desk()
    listener = listening(desk)
    sender = desk.connect("s", session_expiry_interval=NEVER)
    sender.send(message(7))
    sender.drop()
    sender = back(desk, "s")
    sender.send(message(7, duplicate=True))
    assert sender.take_one(PubRecPacket).packet_id == 7
    # MQTT 5, 3.3.1.1: DUP says nothing about whether it is one.
    sender.send(message(7))
    assert sender.take_one(PubRecPacket).packet_id == 7
    assert listener.payloads() == [b"m"]


def test_after_its_release_the_same_id_is_a_new_message():
    desk = Desk()
    listener = listening(desk)
    sender = desk.connect("s")
    for payload in (b"1", b"2"):
        sender.send(message(7, payload), PubRelPacket(7))
        assert [type(answer) for answer in sender.take()] == [PubRecPacket, PubCompPacket]
    assert listener.payloads() == [b"1", b"2"]


def test_a_release_may_come_on_the_next_connection_and_once_more():
    desk = Desk()
    sender = desk.connect("s", session_expiry_interval=NEVER)
    sender.send(message(7))
    sender.drop()
    sender = back(desk, "s")
    sender.send(PubRelPacket(7))
    assert int(sender.take_one(PubCompPacket).reason_code) == 0
    sender.send(PubRelPacket(7))
    assert int(sender.take_one(PubCompPacket).reason_code) == 0x92


def test_a_clean_start_forgets_unreleased_messages():
    desk = Desk()
    listener = listening(desk)
    desk.connect("s", session_expiry_interval=NEVER).send(message(7))
    desk.connect("s", clean_start=True).send(message(7))
    assert listener.payloads() == [b"m", b"m"]


def test_a_message_that_nobody_wants_is_received_with_0x10():
    assert Desk().connect().publish_qos2("t") == 0x10


def test_a_refused_message_ends_with_its_pubrec():
    desk = Desk(max_queued_messages=1)
    listening(desk, session_expiry_interval=NEVER)
    sender = desk.connect("s")
    assert sender.publish_qos2("t") == 0
    assert sender.publish_qos2("t") == 0x97
    assert not desk.core.router.sessions["s"].unreleased
    sender.send(message(9))
    assert int(sender.take_one(PubRecPacket).reason_code) == 0x97
    sender.send(PubRelPacket(9))
    assert int(sender.take_one(PubCompPacket).reason_code) == 0x92


def test_a_message_that_one_session_has_no_room_for_reaches_nobody():
    desk = Desk(max_queued_messages=1)
    absent = listening(desk, "absent", session_expiry_interval=NEVER)
    absent.drop()
    present = listening(desk, "present")
    sender = desk.connect("s")
    assert sender.publish_qos2("t", b"1") == 0
    present.finish(present.messages())
    assert sender.publish_qos2("t", b"2", retain=True) == 0x97
    assert present.payloads() == []
    assert len(desk.core.router.retained) == 0
    assert desk.core.counters.dropped[Dropped.QUEUE_FULL] == 1


def test_a_topic_of_the_server_is_refused_in_the_pubrec():
    assert Desk().connect().publish_qos2("$SYS/x") == 0x90


def test_a_full_share_refuses():
    desk = Desk(max_queued_messages=1)
    listening(desk, topic="$share/g/t")
    sender = desk.connect("s")
    assert [sender.publish_qos2("t"), sender.publish_qos2("t")] == [0, 0x97]


# --- what we take at a time


def test_more_unreleased_messages_than_announced_end_the_connection():
    desk = Desk(receive_max=3)
    sender = desk.connect("s")
    assert sender.welcome.receive_max == 3
    sender.send(*map(message, (1, 2, 3)))
    assert [p.packet_id for p in sender.take()] == [1, 2, 3]
    sender.send(message(4))
    assert sender.goodbye_code() == 0x93


def test_completed_and_refused_messages_make_room():
    desk = Desk(receive_max=2)
    sender = desk.connect("s")
    for number in range(1, 20):
        assert sender.publish_qos2("t") == 0x10
        assert sender.publish_qos2("$x") == 0x90
        assert sender.publish("t") == 0x10
        sender.send(message(1000 + number), PubRelPacket(1000 + number))
        sender.take()
    assert not sender.closed


def test_qos_1_and_qos_2_count_together_until_the_last_answer_is_written():
    desk = Desk(receive_max=3)
    sender = desk.connect("s")
    sender.send(message(1), message(2))
    sender.take()
    once = [PublishPacket("t", b"", qos=QoS.AT_LEAST_ONCE, packet_id=n) for n in (3, 4)]
    sender.send(once[0])
    assert sender.take_one(PubAckPacket).packet_id == 3
    # Both in one piece: the client cannot have seen the answer to the first.
    sender.send(*once)
    assert sender.goodbye_code() == 0x93


def test_a_release_counts_until_its_answer_is_written():
    desk = Desk(receive_max=1)
    sender = desk.connect("s")
    sender.send(message(1))
    sender.take()
    sender.send(PubRelPacket(1), message(2))
    assert sender.goodbye_code() == 0x93


def test_what_is_unreleased_from_the_last_connection_does_not_count_on_this_one():
    desk = Desk(receive_max=2)
    sender = desk.connect("s", session_expiry_interval=NEVER)
    sender.send(message(1), message(2))
    sender.drop()
    sender = back(desk, "s")
    sender.send(message(3), message(4))
    assert [p.packet_id for p in sender.take()] == [3, 4]
    sender.send(PubRelPacket(1))
    sender.take_one(PubCompPacket)
    # A repeat belongs to this connection.
    sender.send(PubRelPacket(3))
    sender.take()
    sender.send(message(2, duplicate=True))
    assert sender.take_one(PubRecPacket).packet_id == 2
    sender.send(message(5))
    assert sender.goodbye_code() == 0x93


# --- to a client


def test_delivery_goes_through_all_four_packets():
    desk = Desk()
    listener = listening(desk)
    desk.connect("s").publish_qos2("t")
    session = desk.core.router.sessions["l"]
    (got,) = listener.messages()
    listener.send(PubRecPacket(got.packet_id))
    released = listener.take_one(PubRelPacket)
    assert (released.packet_id, int(released.reason_code)) == (got.packet_id, 0)
    assert session.held_bytes == 0
    assert session.held_messages == 1
    listener.send(PubCompPacket(got.packet_id))
    assert listener.take() == []
    assert session.held_messages == 0


def test_a_pubrec_that_refuses_ends_the_exchange_and_opens_the_window():
    desk = Desk()
    listener = listening(desk, receive_max=1)
    sender = desk.connect("s")
    sender.publish_qos2("t", b"1")
    sender.publish_qos2("t", b"2")
    (first,) = listener.messages()
    quota = PubRecReasonCode.QUOTA_EXCEEDED
    listener.send(PubRecPacket(first.packet_id, reason_code=quota))
    assert listener.payloads() == [b"2"]
    assert desk.core.router.sessions["l"].held_messages == 1
    assert desk.core.counters.dropped[Dropped.REFUSED_BY_CLIENT] == 1


def test_the_window_of_the_client_opens_with_the_pubcomp():
    desk = Desk()
    listener = listening(desk, receive_max=2)
    sender = desk.connect("s")
    for payload in (b"1", b"2", b"3"):
        sender.publish_qos2("t", payload)
    first, second = listener.messages()
    listener.send(PubRecPacket(first.packet_id), PubRecPacket(second.packet_id))
    assert [type(p) for p in listener.take()] == [PubRelPacket, PubRelPacket]
    listener.send(PubCompPacket(second.packet_id))
    assert listener.payloads() == [b"3"]


def test_qos_1_and_qos_2_share_the_window_of_the_client():
    desk = Desk()
    listener = listening(desk, receive_max=2)
    sender = desk.connect("s")
    sender.publish_qos2("t", b"2a")
    sender.publish("t", b"1a")
    sender.publish_qos2("t", b"2b")
    sender.publish_qos0("t", b"0")
    first, second, third = listener.messages()
    assert [first.payload, second.payload, third.payload] == [b"2a", b"1a", b"0"]
    listener.acknowledge([second])
    assert listener.payloads() == [b"2b"]


def test_a_resumed_session_repeats_messages_and_releases_in_the_order_of_the_messages():
    desk = Desk()
    listener = listening(desk, session_expiry_interval=NEVER)
    sender = desk.connect("s")
    for payload in (b"1", b"2", b"3", b"4"):
        sender.publish_qos2("t", payload)
    sender.publish("t", b"5")
    got = listener.messages()
    listener.send(PubRecPacket(got[2].packet_id), PubRecPacket(got[0].packet_id))
    listener.take()
    listener.finish(got[3:4])
    listener.drop()
    listener = back(desk, "l")
    released, second, third, fifth = listener.take()
    assert isinstance(released, PubRelPacket)
    assert released.packet_id == got[0].packet_id
    assert (second.payload, second.duplicate, second.packet_id) == (b"2", True, got[1].packet_id)
    assert isinstance(third, PubRelPacket)
    assert third.packet_id == got[2].packet_id
    assert (fifth.payload, fifth.duplicate, fifth.qos) == (b"5", True, QoS.AT_LEAST_ONCE)
    listener.send(PubCompPacket(released.packet_id), PubCompPacket(third.packet_id))
    listener.finish([second])
    listener.acknowledge([fifth])
    session = desk.core.router.sessions["l"]
    assert (session.held_messages, session.held_bytes) == (0, 0)


def test_a_message_that_the_client_had_is_never_sent_again():
    desk = Desk()
    listener = listening(desk, session_expiry_interval=NEVER)
    desk.connect("s").publish_qos2("t")
    (got,) = listener.messages()
    listener.send(PubRecPacket(got.packet_id))
    for _ in range(3):
        listener.drop()
        listener = back(desk, "l")
        assert listener.take_one(PubRelPacket).packet_id == got.packet_id
    listener.send(PubCompPacket(got.packet_id))
    listener.drop()
    assert back(desk, "l").take() == []


def test_releases_that_are_due_do_not_wait_for_a_window():
    desk = Desk()
    listener = listening(desk, session_expiry_interval=NEVER)
    sender = desk.connect("s")
    for payload in (b"1", b"2"):
        sender.publish_qos2("t", payload)
    got = listener.messages()
    listener.send(*(PubRecPacket(m.packet_id) for m in got))
    listener.drop()
    listener = back(desk, "l", receive_max=1)
    assert [p.packet_id for p in listener.take()] == [m.packet_id for m in got]


def test_a_pubrec_that_is_repeated_is_released_again():
    desk = Desk()
    listener = listening(desk)
    desk.connect("s").publish_qos2("t")
    (got,) = listener.messages()
    for _ in range(2):
        listener.send(PubRecPacket(got.packet_id))
        assert listener.take_one(PubRelPacket).packet_id == got.packet_id


def test_answers_to_something_unknown_are_told_so_or_ignored():
    client = Desk().connect()
    client.send(PubRelPacket(5), PubRecPacket(6), PubCompPacket(7))
    completed, released = client.take()
    assert (completed.packet_id, int(completed.reason_code)) == (5, 0x92)
    assert (released.packet_id, int(released.reason_code)) == (6, 0x92)
    assert not client.closed


@pytest.mark.parametrize(
    ("qos", "wrong"),
    [(1, PubRecPacket), (1, PubCompPacket), (2, PubAckPacket), (2, PubCompPacket)],
)
def test_an_answer_of_the_wrong_kind_is_a_protocol_error_and_loses_nothing(qos, wrong):
    desk = Desk()
    listener = listening(desk, session_expiry_interval=NEVER)
    sender = desk.connect("s")
    if qos == 1:
        sender.publish("t")
    else:
        sender.publish_qos2("t")
    (got,) = listener.messages()
    listener.send(wrong(got.packet_id))
    assert listener.goodbye_code() == 0x82
    assert back(desk, "l").payloads() == [b"m"]


def test_a_puback_after_the_pubrec_is_a_protocol_error_too():
    desk = Desk()
    listener = listening(desk)
    desk.connect("s").publish_qos2("t")
    (got,) = listener.messages()
    listener.send(PubRecPacket(got.packet_id), PubAckPacket(got.packet_id))
    assert listener.goodbye_code() == 0x82


def test_a_message_too_large_for_the_client_is_left_out_at_qos_2_too():
    desk = Desk()
    listener = listening(desk, max_packet_size=100)
    assert desk.connect("s").publish_qos2("t", bytes(200)) == 0
    assert listener.take() == []
    assert desk.core.router.sessions["l"].held_messages == 0


def test_packet_ids_of_releases_that_are_due_are_not_used_again():
    desk = Desk()
    listener = listening(desk)
    sender = desk.connect("s")
    sender.publish_qos2("t")
    (stuck,) = listener.messages()
    listener.send(PubRecPacket(stuck.packet_id))
    listener.take()
    desk.core.router.sessions["l"]._last_packet_id = 65_535
    sender.publish_qos2("t")
    assert [m.packet_id for m in listener.messages()] == [stuck.packet_id + 1]


# --- retained, wills, shares


def test_a_retained_message_and_a_will_go_out_at_qos_2():
    desk = Desk()
    desk.connect("s").publish_qos2("t", b"kept", retain=True)
    listener = listening(desk)
    (kept,) = listener.messages()
    assert (kept.payload, kept.qos, kept.retain) == (b"kept", TWICE, True)
    listener.finish([kept])
    desk.connect("w", will=Will("t", payload=b"gone", qos=TWICE)).drop()
    (gone,) = listener.messages()
    assert (gone.payload, gone.qos) == (b"gone", TWICE)


def test_a_share_hands_on_what_waits_and_nothing_that_was_sent_at_qos_2():
    desk = Desk()
    first = listening(desk, "first", "$share/g/t", receive_max=1)
    sender = desk.connect("s")
    for payload in (b"sent", b"waits"):
        sender.publish_qos2("t", payload)
    second = listening(desk, "second", "$share/g/t")
    assert first.payloads() == [b"sent"]
    first.send(DisconnectPacket())
    assert second.payloads() == [b"waits"]
    assert desk.core.counters.dropped[Dropped.SESSION_ENDED] == 1


def test_a_share_waits_for_the_member_that_was_sent_a_qos_2_message():
    desk = Desk()
    first = listening(desk, "first", "$share/g/t", session_expiry_interval=NEVER)
    desk.connect("s").publish_qos2("t")
    first.take()
    first.drop()
    second = listening(desk, "second", "$share/g/t")
    assert second.take() == []
    (got,) = back(desk, "first").messages()
    assert (got.payload, got.duplicate) == (b"m", True)


def test_what_expires_in_the_queue_is_dropped_and_what_was_sent_is_repeated():
    desk = Desk()
    listener = listening(desk, session_expiry_interval=NEVER, receive_max=1)
    sender = desk.connect("s")
    sender.publish_qos2("t", b"sent", message_expiry_interval=5)
    sender.publish_qos2("t", b"waits", message_expiry_interval=5)
    listener.take()
    listener.drop()
    desk.wait(6)
    listener = back(desk, "l")
    (got,) = listener.messages()
    assert (got.payload, got.duplicate) == (b"sent", True)
    listener.finish([got])
    assert listener.take() == []
    assert desk.core.counters.dropped[Dropped.EXPIRED] == 1
