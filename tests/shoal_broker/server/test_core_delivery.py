"""PUBLISH to the right clients, in order, with what belongs to it; repeats, windows, expiry, sizes."""

import pytest
from tests.shoal_broker.server.desk import NEVER, Desk

from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubscribePacket,
    TopicFilter,
    UnsubAckPacket,
    UnsubscribePacket,
)
from shoal_broker.server.counters import Dropped


def test_qos_is_the_lower_of_publisher_and_subscription():
    desk = Desk()
    listener = desk.connect("l")
    assert listener.subscribe(
        TopicFilter("zero", max_qos=QoS.AT_MOST_ONCE),
        TopicFilter("one", max_qos=QoS.AT_LEAST_ONCE),
        TopicFilter("two", max_qos=QoS.EXACTLY_ONCE),
    ) == [0, 1, 2]
    sender = desk.connect("s")
    for topic in ("zero", "one", "two"):
        assert sender.publish_qos2(topic) == 0
        assert sender.publish(topic) == 0
        sender.publish_qos0(topic)
    got = [(m.topic, int(m.qos)) for m in listener.messages()]
    assert [qos for topic, qos in got if topic == "zero"] == [0, 0, 0]
    assert [qos for topic, qos in got if topic == "one"] == [1, 1, 0]
    assert [qos for topic, qos in got if topic == "two"] == [2, 1, 0]


def test_a_message_that_nobody_wants_is_acknowledged_with_0x10():
    assert Desk().connect().publish("t") == 0x10


def test_the_properties_of_a_request_arrive_as_they_were_sent():
    desk = Desk()
    listener = desk.connect("l")
    listener.subscribe("t")
    desk.connect("s").publish(
        "t",
        b"\xff\x00",
        payload_format_indicator=0,
        content_type="application/cbor",
        response_topic="r/1",
        correlation_data=b"\x80\x00",
        user_properties=[("k", "v"), ("k", "w"), ("ü", "☃")],
    )
    (message,) = listener.messages()
    assert message.payload == b"\xff\x00"
    assert message.content_type == "application/cbor"
    assert message.response_topic == "r/1"
    assert message.correlation_data == b"\x80\x00"
    assert message.user_properties == [("k", "v"), ("k", "w"), ("ü", "☃")]


def test_overlapping_subscriptions_deliver_once_with_every_identifier():
    desk = Desk()
    listener = desk.connect("l")
    listener.subscribe(TopicFilter("a/+", max_qos=QoS.AT_MOST_ONCE), identifier=3)
    listener.subscribe("a/#", identifier=7)
    listener.subscribe("a/b")
    desk.connect("s").publish("a/b")
    (message,) = listener.messages()
    assert sorted(message.subscription_ids) == [3, 7]
    assert message.qos == QoS.AT_LEAST_ONCE


def test_subscribing_again_replaces_the_subscription():
    desk = Desk()
    listener = desk.connect("l")
    listener.subscribe("t", identifier=1)
    listener.subscribe(TopicFilter("t", max_qos=QoS.AT_MOST_ONCE), identifier=2)
    desk.connect("s").publish("t")
    (message,) = listener.messages()
    assert message.subscription_ids == [2]
    assert message.qos == QoS.AT_MOST_ONCE


def test_no_local_keeps_a_client_from_hearing_itself():
    desk = Desk()
    client = desk.connect("a")
    client.subscribe(TopicFilter("t", max_qos=QoS.AT_LEAST_ONCE, no_local=True))
    assert client.publish("t") == 0
    desk.connect("b").publish("t", b"other")
    assert client.payloads() == [b"other"]


def test_after_unsubscribing_nothing_comes():
    desk = Desk()
    client = desk.connect("a")
    client.subscribe("t", "$share/g/t")
    client.send(UnsubscribePacket(9, ["t", "$share/g/t", "never"]))
    answer = client.take_one(UnsubAckPacket)
    assert [int(code) for code in answer.reason_codes] == [0, 0, 0x11]
    assert desk.connect("s").publish("t") == 0x10
    assert len(desk.core.router.subscriptions) == 0


