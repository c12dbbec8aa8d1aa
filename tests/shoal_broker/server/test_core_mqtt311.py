"""Clients of MQTT 3.1.1 with the same core, sessions and messages as those of MQTT 5."""

from __future__ import annotations

import random

import pytest
from tests.shoal_broker import paho_wire
from tests.shoal_broker.paho_wire import Heard
from tests.shoal_broker.server.desk import NEVER, Desk
from tests.shoal_broker.server.desk311 import OldClient
from tests.shoal_broker.server.test_access import NODE, OTHER, RULES, TOPICS

from shoal_broker.codec import ConnectPacket, PublishPacket, PubRelPacket, QoS, TopicFilter, Will
from shoal_broker.server.events import ClientConnected, ClientGone, ClientRefused


def gone_reasons(desk: Desk) -> list[str]:
    return [
        event.reason
        for event in desk.core.take_events()
        if isinstance(event, ClientGone | ClientRefused)
    ]


# --- CONNECT


def test_a_client_of_3_1_1_is_welcomed_in_its_own_words():
    desk = Desk()
    client = OldClient.connected(desk)
    assert client.welcome == Heard("connack", codes=(0, 0))
    (event,) = desk.core.take_events()
    assert isinstance(event, ClientConnected)
    assert (event.client_id, event.mqtt_version) == ("old", "3.1.1")
    client.send_bytes(paho_wire.ping())
    client.take_one("pingresp")
    client.send_bytes(paho_wire.disconnect())
    assert client.closed
    assert client.take() == []
    assert gone_reasons(desk) == ["client said goodbye"]


def test_its_connect_may_arrive_byte_by_byte():
    client = OldClient(Desk())
    for byte in paho_wire.connect("slow"):
        client.send_bytes(bytes([byte]))
    assert client.take_one("connack").codes == (0, 0)


def test_a_session_without_clean_session_is_kept_and_present():
    desk = Desk()
    client = OldClient.connected(desk, clean_session=False)
    assert not client.session_present
    client.subscribe("t")
    client.drop()
    desk.wait(10 * 365 * 86_400)
    desk.connect("sender").publish("t", b"kept")
    client = OldClient.connected(desk, clean_session=False)
    assert client.session_present
    assert client.payloads() == [b"kept"]


def test_a_session_with_clean_session_ends_with_its_connection():
    desk = Desk()
    OldClient.connected(desk, clean_session=False).drop()
    client = OldClient.connected(desk, clean_session=True)
    assert not client.session_present
    client.drop()
    assert desk.core.router.sessions == {}


def test_without_a_client_id_it_gets_one_only_for_a_clean_session():
    desk = Desk()
    OldClient.connected(desk, "", clean_session=True)
    assert list(desk.core.router.sessions) == ["auto-0"]
    refused = OldClient(desk)
    refused.send_bytes(paho_wire.connect("", clean_session=False))
    assert refused.take_one("connack").codes == (0, 2)
    assert refused.closed


def test_a_full_broker_answers_server_unavailable():
    desk = Desk(max_connections=1)
    desk.connect("first")
    second = OldClient(desk)
    second.send_bytes(paho_wire.connect("second"))
    assert second.take_one("connack").codes == (0, 3)


def test_passwords_are_asked_for_and_judged(tmp_path):
    users = tmp_path / "users"
    desk = Desk(password_file=users)
    nobody = OldClient(desk)
    nobody.send_bytes(paho_wire.connect("n"))
    assert nobody.take_one("connack").codes == (0, 4)
    for accepted, code in ((False, 4), (True, 0)):
        client = OldClient(desk)
        client.send_bytes(paho_wire.connect("u", user="u", password=b"p"))
        assert client.take() == []
        desk.core.authenticated(client.connection, desk.now_s, accepted=accepted)
        desk.settle()
        assert client.take_one("connack").codes == (0, code)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            b"\x10\x10\x00\x04MQTT\x04\x42\x00\x3c\x00\x01c\x00\x01p",
            "a password without a user name",
        ),
        (b"\x10\x0d\x00\x04MQTT\x04\x03\x00\x3c\x00\x01c", "the reserved flag of CONNECT is set"),
        (
            paho_wire.connect("c", will=("$SYS/w", b"", 0, False)),
            "a will cannot go to this topic",
        ),
    ],
)
def test_a_connect_that_no_return_code_refuses_is_closed_without_an_answer(data, reason):
    desk = Desk()
    client = OldClient(desk)
    client.send_bytes(data)
    assert client.closed
    assert client.take() == []
    assert gone_reasons(desk) == [reason]


