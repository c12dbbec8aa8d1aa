"""What the interoperability suite of Paho asks of a broker and the other tests here do not, on the desk.

Cases of `client_test5.py` in eclipse/paho.mqtt.testing, in our own words.
"""

import pytest
from tests.shoal_broker.server.desk import NEVER, Desk

from shoal_broker.codec import ConnAckPacket, ConnectPacket, QoS, RetainHandling, TopicFilter

PROPERTIES = [("a", "2"), ("c", "3")]


def at_2(topic: str, **options) -> TopicFilter:
    return TopicFilter(topic, max_qos=QoS.EXACTLY_ONCE, retain_as_published=False, **options)


def publish_at_each_qos(client, topics: list[str], **options) -> None:
    client.publish_qos0(topics[0], b"qos 0", **options)
    client.publish(topics[1], b"qos 1", **options)
    client.publish_qos2(topics[2], b"qos 2", **options)


def test_what_a_message_says_of_itself_arrives_at_every_qos():
    desk = Desk()
    listener = desk.connect("l")
    listener.subscribe(at_2("t"))
    publish_at_each_qos(
        desk.connect("s"),
        ["t"] * 3,
        payload_format_indicator=1,
        content_type="My name",
        user_properties=PROPERTIES,
    )
    got = listener.messages()
    assert [int(m.qos) for m in got] == [0, 1, 2]
    for message in got:
        assert message.payload_format_indicator == 1
        assert message.content_type == "My name"
        assert message.user_properties == PROPERTIES


@pytest.mark.parametrize(
    "handling", [RetainHandling.SEND_ALWAYS, RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS]
)
def test_retained_messages_of_every_qos_arrive_with_theirs(handling):
    desk = Desk()
    topics = ["TopicA/B", "Topic/C", "TopicA/C"]
    publish_at_each_qos(desk.connect("s"), topics, retain=True, user_properties=PROPERTIES)
    listener = desk.connect("l")
    wanted = at_2("+/+", retain_handling=handling)
    listener.subscribe(wanted)
    got = listener.messages()
    assert {(m.topic, int(m.qos)) for m in got} == set(zip(topics, (0, 1, 2), strict=True))
    assert all(m.retain and m.user_properties == PROPERTIES for m in got)
    listener.acknowledge([m for m in got if m.qos == QoS.AT_LEAST_ONCE])
    listener.finish([m for m in got if m.qos == QoS.EXACTLY_ONCE])
    listener.subscribe(wanted)
    assert len(listener.messages()) == (3 if handling is RetainHandling.SEND_ALWAYS else 0)


def test_an_absent_client_finds_what_was_published_at_qos_1_and_2():
    desk = Desk()
    listener = desk.connect("l", session_expiry_interval=NEVER)
    listener.subscribe(at_2("+/+"))
    listener.drop()
    publish_at_each_qos(desk.connect("s"), ["a/0", "a/1", "a/2"])
    back = desk.stranger()
    back.send(ConnectPacket("l", session_expiry_interval=NEVER))
    assert [(m.topic, int(m.qos)) for m in back.messages()] == [("a/1", 1), ("a/2", 2)]


def test_overlapping_filters_of_different_qos_deliver_once_at_the_higher_one():
    desk = Desk()
    client = desk.connect()
    client.subscribe(at_2("TopicA/#"), TopicFilter("TopicA/+", max_qos=QoS.AT_LEAST_ONCE))
    desk.connect("s").publish_qos2("TopicA/C")
    assert [int(m.qos) for m in client.messages()] == [2]


def test_each_filter_brings_its_own_identifier():
    desk = Desk()
    first, second = desk.connect("1"), desk.connect("2")
    first.subscribe(at_2("TopicA"), identifier=456789)
    second.subscribe(at_2("TopicA"), identifier=2)
    second.subscribe(at_2("TopicA/#"), identifier=268_435_455)
    desk.connect("s").publish_qos2("TopicA")
    assert [m.subscription_ids for m in first.messages()] == [[456789]]
    (message,) = second.messages()
    assert sorted(message.subscription_ids) == [2, 268_435_455]


def test_a_request_is_answered_where_and_with_what_it_asks_for():
    desk = Desk()
    asking, answering = desk.connect("a"), desk.connect("b")
    asking.subscribe(at_2("replies/a"))
    answering.subscribe(at_2("requests"))
    asking.publish("requests", b"?", response_topic="replies/a", correlation_data=b"334")
    (request,) = answering.messages()
    answering.acknowledge([request])
    answering.publish_qos2(request.response_topic, b"!", correlation_data=request.correlation_data)
    (reply,) = asking.messages()
    assert (reply.payload, reply.correlation_data) == (b"!", b"334")


def test_an_empty_client_id_is_given_one_with_and_without_clean_start():
    desk = Desk()
    names = {
        desk.connect("", clean_start=clean).welcome.assigned_client_id for clean in (True, False)
    }
    assert len(names) == 2


def test_a_protocol_of_another_name_is_refused():
    client = Desk().stranger()
    client.send_bytes(ConnectPacket("c").write().replace(b"MQTT", b"MQTX"))
    assert client.closed
    answers = client.take()
    assert all(isinstance(a, ConnAckPacket) and int(a.reason_code) == 0x81 for a in answers)
