"""When a last will is sent, and when it is not."""

import pytest
from tests.shoal_broker.server.desk import Desk

from shoal_broker.codec import (
    DisconnectPacket,
    DisconnectReasonCode,
    PublishPacket,
    QoS,
    Will,
)


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def listener(desk):
    client = desk.connect("listener")
    client.subscribe("w/#")
    return client


def will(**options):
    return Will("w/c", payload=b"gone", qos=QoS.AT_LEAST_ONCE, **options)


def test_a_cut_connection_sends_it_with_its_properties(desk, listener):
    client = desk.connect(
        "c", will=will(content_type="text", response_topic="r", user_properties=[("a", "b")])
    )
    client.drop()
    (message,) = listener.messages()
    assert message.payload == b"gone"
    assert message.qos == QoS.AT_LEAST_ONCE
    assert (message.content_type, message.response_topic) == ("text", "r")
    assert message.user_properties == [("a", "b")]


def test_a_qos_0_will_is_sent_too(desk, listener):
    desk.connect("c", will=Will("w/c", payload=b"0")).drop()
    assert listener.payloads() == [b"0"]


def test_a_normal_goodbye_discards_it(desk, listener):
    client = desk.connect("c", will=will())
    client.send(DisconnectPacket())
    client.drop()
    assert listener.messages() == []


def test_disconnect_0x04_sends_it(desk, listener):
    client = desk.connect("c", will=will())
    client.send(DisconnectPacket(reason_code=DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE))
    assert listener.payloads() == [b"gone"]


def test_a_keep_alive_timeout_sends_it(desk, listener):
    desk.connect("c", keep_alive=10, will=will())
    desk.wait(16)
    assert listener.payloads() == [b"gone"]


def test_a_protocol_error_sends_it(desk, listener):
    desk.connect("c", will=will()).send(PublishPacket("t", b"", subscription_ids=[1]))
    assert listener.payloads() == [b"gone"]


def test_a_retained_will_is_kept_for_later_subscribers(desk):
    desk.connect("c", will=will(retain=True)).drop()
    late = desk.connect("late")
    late.subscribe("w/c")
    assert [(m.payload, m.retain) for m in late.messages()] == [(b"gone", True)]


def test_a_delayed_will_waits(desk, listener):
    desk.connect("c", session_expiry_interval=60, will=will(will_delay_interval=10)).drop()
    desk.wait(9)
    assert listener.messages() == []
    desk.wait(2)
    assert listener.payloads() == [b"gone"]
    desk.wait(100)
    assert listener.messages() == []


def test_a_delayed_will_is_sent_when_the_session_ends_earlier(desk, listener):
    desk.connect("c", session_expiry_interval=5, will=will(will_delay_interval=60)).drop()
    desk.wait(6)
    assert listener.payloads() == [b"gone"]


def test_without_session_expiry_a_delayed_will_is_sent_at_once(desk, listener):
    desk.connect("c", will=will(will_delay_interval=60)).drop()
    assert listener.payloads() == [b"gone"]


def test_a_client_that_is_back_in_time_cancels_it(desk, listener):
    desk.connect("c", session_expiry_interval=60, will=will(will_delay_interval=10)).drop()
    desk.wait(5)
    desk.connect("c", session_expiry_interval=60)
    desk.wait(20)
    assert listener.messages() == []


def test_a_clean_start_ends_the_session_and_sends_the_delayed_will(desk, listener):
    desk.connect("c", session_expiry_interval=60, will=will(will_delay_interval=10)).drop()
    desk.connect("c", clean_start=True)
    assert listener.payloads() == [b"gone"]


def test_a_takeover_sends_a_will_without_delay(desk, listener):
    desk.connect("c", session_expiry_interval=60, will=will())
    desk.connect("c", session_expiry_interval=60)
    assert listener.payloads() == [b"gone"]


def test_a_takeover_does_not_send_a_will_with_delay(desk, listener):
    desk.connect("c", session_expiry_interval=60, will=will(will_delay_interval=10))
    desk.connect("c", session_expiry_interval=60)
    desk.wait(20)
    assert listener.messages() == []


def test_the_expiry_of_a_will_counts_from_when_it_is_sent(desk, listener):
    desk.connect(
        "c",
        session_expiry_interval=60,
        will=will(will_delay_interval=10, message_expiry_interval=30),
    ).drop()
    desk.wait(11)
    assert [m.message_expiry_interval for m in listener.messages()] == [30]
