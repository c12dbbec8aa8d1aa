"""What is written of a core's changes, and what a core that starts with it does."""

from __future__ import annotations

from tests.shoal_broker import paho_wire
from tests.shoal_broker.server.desk import NEVER
from tests.shoal_broker.server.desk311 import OldClient
from tests.shoal_broker.server.durable.durable_desk import DurableDesk, away, back

from shoal_broker.codec import (
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    QoS,
    TopicFilter,
    Will,
)
from shoal_broker.server.access_rules import AccessRules, Policy, Rule
from shoal_broker.server.metrics import kept

TWICE_NEVER = TopicFilter("t/#", max_qos=QoS.EXACTLY_ONCE, retain_as_published=False)


def publish_once(client, topic, payload=b"m", packet_id=1):
    """Publish at QoS 2 as far as PUBREC; its code."""
    client.send(PublishPacket(topic, payload, qos=QoS.EXACTLY_ONCE, packet_id=packet_id))
    return int(client.take_one(PubRecPacket).reason_code)


# --- what is written


def test_nothing_is_written_of_sessions_that_end_with_their_connection():
    desk = DurableDesk()
    reader = desk.connect("r", will=Will("w", payload=b"gone"))
    reader.subscribe("t/#")
    desk.connect("p").publish("t/1")
    reader.drop()
    assert desk.recorder.pending.empty


def test_qos_0_is_not_written():
    desk = DurableDesk()
    reader = desk.connect("r", session_expiry_interval=NEVER)
    reader.subscribe("t/#")
    desk.commit()
    reader.stalled = True
    desk.connect("p").publish_qos0("t/1")
    assert desk.recorder.pending.empty


def test_a_message_is_stored_once_for_all_its_sessions_and_goes_with_the_last():
    desk = DurableDesk()
    away(desk, "a")
    away(desk, "b")
    desk.connect("p").publish("t/1", b"x" * 1000)
    desk.commit()
    assert desk.rows() == {"session": 2, "subscription": 2, "message": 1, "queued": 2}
    for client_id, left in (("a", 1), ("b", 0)):
        client = back(desk, client_id)
        client.acknowledge(client.messages())
        desk.commit()
        assert desk.count("message") == left
        assert desk.count("queued") == left


def test_what_is_acknowledged_before_the_commit_is_never_written():
    desk = DurableDesk()
    reader = desk.connect("r", session_expiry_interval=NEVER)
    reader.subscribe("t/#")
    desk.commit()
    desk.connect("p").publish("t/1")
    assert desk.promises
    assert desk.recorder.pending.may_vanish
    reader.acknowledge(reader.messages())
    assert not desk.promises
    assert desk.recorder.pending.empty
    assert desk.recorder.pending.size_bytes == 0


def test_the_oldest_message_that_is_not_acknowledged_is_known():
    desk = DurableDesk()
    reader = desk.connect("r", session_expiry_interval=NEVER)
    reader.subscribe("t/#")
    desk.commit()
    pending = desk.recorder.pending
    publisher = desk.connect("p")
    publisher.publish("t/1")
    first = pending.oldest_row
    publisher.publish("t/2")
    assert pending.oldest_row == first
    messages = reader.messages()
    reader.acknowledge(messages[:1])
    assert pending.oldest_row == first + 1
    reader.acknowledge(messages[1:])
    assert pending.oldest_row == pending.next_row


def test_a_message_for_somebody_who_is_away_cannot_vanish():
    desk = DurableDesk()
    away(desk)
    desk.commit()
    desk.connect("p").publish("t/1")
    assert desk.promises
    assert not desk.recorder.pending.may_vanish


def test_an_acknowledgement_alone_makes_nobody_wait():
    desk = DurableDesk()
    reader = desk.connect("r", session_expiry_interval=NEVER)
    reader.subscribe("t/#")
    desk.connect("p").publish("t/1")
    desk.commit()
    reader.acknowledge(reader.messages())
    assert not desk.promises
    assert not desk.recorder.pending.empty
    desk.commit()
    assert desk.rows() == {"session": 1, "subscription": 1}


def test_a_session_that_ends_leaves_nothing_behind():
    desk = DurableDesk()
    away(desk, "c", "t/#", "$share/s/u/#")
    publisher = desk.connect("p")
    publisher.publish("t/1", retain=True)
    publisher.publish("u/1")
    desk.commit()
    client = back(desk, "c")
    client.messages()
    assert publish_once(client, "elsewhere") == 0x10
    desk.commit()
    assert desk.count("received") == 1
    desk.connect("c", clean_start=True)
    desk.commit()
    assert desk.rows() == {"retained": 1, "message": 1}


