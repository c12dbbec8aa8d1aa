"""What CONNACK announces holds afterwards, and what a client does not want to hear it is not told."""

import pytest
from tests.shoal_broker.server.desk import NEVER, Desk

from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubscribePacket,
    TopicFilter,
)
from shoal_broker.errors import ConfigError
from shoal_broker.server.config import BrokerConfig
from shoal_broker.server.core import BrokerCore


@pytest.mark.parametrize(
    ("asked_s", "announced_s", "holds_s"), [(0, 60, 60), (61, 60, 60), (60, None, 60), (5, None, 5)]
)
def test_a_longer_keep_alive_than_allowed_is_cut_and_the_cut_one_holds(
    asked_s, announced_s, holds_s
):
    desk = Desk(max_keep_alive_s=60)
    client = desk.connect(keep_alive=asked_s)
    assert client.welcome.server_keep_alive == announced_s
    desk.wait(holds_s * 1.5)
    assert not client.closed
    desk.wait(1)
    assert client.goodbye_code() == 0x8D


def test_without_a_limit_the_keep_alive_is_the_clients_own():
    assert Desk().connect(keep_alive=40_000).welcome.server_keep_alive is None


def test_a_longer_session_expiry_than_allowed_is_cut_and_the_cut_one_holds():
    desk = Desk(max_session_expiry_s=100)
    client = desk.connect(session_expiry_interval=NEVER)
    assert client.welcome.session_expiry_interval == 100
    client.drop()
    desk.wait(99)
    client = desk.connect(session_expiry_interval=50)
    assert client.welcome.session_present
    assert client.welcome.session_expiry_interval is None
    client.drop()
    desk.wait(51)
    assert not desk.connect().welcome.session_present


def test_disconnect_may_not_ask_for_longer_than_allowed_either():
    desk = Desk(max_session_expiry_s=100)
    client = desk.connect(session_expiry_interval=10)
    client.send(DisconnectPacket(session_expiry_interval=NEVER))
    desk.wait(101)
    assert desk.core.router.sessions == {}


def test_disconnect_may_lengthen_and_end_the_session():
    desk = Desk()
    client = desk.connect(session_expiry_interval=1)
    client.send(DisconnectPacket(session_expiry_interval=5))
    desk.wait(3)
    client = desk.connect(session_expiry_interval=5)
    assert client.welcome.session_present
    client.send(DisconnectPacket(session_expiry_interval=0))
    assert not desk.connect(session_expiry_interval=5).welcome.session_present


def test_an_id_that_somebody_has_is_not_given_to_another():
    ids = iter(["taken", "free"])
    desk = Desk()
    desk.core = BrokerCore(BrokerConfig(), new_client_id=lambda: next(ids))
    desk.connect("taken")
    assert desk.connect("").welcome.assigned_client_id == "free"


def test_response_information_is_given_to_who_asks_for_it():
    desk = Desk(response_topics="replies/to")
    assert desk.connect("a", request_response_info=True).welcome.response_info == "replies/to/a"
    assert desk.connect("b").welcome.response_info is None
    named = desk.connect("", request_response_info=True).welcome
    assert named.response_info == f"replies/to/{named.assigned_client_id}"


@pytest.mark.parametrize("client_id", ["a/b", "+", "a#"])
def test_a_client_id_that_is_no_level_of_a_topic_gets_no_response_information(client_id):
    desk = Desk(response_topics="replies")
    assert desk.connect(client_id, request_response_info=True).welcome.response_info is None


def test_without_a_setting_there_is_no_response_information():
    assert Desk().connect(request_response_info=True).welcome.response_info is None


@pytest.mark.parametrize("topics", ["a/+", "#", "$SYS/a"])
def test_response_topics_that_no_client_could_publish_to_are_refused(topics):
    with pytest.raises(ConfigError, match="response_topics"):
        BrokerConfig(response_topics=topics)


def refusals(client) -> list[str | None]:
    """The reason strings of a PUBACK, a PUBREC and a SUBACK that refuse."""
    client.send(PublishPacket("$x", b"", qos=QoS.AT_LEAST_ONCE, packet_id=1))
    client.send(PublishPacket("$x", b"", qos=QoS.EXACTLY_ONCE, packet_id=2))
    client.send(SubscribePacket(3, [TopicFilter("t"), TopicFilter("+/" * 200)]))
    answers = client.take()
    codes = [getattr(p, "reason_code", None) or p.reason_codes[-1] for p in answers]
    assert [int(code) for code in codes] == [0x90, 0x90, 0x8F]
    return [p.reason_str for p in answers]


def test_a_refusal_says_why_in_words():
    assert all(refusals(Desk().connect()))


def test_a_client_without_problem_information_gets_codes_alone():
    desk = Desk(max_connections=1)
    client = desk.connect(request_problem_info=False)
    assert refusals(client) == [None, None, None]
    client.send(ConnectPacket("again"))
    # MQTT 5, 3.1.2.11.7 allows words in CONNACK and DISCONNECT all the same.
    assert client.take()[-1].reason_str


def test_success_needs_no_words():
    client = Desk().connect()
    client.send(SubscribePacket(1, [TopicFilter("t", max_qos=QoS.AT_MOST_ONCE)]))
    assert client.take_one(SubAckPacket).reason_str is None
    client.send(PublishPacket("u", b"", qos=QoS.AT_LEAST_ONCE, packet_id=1))
    assert client.take_one(PubAckPacket).reason_str is None


def test_words_give_way_to_the_packet_size_of_the_client():
    desk = Desk()
    client = desk.connect(max_packet_size=30)
    assert refusals(client) == [None, None, None]
    client.send(ConnectPacket("again"))
    goodbye = client.take()[-1]
    assert isinstance(goodbye, DisconnectPacket)
    assert goodbye.reason_str is None


def test_the_words_of_a_refused_connect_give_way_too():
    client = Desk().stranger()
    client.send(ConnectPacket("c", authentication_method="x", max_packet_size=20))
    answer = client.take_one(ConnAckPacket)
    assert (int(answer.reason_code), answer.reason_str) == (0x8C, None)


@pytest.mark.parametrize("wrong", ["receive_max", "max_packet_size"])
def test_a_connect_that_wants_to_be_sent_nothing_is_a_protocol_error(wrong):
    client = Desk().stranger()
    data = bytearray(ConnectPacket("c", receive_max=5, max_packet_size=5).write())
    identifier, size_bytes = {"receive_max": (0x21, 2), "max_packet_size": (0x27, 4)}[wrong]
    at = data.index(identifier, 12) + 1
    data[at : at + size_bytes] = bytes(size_bytes)
    client.send_bytes(bytes(data))
    assert int(client.take_one(ConnAckPacket).reason_code) == 0x82
