"""Retained messages: kept, replaced, cleared, expired, given to new subscriptions, limited."""

from tests.shoal_broker.server.desk import NEVER, Desk

from shoal_broker.codec import ConnectPacket, QoS, RetainHandling, TopicFilter
from shoal_broker.server.counters import Dropped
from shoal_broker.server.messages import OVERHEAD_BYTES


def wanted(pattern, handling=RetainHandling.SEND_ALWAYS, **options):
    return TopicFilter(pattern, max_qos=QoS.AT_LEAST_ONCE, retain_handling=handling, **options)


def test_a_new_subscription_gets_the_last_retained_message_of_each_topic():
    desk = Desk()
    sender = desk.connect("s")
    sender.publish("a/1", b"old", retain=True)
    sender.publish("a/1", b"new", retain=True)
    sender.publish("a/2", b"two", retain=True)
    sender.publish("b", b"other", retain=True)
    sender.publish("a/3", b"not retained")
    listener = desk.connect("l")
    listener.subscribe("a/+", identifier=4)
    got = listener.messages()
    assert [(m.topic, m.payload, m.retain) for m in got] == [
        ("a/1", b"new", True),
        ("a/2", b"two", True),
    ]
    assert all(m.subscription_ids == [4] for m in got)


def test_an_empty_payload_clears_and_is_delivered():
    desk = Desk()
    sender = desk.connect("s")
    sender.publish("t", b"x", retain=True)
    early = desk.connect("early")
    early.subscribe("t")
    early.take()
    sender.publish("t", b"", retain=True)
    assert early.payloads() == [b""]
    late = desk.connect("late")
    late.subscribe("t")
    assert late.take() == []
    assert len(desk.core.router.retained) == 0
    assert desk.core.router.retained.size_bytes == 0


def test_the_retain_flag_is_kept_only_for_who_asked_for_it():
    desk = Desk()
    plain, as_published = desk.connect("p"), desk.connect("r")
    plain.subscribe(wanted("t", retain_as_published=False))
    as_published.subscribe(wanted("t", retain_as_published=True))
    desk.connect("s").publish("t", retain=True)
    assert [m.retain for m in plain.messages()] == [False]
    assert [m.retain for m in as_published.messages()] == [True]


def test_retain_handling_1_sends_only_to_a_subscription_that_is_new():
    desk = Desk()
    desk.connect("s").publish("t", retain=True)
    listener = desk.connect("l")
    rule = wanted("t", RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS)
    listener.subscribe(rule)
    assert len(listener.messages()) == 1
    listener.subscribe(rule)
    assert listener.messages() == []


def test_retain_handling_0_sends_every_time_and_2_never():
    desk = Desk()
    desk.connect("s").publish("t", retain=True)
    listener = desk.connect("l")
    for _ in range(2):
        listener.subscribe(wanted("t"))
        assert len(listener.messages()) == 1
    listener.subscribe(wanted("t", RetainHandling.SEND_NEVER))
    assert listener.messages() == []


def test_a_shared_subscription_gets_no_retained_messages():
    desk = Desk()
    desk.connect("s").publish("t", retain=True)
    listener = desk.connect("l")
    listener.subscribe("$share/g/t")
    assert listener.messages() == []


def test_a_retained_message_expires():
    desk = Desk()
    desk.connect("s").publish("t", retain=True, message_expiry_interval=10)
    desk.wait(4)
    first = desk.connect("a")
    first.subscribe("t")
    assert [m.message_expiry_interval for m in first.messages()] == [6]
    desk.wait(6)
    assert len(desk.core.router.retained) == 0
    late = desk.connect("b")
    late.subscribe("t")
    assert late.messages() == []


def test_no_local_holds_for_retained_messages_too():
    desk = Desk()
    client = desk.connect("a")
    client.publish("t", retain=True)
    client.subscribe(wanted("t", no_local=True))
    assert client.messages() == []


def test_beyond_the_byte_limit_a_retained_message_is_refused_whole():
    desk = Desk(max_retained_bytes=3000 + OVERHEAD_BYTES)
    listener = desk.connect("l")
    listener.subscribe("#")
    sender = desk.connect("s")
    assert sender.publish("a", bytes(2000), retain=True) == 0
    assert sender.publish("b", bytes(2000), retain=True) == 0x97
    assert [m.topic for m in listener.messages()] == ["a"]
    assert desk.core.counters.dropped[Dropped.RETAINED_FULL] == 1
    assert sender.publish("a", bytes(2500), retain=True) == 0
    assert sender.publish("a", b"", retain=True) == 0
    assert sender.publish("b", bytes(2000), retain=True) == 0


def test_beyond_the_number_limit_a_new_topic_is_refused_and_a_known_one_is_not():
    desk = Desk(max_retained_messages=1)
    sender = desk.connect("s")
    sender.publish("a", retain=True)
    assert sender.publish("b", retain=True) == 0x97
    assert sender.publish("a", b"new", retain=True) == 0x10


def test_a_retained_topic_with_too_many_levels_is_refused():
    assert Desk().connect().publish("a/" * 200, retain=True) == 0x90


def test_more_retained_messages_than_the_queue_may_hold_all_arrive():
    desk = Desk(max_queued_messages=10, max_in_flight=4)
    sender = desk.connect("s")
    for n in range(50):
        sender.publish(f"b/{n}", b"chunk", retain=True)
    listener = desk.connect("l")
    listener.subscribe("b/+")
    topics = []
    while got := listener.messages():
        topics += [m.topic for m in got]
        listener.acknowledge(got)
    assert sorted(topics) == sorted(f"b/{n}" for n in range(50))
    session = desk.core.router.sessions["l"]
    assert (session.held_messages, session.held_bytes) == (0, 0)


def test_what_is_published_while_retained_messages_wait_comes_after_them():
    desk = Desk(max_in_flight=1)
    sender = desk.connect("s")
    sender.publish("t/1", b"r1", retain=True)
    sender.publish("t/2", b"r2", retain=True)
    listener = desk.connect("l")
    listener.subscribe("t/+")
    sender.publish("t/2", b"live", retain=True)
    payloads = []
    while got := listener.messages():
        payloads += [m.payload for m in got]
        listener.acknowledge(got)
    assert payloads == [b"r1", b"r2", b"live"]


def test_retained_messages_that_wait_survive_a_cut():
    desk = Desk(max_in_flight=1)
    sender = desk.connect("s")
    for n in range(3):
        sender.publish(f"t/{n}", bytes([n]), retain=True)
    listener = desk.connect("l", session_expiry_interval=NEVER)
    listener.subscribe("t/+")
    listener.take()
    listener.drop()
    back = desk.stranger()
    back.send(ConnectPacket("l", session_expiry_interval=NEVER))
    payloads = []
    while got := back.messages():
        payloads += [m.payload for m in got]
        back.acknowledge(got)
    assert payloads == [b"\0", b"\1", b"\2"]