def test_the_receive_maximum_of_the_client_is_honoured():
    desk = Desk()
    listener = desk.connect("l", receive_max=2)
    listener.subscribe("t")
    sender = desk.connect("s")
    for n in range(5):
        sender.publish("t", bytes([n]))
    first = listener.messages()
    assert [m.payload for m in first] == [b"\0", b"\1"]
    listener.acknowledge(first[:1])
    (third,) = listener.messages()
    assert third.payload == b"\2"
    listener.acknowledge([first[1], third])
    assert listener.payloads() == [b"\3", b"\4"]


def test_qos_0_passes_a_full_window():
    desk = Desk()
    listener = desk.connect("l", receive_max=1)
    listener.subscribe("t")
    sender = desk.connect("s")
    sender.publish("t", b"1")
    sender.publish("t", b"2")
    sender.publish_qos0("t", b"0")
    assert listener.payloads() == [b"1", b"0"]


def test_a_resumed_session_repeats_in_order_with_dup_and_the_same_ids():
    desk = Desk()
    listener = desk.connect("l", session_expiry_interval=60)
    listener.subscribe("t")
    sender = desk.connect("s")
    for payload in (b"1", b"2", b"3"):
        sender.publish("t", payload)
    first = listener.messages()
    listener.acknowledge(first[1:2])
    listener.drop()
    sender.publish("t", b"4")
    sender.publish_qos0("t", b"lost")
    back = desk.stranger()
    back.send(ConnectPacket("l", session_expiry_interval=60))
    welcome, *messages = back.take()
    assert welcome.session_present
    assert [(m.payload, m.duplicate, m.packet_id) for m in messages] == [
        (b"1", True, first[0].packet_id),
        (b"3", True, first[2].packet_id),
        (b"4", False, messages[2].packet_id),
    ]
    assert len({m.packet_id for m in messages}) == 3


def test_repeats_keep_to_a_smaller_window_of_the_new_connection():
    desk = Desk()
    listener = desk.connect("l", session_expiry_interval=60)
    listener.subscribe("t")
    sender = desk.connect("s")
    for payload in (b"1", b"2", b"3"):
        sender.publish("t", payload)
    listener.drop()
    back = desk.stranger()
    back.send(ConnectPacket("l", session_expiry_interval=60, receive_max=1))
    _, first = back.take()
    assert (first.payload, first.duplicate) == (b"1", True)
    back.acknowledge([first])
    assert back.payloads() == [b"2"]


def test_an_acknowledgement_of_something_unknown_is_ignored():
    client = Desk().connect()
    client.send(PubAckPacket(77))
    assert not client.closed


def test_packet_ids_wrap_around_and_skip_what_is_in_flight():
    desk = Desk(max_in_flight=3)
    listener = desk.connect("l")
    listener.subscribe("t")
    sender = desk.connect("s")
    sender.publish("t")
    (stuck,) = listener.messages()
    session = desk.core.router.sessions["l"]
    session._last_packet_id = 65_534
    for _ in range(2):
        sender.publish("t")
    ids = [m.packet_id for m in listener.messages()]
    assert stuck.packet_id == 1
    assert ids == [65_535, 2]


def test_a_message_that_did_not_wait_keeps_its_expiry_to_the_second():
    desk = Desk()
    listener = desk.connect("l")
    listener.subscribe("t")
    sender = desk.connect("s")
    for n in range(200):
        desk.now_s = 1_000 + n * 77.123_456_7
        sender.publish("t", message_expiry_interval=500)
    assert {m.message_expiry_interval for m in listener.messages()} == {500}


def test_what_is_left_of_the_expiry_travels_with_the_message():
    desk = Desk()
    desk.connect("l", session_expiry_interval=NEVER).subscribe("t")
    desk.core.router.sessions["l"].connection.owner.drop()
    desk.connect("s").publish("t", message_expiry_interval=10)
    desk.wait(4)
    back = desk.stranger()
    back.send(ConnectPacket("l"))
    assert [m.message_expiry_interval for m in back.messages()] == [6]


def test_an_expired_message_is_not_delivered():
    desk = Desk()
    listener = desk.connect("l", session_expiry_interval=NEVER)
    listener.subscribe("t")
    listener.drop()
    sender = desk.connect("s")
    sender.publish("t", b"old", message_expiry_interval=10)
    sender.publish("t", b"kept")
    desk.wait(10)
    back = desk.stranger()
    back.send(ConnectPacket("l"))
    assert back.payloads() == [b"kept"]
    assert desk.core.counters.dropped[Dropped.EXPIRED] == 1
    assert desk.core.router.sessions["l"].held_messages == 1