def test_connecting_without_an_expiry_ends_what_was_remembered():
    desk = DurableDesk()
    away(desk, "c")
    desk.commit()
    back(desk, "c", session_expiry_interval=0)
    desk.commit()
    assert desk.rows() == {}


# --- what a broker does that starts with it


def test_what_waits_is_delivered_in_order_with_all_that_belongs_to_it():
    desk = DurableDesk()
    away(desk)
    publisher = desk.connect("p")
    details = {"content_type": "text", "response_topic": "r", "user_properties": [("k", "v")]}
    for number in range(5):
        publisher.publish(f"t/{number}", b"%d" % number, correlation_data=b"c", **details)
    desk.commit()
    publisher.publish("t/late", b"not committed")
    messages = back(desk.after_power_cut()).messages()
    assert [message.payload for message in messages] == [b"0", b"1", b"2", b"3", b"4"]
    first = messages[0]
    assert (first.content_type, first.response_topic) == ("text", "r")
    assert (first.correlation_data, first.user_properties) == (b"c", [("k", "v")])


def test_the_session_is_present_and_still_subscribed():
    desk = DurableDesk()
    reader = desk.connect("r", session_expiry_interval=NEVER)
    reader.subscribe(TopicFilter("t/+", max_qos=QoS.AT_LEAST_ONCE, no_local=True), identifier=7)
    desk.commit()
    later = desk.after_power_cut()
    reader = back(later, "r")
    assert reader.welcome.session_present
    reader.publish("t/own")
    later.connect("p").publish("t/1")
    (message,) = reader.messages()
    assert (message.topic, message.subscription_ids) == ("t/1", [7])


def test_in_flight_messages_are_repeated_with_the_same_id_and_dup():
    desk = DurableDesk()
    reader = desk.connect("r", session_expiry_interval=NEVER)
    reader.subscribe("t/#")
    publisher = desk.connect("p")
    publisher.publish("t/1", b"1")
    publisher.publish("t/2", b"2")
    sent = reader.messages()
    reader.acknowledge(sent[:1])
    desk.commit()
    later = desk.after_power_cut()
    later.connect("p").publish("t/3", b"3")
    repeated, fresh = back(later, "r").messages()
    assert (repeated.payload, repeated.duplicate) == (b"2", True)
    assert repeated.packet_id == sent[1].packet_id
    assert (fresh.payload, fresh.duplicate) == (b"3", False)
    assert fresh.packet_id != repeated.packet_id


def test_repeats_come_in_the_order_of_sending_with_retained_messages_between():
    desk = DurableDesk(max_in_flight=1)
    publisher = desk.connect("p")
    publisher.publish("old/1", b"retained", retain=True)
    reader = desk.connect("r", session_expiry_interval=NEVER)
    reader.subscribe("t/#")
    publisher.publish("t/1", b"first")
    publisher.publish("t/2", b"queued before it subscribed")
    reader_messages = reader.messages()
    reader.subscribe("old/#")
    desk.core.router.courier._max_in_flight = 10
    reader.acknowledge(reader_messages)
    sent = reader.payloads()
    assert sent == [b"retained", b"queued before it subscribed"]
    desk.commit()
    assert back(desk.after_power_cut(), "r").payloads() == sent


def test_a_qos_2_message_in_flight_is_repeated_until_pubrec():
    desk = DurableDesk()
    reader = desk.connect("r", session_expiry_interval=NEVER)
    reader.subscribe(TWICE_NEVER)
    publish_once(desk.connect("p"), "t/1", b"once")
    (sent,) = reader.messages()
    desk.commit()
    (repeated,) = back(desk.after_power_cut(), "r").messages()
    assert (repeated.packet_id, repeated.duplicate) == (sent.packet_id, True)
    assert (repeated.qos, repeated.payload) == (QoS.EXACTLY_ONCE, b"once")


def test_after_pubrec_only_pubrel_is_repeated_until_pubcomp():
    desk = DurableDesk()
    reader = desk.connect("r", session_expiry_interval=NEVER)
    reader.subscribe(TWICE_NEVER)
    publish_once(desk.connect("p"), "t/1", b"once")
    (sent,) = reader.messages()
    desk.commit()
    reader.send(PubRecPacket(sent.packet_id))
    assert desk.promises
    desk.commit()
    assert desk.count("message") == 0
    later = desk.after_power_cut()
    reader = back(later, "r")
    assert reader.take_one(PubRelPacket).packet_id == sent.packet_id
    reader.send(PubCompPacket(sent.packet_id))
    later.commit()
    assert later.rows() == {"session": 1, "subscription": 1}