def test_mqtt_3_1_is_refused_in_its_own_words():
    client = OldClient(Desk())
    client.send_bytes(b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01c")
    assert client.closed
    assert client.take_one("connack").codes == (0, 1)


def test_a_bridge_of_mosquitto_is_told_to_ask_again_without_its_own_bit():
    client = OldClient(Desk())
    client.send_bytes(b"\x10\x0d\x00\x04MQTT\x84\x02\x00\x3c\x00\x01c")
    assert client.closed
    assert client.take_one("connack").codes == (0, 1)


def test_a_malformed_packet_ends_the_connection_and_the_log_says_why():
    desk = Desk()
    client = OldClient.connected(desk, will=("w", b"gone", 1, False))
    witness = desk.connect("witness")
    witness.subscribe("w")
    desk.core.take_events()
    client.send_bytes(b"\x82\x06\x00\x01\x00\x01a\x10")
    assert client.closed
    assert client.take() == []
    assert gone_reasons(desk) == ["a reserved bit of a subscription is set"]
    assert witness.payloads() == [b"gone"]


def test_a_packet_above_the_limit_ends_the_connection():
    desk = Desk(max_packet_bytes=1000)
    client = OldClient.connected(desk)
    client.send_bytes(paho_wire.publish("t", bytes(1000))[:4])
    assert client.closed
    assert client.take() == []


# --- messages


def test_messages_reach_both_versions_and_properties_only_mqtt_5():
    desk = Desk()
    old, new = OldClient.connected(desk), desk.connect("new")
    old.subscribe("t/+")
    new.subscribe(TopicFilter("t/+", max_qos=QoS.AT_LEAST_ONCE), identifier=7)
    sender = desk.connect("sender")
    properties = {"message_expiry_interval": 9, "user_properties": [("k", "v")]}
    sender.publish("t/1", b"from 5", content_type="x", response_topic="r", **properties)
    assert old.messages() == [Heard("publish", 1, (), "t/1", b"from 5", 1)]
    (heard,) = new.messages()
    assert (heard.user_properties, heard.subscription_ids) == ([("k", "v")], [7])
    new.acknowledge([heard])
    other = OldClient.connected(desk, "other")
    other.publish("t/2", b"from 3.1.1")
    assert new.messages() == [
        PublishPacket(
            "t/2", b"from 3.1.1", qos=QoS.AT_LEAST_ONCE, packet_id=2, subscription_ids=[7]
        )
    ]
    assert old.messages() == [Heard("publish", 2, (), "t/2", b"from 3.1.1", 1)]


def test_a_topic_alias_is_resolved_for_3_1_1():
    desk = Desk()
    old = OldClient.connected(desk)
    old.subscribe("long/topic")
    sender = desk.connect("sender")
    sender.publish_qos0("long/topic", b"1", topic_alias=1)
    sender.publish_qos0("", b"2", topic_alias=1)
    assert [(m.topic, m.payload) for m in old.messages()] == [
        ("long/topic", b"1"),
        ("long/topic", b"2"),
    ]


def test_what_waited_too_long_is_not_delivered_to_3_1_1_either():
    desk = Desk()
    old = OldClient.connected(desk, clean_session=False)
    old.subscribe("t")
    old.drop()
    sender = desk.connect("sender")
    sender.publish("t", b"short", message_expiry_interval=5)
    sender.publish("t", b"long", message_expiry_interval=50)
    desk.wait(10)
    assert OldClient.connected(desk, clean_session=False).payloads() == [b"long"]


def test_retain_is_set_only_for_what_was_kept_before_subscribing():
    desk = Desk()
    old = OldClient.connected(desk)
    old.publish("t", b"kept", retain=True)
    old.subscribe("t")
    assert [(m.payload, m.retain) for m in old.messages()] == [(b"kept", True)]
    old.send_bytes(paho_wire.publish("t", b"live", retain=True))
    assert [(m.payload, m.retain) for m in old.messages()] == [(b"live", False)]
    old.subscribe("t")
    assert [(m.payload, m.retain) for m in old.messages()] == [(b"live", True)]
    OldClient.connected(desk, "other").publish("t", b"", retain=True)
    assert len(desk.core.router.retained) == 0


def test_a_client_of_3_1_1_hears_itself():
    client = OldClient.connected(Desk())
    client.subscribe("t", qos=0)
    client.send_bytes(paho_wire.publish("t", b"me"))
    assert client.payloads() == [b"me"]


def test_unsubscribing_is_answered_without_reasons():
    client = OldClient.connected(Desk())
    client.subscribe("t")
    client.send_bytes(paho_wire.unsubscribe(9, "t", "never/was"))
    assert client.take_one("unsuback").packet_id == 9
    client.send_bytes(paho_wire.publish("t", b"me"))
    assert client.take() == []


def test_a_refused_subscription_is_0x80_among_granted_ones():
    client = OldClient.connected(Desk(max_subscriptions=2))
    assert client.subscribe("a", "b", "c") == (1, 1, 0x80)


def test_a_refused_message_is_acknowledged_and_goes_nowhere():
    desk = Desk()
    old, witness = OldClient.connected(desk), desk.connect("witness")
    witness.subscribe("#", "$mine")
    old.publish("$mine", b"refused")
    assert witness.take() == []
    old.publish("yours", b"accepted")
    assert witness.payloads() == [b"accepted"]


def test_versions_share_a_shared_subscription():
    desk = Desk()
    old, new = OldClient.connected(desk), desk.connect("new")
    old.subscribe("$share/g/t")
    new.subscribe("$share/g/t")
    sender = desk.connect("sender")
    for n in range(4):
        sender.publish("t", bytes([n]))
    got = (old.payloads(), new.payloads())
    assert [len(part) for part in got] == [2, 2]
    assert sorted(got[0] + got[1]) == [bytes([n]) for n in range(4)]


# --- QoS 2


def test_a_message_at_qos_2_arrives_once_in_both_versions():
    desk = Desk()
    old, new = OldClient.connected(desk), desk.connect("new")
    old.subscribe("t", qos=2)
    new.subscribe(TopicFilter("t", max_qos=QoS.EXACTLY_ONCE))
    OldClient.connected(desk, "sender").publish_qos2("t", b"1")
    desk.connect("sender5").publish_qos2("t", b"2")
    got = old.messages()
    assert [(m.payload, m.qos) for m in got] == [(b"1", 2), (b"2", 2)]
    old.finish(got)
    new.finish(new.messages())
    for client_id in ("old", "new"):
        assert desk.core.router.sessions[client_id].held_messages == 0


def test_a_repeated_qos_2_message_of_3_1_1_is_delivered_once():
    desk = Desk()
    witness = desk.connect("witness")
    witness.subscribe("t")
    sender = OldClient.connected(desk, clean_session=False)
    sender.send_bytes(paho_wire.publish("t", b"1", qos=2, packet_id=9))
    sender.take_one("pubrec")
    sender.drop()
    sender = OldClient.connected(desk, clean_session=False)
    sender.send_bytes(paho_wire.publish("t", b"1", qos=2, packet_id=9, duplicate=True))
    assert sender.take_one("pubrec").packet_id == 9
    for _ in range(2):
        sender.send_bytes(paho_wire.acknowledge("pubrel", 9))
        assert sender.take_one("pubcomp").packet_id == 9
    assert witness.payloads() == [b"1"]


def test_a_refused_message_at_qos_2_goes_through_the_whole_exchange_and_nowhere():
    desk = Desk()
    witness = desk.connect("witness")
    witness.subscribe("$mine")
    OldClient.connected(desk).publish_qos2("$mine", b"refused")
    assert witness.take() == []


def test_a_release_that_3_1_1_owes_is_asked_for_by_mqtt_5():
    desk = Desk()
    old = OldClient.connected(desk, "node", clean_session=False)
    old.subscribe("t", qos=2)
    desk.connect("sender").publish_qos2("t", b"1")
    (got,) = old.messages()
    old.send_bytes(paho_wire.acknowledge("pubrec", got.packet_id))
    old.take_one("pubrel")
    old.drop()
    new = desk.stranger()
    new.send(ConnectPacket("node", session_expiry_interval=60))
    _, released = new.take()
    assert released == PubRelPacket(got.packet_id)


def test_a_burst_that_mqtt_5_would_be_told_not_to_send_is_taken_from_3_1_1():
    desk = Desk(receive_max=10)
    burst = b"".join(paho_wire.publish("t", qos=1, packet_id=n) for n in range(1, 51))
    client = OldClient.connected(desk)
    client.send_bytes(burst)
    assert [(m.kind, m.packet_id) for m in client.take()] == [("puback", n) for n in range(1, 51)]
    client.send_bytes(b"".join(paho_wire.publish("t", qos=2, packet_id=n) for n in range(1, 51)))
    assert [m.packet_id for m in client.take()] == list(range(1, 51))


# --- one session, two versions


def test_mqtt_5_takes_over_what_3_1_1_left():
    desk = Desk()
    old = OldClient.connected(desk, "node", clean_session=False)
    old.subscribe("t")
    sender = desk.connect("sender")
    sender.publish("t", b"1", content_type="text")
    assert old.messages() == [Heard("publish", 1, (), "t", b"1", 1)]
    desk.core.take_events()
    new = desk.stranger()
    new.send(ConnectPacket("node", session_expiry_interval=60))
    assert old.closed
    assert old.take() == []
    assert gone_reasons(desk) == ["taken over"]
    welcome, again = new.take()
    assert welcome.session_present
    assert (again.payload, again.packet_id, again.duplicate) == (b"1", 1, True)
    assert again.content_type == "text"
    new.acknowledge([again])
    new.drop()
    desk.wait(61)
    assert "node" not in desk.core.router.sessions


def test_3_1_1_takes_over_what_mqtt_5_left():
    desk = Desk()
    new = desk.connect("node", session_expiry_interval=60)
    new.subscribe(TopicFilter("t", max_qos=QoS.AT_LEAST_ONCE), identifier=7)
    desk.connect("sender").publish("t", b"1", user_properties=[("k", "v")])
    new.take()
    old = OldClient(desk)
    old.send_bytes(paho_wire.connect("node", clean_session=False))
    assert new.goodbye_code() == 0x8E
    assert old.take() == [
        Heard("connack", codes=(1, 0)),
        Heard("publish", 1, (), "t", b"1", 1, duplicate=True),
    ]
    old.drop()
    desk.wait(3600)
    assert desk.core.router.sessions["node"].expiry_interval_s == NEVER


def test_a_delayed_will_of_mqtt_5_is_called_off_by_3_1_1_coming_back():
    desk = Desk()
    witness = OldClient.connected(desk, "witness")
    witness.subscribe("w")
    will = Will("w", payload=b"gone", qos=QoS.AT_LEAST_ONCE, will_delay_interval=30)
    desk.connect("node", session_expiry_interval=60, will=will).drop()
    OldClient.connected(desk, "node", clean_session=False)
    desk.wait(40)
    assert witness.payloads() == []


# --- wills and endings


def test_wills_cross_the_versions():
    desk = Desk()
    old, new = OldClient.connected(desk, "w3"), desk.connect("w5")
    old.subscribe("w/#")
    new.subscribe("w/#")
    OldClient.connected(desk, "a", will=("w/a", b"a", 1, True)).drop()
    will = Will("w/b", payload=b"b", user_properties=[("k", "v")])
    desk.connect("b", will=will).drop()
    assert old.payloads() == [b"a", b"b"]
    assert new.payloads() == [b"a", b"b"]
    assert len(desk.core.router.retained) == 1


def test_a_goodbye_of_3_1_1_leaves_no_will():
    desk = Desk()
    witness = desk.connect("witness")
    witness.subscribe("w")
    client = OldClient.connected(desk, will=("w", b"gone", 1, False))
    client.send_bytes(paho_wire.disconnect())
    assert witness.payloads() == []


def test_a_silent_client_of_3_1_1_is_closed_and_its_will_goes_out():
    desk = Desk()
    witness = desk.connect("witness")
    witness.subscribe("w")
    client = OldClient.connected(desk, keep_alive=10, will=("w", b"gone", 1, False))
    desk.wait(14)
    assert not client.closed
    desk.wait(2)
    assert client.closed
    assert client.take() == []
    assert witness.payloads() == [b"gone"]


def test_a_broker_that_ends_just_closes():
    desk = Desk()
    client = OldClient.connected(desk)
    desk.core.shut_down()
    desk.settle()
    assert client.closed
    assert client.take() == []


# --- what the operator has set, which 3.1.1 cannot be told


def test_a_session_of_3_1_1_is_kept_no_longer_than_the_limit():
    desk = Desk(max_session_expiry_s=100)
    OldClient.connected(desk, clean_session=False).drop()
    desk.wait(99)
    assert "old" in desk.core.router.sessions
    desk.wait(2)
    assert "old" not in desk.core.router.sessions


def test_a_keep_alive_that_3_1_1_cannot_be_told_is_not_held_against_it():
    desk = Desk(max_keep_alive_s=10)
    client = OldClient.connected(desk, keep_alive=60)
    desk.wait(80)
    assert not client.closed
    desk.wait(11)
    assert client.closed


def test_access_rules_hold_for_3_1_1_in_its_own_words():
    desk = Desk(access=RULES)
    node = OldClient.connected(desk, certificate=NODE)
    assert list(desk.core.router.sessions) == [NODE]
    assert node.subscribe(TOPICS.commands(NODE), TOPICS.commands(OTHER)) == (1, 0x80)
    watcher = desk.connect(certificate="shoal-controller")
    watcher.subscribe("#")
    node.publish(TOPICS.state(OTHER), b"forged")
    node.publish_qos2(TOPICS.state(OTHER), b"forged")
    assert watcher.messages() == []
    node.publish(TOPICS.state(NODE), b"true")
    assert watcher.payloads() == [b"true"]
    liar = OldClient(desk, OTHER)
    liar.send_bytes(paho_wire.connect("x", will=(TOPICS.state(NODE), b"forged", 1, False)))
    assert liar.take_one("connack").codes == (0, 5)


# --- abuse

TALK = [
    paho_wire.connect("m", will=("a/w", b"w", 1, False)),
    paho_wire.subscribe(1, ("a/+", 1), ("$share/g/a/#", 0)),
    paho_wire.publish("a/b", b"payload", qos=1, packet_id=3, retain=True),
    paho_wire.publish("a/é", b"\xff"),
    paho_wire.acknowledge("puback", 1),
    paho_wire.unsubscribe(2, "a/+"),
    paho_wire.disconnect(),
]


def test_mutated_conversations_in_3_1_1_harm_nobody_else(capfd):
    rng = random.Random(3)  # noqa: S311 - the same every time
    desk = Desk(max_queued_messages=50, max_sessions=500)
    witness = OldClient.connected(desk, "witness")
    witness.subscribe("proof", qos=0)
    for number in range(1_000):
        offender = desk.stranger()
        if rng.random() < 0.8:
            offender.send_bytes(TALK[0])
        data = bytearray(b"".join(rng.choices(TALK, k=3)))
        for _ in range(rng.randint(0, 4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 4, 0x30, 0x82, 0xFF))
        offender.send_bytes(bytes(data))
        if not offender.closed and number % 10:
            offender.drop()
    witness.send_bytes(paho_wire.publish("proof", b"well"))
    assert witness.payloads() == [b"well"]
    # Otherwise they would have harmed nobody by never getting in.
    assert desk.core.counters.refused < 400
    assert "panicked" not in capfd.readouterr().err