def test_a_message_larger_than_the_client_accepts_is_left_out():
    desk = Desk()
    listener = desk.connect("l", max_packet_size=200)
    listener.subscribe("t")
    sender = desk.connect("s")
    assert sender.publish("t", bytes(300)) == 0
    sender.publish("t", b"small")
    assert listener.payloads() == [b"small"]
    assert desk.core.counters.dropped[Dropped.TOO_LARGE_FOR_CLIENT] == 1
    assert len(desk.core.router.sessions["l"].in_flight) == 1


def test_a_topic_alias_stands_for_the_topic_until_it_is_given_anew():
    desk = Desk()
    listener = desk.connect("l")
    listener.subscribe("#")
    sender = desk.connect("s")
    sender.publish_qos0("one", b"1", topic_alias=5)
    sender.publish_qos0("", b"2", topic_alias=5)
    sender.publish_qos0("two", b"3", topic_alias=5)
    sender.publish_qos0("", b"4", topic_alias=5)
    got = listener.messages()
    assert [(m.topic, m.payload) for m in got] == [
        ("one", b"1"),
        ("one", b"2"),
        ("two", b"3"),
        ("two", b"4"),
    ]
    assert all(m.topic_alias is None for m in got)


def test_an_alias_above_the_announced_one_is_refused():
    client = Desk(max_topic_aliases=4).connect()
    client.publish_qos0("t", topic_alias=5)
    assert client.goodbye_code() == 0x94


def test_an_alias_that_was_never_given_is_refused():
    client = Desk().connect()
    client.publish_qos0("", topic_alias=1)
    assert client.goodbye_code() == 0x82


@pytest.mark.parametrize("topic", ["$SYS/broker/load", "$share/g/t", "$x"])
def test_topics_of_the_server_cannot_be_published_to(topic):
    desk = Desk()
    client = desk.connect()
    client.subscribe("$SYS/#", "$x")
    client.take()
    assert client.publish(topic) == 0x90
    assert not client.closed


@pytest.mark.parametrize("topic", ["a/+", "#", "a\0b"])
def test_a_wildcard_or_nul_in_a_topic_ends_the_connection(topic):
    client = Desk().connect()
    raw = topic.encode()
    client.send_bytes(bytes([0x30, len(raw) + 3, 0, len(raw)]) + raw + b"\0")
    assert client.goodbye_code() in (0x81, 0x90)


@pytest.mark.parametrize(
    ("pattern", "code"),
    [("a/#/b", 0x8F), ("a+", 0x8F), ("$share/g", 0x8F), ("$share//t", 0x8F), ("", 0x8F)],
)
def test_a_filter_that_is_none_ends_the_connection(pattern, code):
    client = Desk().connect()
    raw = pattern.encode()
    body = b"\0\1\0" + bytes([0, len(raw)]) + raw + b"\1"
    client.send_bytes(bytes([0x82, len(body)]) + body)
    assert client.goodbye_code() == code


def test_no_local_on_a_shared_subscription_is_a_protocol_error():
    client = Desk().connect()
    client.send(SubscribePacket(1, [TopicFilter("$share/g/t", no_local=True)]))
    assert client.goodbye_code() == 0x82


def test_packets_may_arrive_one_byte_at_a_time():
    desk = Desk()
    listener = desk.connect("l")
    listener.subscribe("t")
    client = desk.stranger()
    data = ConnectPacket("x").write() + PublishPacket("t", b"slow " * 50).write()
    for byte in data:
        client.send_bytes(bytes([byte]))
    client.take_one(ConnAckPacket)
    assert listener.payloads() == [b"slow " * 50]


def test_a_client_with_many_sessions_behind_it_leaves_nothing_behind():
    desk = Desk()
    for n in range(20):
        client = desk.connect(f"c{n}", session_expiry_interval=5)
        client.subscribe(f"t/{n}", f"$share/g/t/{n}", "t/#")
        client.drop()
    desk.connect("s").publish("t/3")
    desk.wait(6)
    router = desk.core.router
    assert set(router.sessions) == {"s"}
    assert len(router.subscriptions) == 0
    assert router.subscriptions._root.empty