def test_a_qos_2_message_that_was_taken_is_not_taken_again():
    desk = DurableDesk()
    away(desk, "r")
    publisher = desk.connect("p", session_expiry_interval=NEVER)
    publish_once(publisher, "t/1", b"once", packet_id=9)
    desk.commit()
    later = desk.after_power_cut()
    publisher = back(later, "p")
    repeat = PublishPacket("t/1", b"once", qos=QoS.EXACTLY_ONCE, packet_id=9, duplicate=True)
    publisher.send(repeat)
    publisher.take_one(PubRecPacket)
    publisher.send(PubRelPacket(9))
    assert later.promises
    publisher.take_one(PubCompPacket)
    later.commit()
    assert later.count("received") == 0
    assert back(later.after_power_cut(), "r").payloads() == [b"once"]


def test_a_share_goes_on_and_passes_on_what_a_member_leaves():
    desk = DurableDesk()
    for member in ("a", "b"):
        away(desk, member, "$share/s/t/#")
    publisher = desk.connect("p")
    for number in range(4):
        publisher.publish("t/1", b"%d" % number)
    desk.commit()
    later = desk.after_power_cut()
    later.connect("a", clean_start=True)
    received = back(later, "b").payloads()
    assert sorted(received) == [b"0", b"1", b"2", b"3"]


def test_retained_messages_are_there_and_those_that_were_cleared_are_not():
    desk = DurableDesk()
    publisher = desk.connect("p")
    publisher.publish("t/1", b"old", retain=True)
    publisher.publish("t/2", b"cleared", retain=True)
    publisher.publish_qos0("t/3", b"kept", retain=True)
    desk.commit()
    publisher.publish("t/1", b"new", retain=True)
    publisher.publish("t/2", b"", retain=True)
    desk.commit()
    assert desk.rows() == {"message": 2, "retained": 2}
    reader = desk.after_power_cut().connect("r")
    reader.subscribe("t/#")
    assert sorted(reader.payloads()) == [b"kept", b"new"]


def test_retained_messages_that_are_due_for_a_subscription_still_come():
    desk = DurableDesk(max_in_flight=2)
    publisher = desk.connect("p")
    for number in range(5):
        publisher.publish(f"t/{number}", b"%d" % number, retain=True)
    reader = desk.connect("r", session_expiry_interval=NEVER)
    reader.subscribe("t/#")
    (first, second) = reader.messages()
    reader.acknowledge([first])
    desk.commit()
    later = desk.after_power_cut()
    reader = back(later, "r")
    received = []
    while messages := reader.messages():
        received += [message.payload for message in messages]
        reader.acknowledge(messages)
    assert received == [second.payload, b"2", b"3", b"4"]
    later.commit()
    assert later.count("queued") == 0


def test_a_will_is_published_when_its_delay_is_over():
    desk = DurableDesk()
    away(desk, "r", "w/#")
    will = Will("w/1", payload=b"gone", qos=QoS.AT_LEAST_ONCE, will_delay_interval=60)
    desk.connect("c", session_expiry_interval=NEVER, will=will).drop()
    desk.commit()
    later = desk.after_power_cut()
    later.wait(59)
    assert later.core.router.sessions["c"].will is not None
    later.wait(2)
    assert back(later, "r").payloads() == [b"gone"]


def test_clients_that_were_connected_may_come_back_before_their_wills_go_out():
    desk = DurableDesk()
    away(desk, "r", "w/#")
    will = Will("w/1", payload=b"gone", qos=QoS.AT_LEAST_ONCE)
    for client_id in ("back", "lost"):
        desk.connect(client_id, session_expiry_interval=100, will=will)
    desk.commit()
    later = desk.after_power_cut()
    later.wait(20)
    back(later, "back")
    later.wait(11)
    reader = back(later, "r")
    assert reader.payloads() == [b"gone"]
    later.wait(100)
    assert set(later.core.router.sessions) == {"r", "back"}


def test_a_broker_that_is_killed_again_and_again_lets_no_session_live_for_ever():
    desk = DurableDesk()
    away(desk, "r", "w/#")
    will = Will("w/1", payload=b"gone", qos=QoS.AT_LEAST_ONCE)
    desk.connect("c", session_expiry_interval=100, will=will)
    desk.commit()
    for _ in range(6):
        desk = desk.after_power_cut()
        desk.wait(20)
        desk.commit()
    assert set(desk.core.router.sessions) == {"r"}
    assert back(desk, "r").payloads() == [b"gone"]


def test_a_session_stays_its_owners_and_keeps_to_rules_that_changed_meanwhile():
    desk = DurableDesk()
    away(desk)
    session = desk.core.router.sessions["away"]
    session.identity = "alice"
    session.journal.changed()
    publisher = desk.connect("p")
    publisher.publish("t/1", b"secret")
    publisher.publish("t/2", b"public")
    desk.commit()
    rules = AccessRules(policy=Policy.RULES, rule=(Rule(topic="t/2", access="read", user="alice"),))
    later = desk.after_power_cut(access=rules)
    session = later.core.router.sessions["away"]
    assert session.identity == "alice"
    assert [waiting.message.topic for waiting in session.queue] == ["t/2"]
    later.commit()
    assert later.count("queued") == 1


def test_sessions_and_messages_expire_as_if_nothing_had_happened():
    desk = DurableDesk()
    client = desk.connect("short", session_expiry_interval=50)
    client.subscribe("t/#")
    client.drop()
    away(desk, "long")
    publisher = desk.connect("p")
    publisher.publish("t/1", b"soon", message_expiry_interval=30)
    publisher.publish("t/2", b"late", message_expiry_interval=90)
    publisher.publish("t/3", b"retained", message_expiry_interval=30, retain=True)
    desk.commit()
    later = desk.after_power_cut()
    later.wait(60)
    assert set(later.core.router.sessions) == {"long"}
    assert len(later.core.router.retained) == 0
    (message,) = back(later, "long").messages()
    assert (message.payload, message.message_expiry_interval) == (b"late", 30)
    later.commit()
    assert later.rows() == {"session": 1, "subscription": 1, "message": 1, "queued": 1}


def test_more_than_the_limits_is_loaded_and_nothing_more_admitted():
    desk = DurableDesk()
    away(desk, "r")
    publisher = desk.connect("p")
    for number in range(4):
        publisher.publish(f"t/{number}", b"%d" % number, retain=True)
    desk.commit()
    later = desk.after_power_cut(max_queued_messages=2, max_retained_messages=2, max_sessions=1)
    assert len(later.core.router.retained) == 4
    assert back(later, "r").payloads() == [b"0", b"1", b"2", b"3"]
    assert later.core._life.new("another") is None


# --- while nothing can be written


def test_messages_are_refused_while_nothing_can_be_written():
    desk = DurableDesk()
    away(desk, "r")
    publisher = desk.connect("p")
    desk.recorder.accepting = False
    assert publisher.publish("t/1") == 0x97
    assert publish_once(publisher, "t/2") == 0x97
    assert publisher.publish("t/3", retain=True) == 0x97
    desk.recorder.accepting = True
    assert publisher.publish("t/4", b"again") == 0
    assert back(desk, "r").payloads() == [b"again"]


def test_the_metrics_tell_while_nothing_can_be_written():
    desk = DurableDesk()

    def accepting():
        (found,) = (m for m in kept(desk.core) if m.name == "shoal_broker_accepting")
        return found.samples[0].value

    assert accepting() == 1
    desk.recorder.accepting = False
    assert accepting() == 0


def test_a_client_of_mqtt_311_is_closed_then_for_it_would_take_a_refusal_for_a_promise():
    desk = DurableDesk()
    client = OldClient.connected(desk, clean_session=False)
    desk.recorder.accepting = False
    client.send_bytes(paho_wire.publish("t/1", b"m", qos=1, packet_id=1))
    assert client.closed
    assert client.take() == []


def test_wills_are_not_lost_while_nothing_can_be_written():
    desk = DurableDesk()
    away(desk, "r", "w/#")
    will = Will("w/1", payload=b"gone", qos=QoS.AT_LEAST_ONCE)
    desk.recorder.accepting = False
    desk.connect("c", session_expiry_interval=5, will=will).drop()
    desk.wait(10)
    desk.recorder.accepting = True
    desk.commit()
    assert back(desk.after_power_cut(), "r").payloads() == [b"gone"]


def test_two_batches_in_one_write_what_they_would_have_written_one_by_one():
    desk = DurableDesk()
    away(desk, "a")
    away(desk, "b")
    publisher = desk.connect("p")
    publisher.publish("t/1", b"1", retain=True)
    failed = desk.recorder.pending.take()
    client = back(desk, "a")
    client.acknowledge(client.messages())
    publisher.publish("t/1", b"2", retain=True)
    desk.connect("b", clean_start=True)
    failed.absorb(desk.recorder.pending.take())
    desk.write(failed)
    assert desk.rows() == {
        "session": 1,
        "subscription": 1,
        "retained": 1,
        "message": 1,
        "queued": 1,
    }
    later = desk.after_power_cut()
    assert back(later, "a").payloads() == [b"2"]
