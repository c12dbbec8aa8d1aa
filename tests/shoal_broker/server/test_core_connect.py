"""CONNECT and its answers, takeover, keep alive, goodbyes."""

from tests.shoal_broker.server.desk import NEVER, Desk

from shoal_broker.codec import (
    AuthPacket,
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    PingReqPacket,
    PingRespPacket,
    PublishPacket,
    QoS,
    Will,
)
from shoal_broker.server.events import AuthenticationWanted, ClientConnected, ClientRefused


def refused_code(desk, **connect):
    client = desk.stranger()
    client.send(ConnectPacket(connect.pop("client_id", "c"), **connect))
    answer = client.take_one(ConnAckPacket)
    assert client.closed
    return int(answer.reason_code)


def test_connack_says_what_the_broker_does():
    welcome = Desk(max_packet_bytes=5000, max_topic_aliases=7).connect().welcome
    assert int(welcome.reason_code) == 0
    assert not welcome.session_present
    assert welcome.max_qos == QoS.EXACTLY_ONCE
    assert welcome.receive_max == 1_024
    assert welcome.retain_available
    assert welcome.wildcard_subscription_available
    assert welcome.subscription_id_available
    assert welcome.max_packet_size == 5000
    assert welcome.topic_alias_max == 7
    assert welcome.shared_subscription_available
    assert welcome.assigned_client_id is None


def test_a_client_without_an_id_is_given_one_of_its_own():
    desk = Desk()
    assert desk.connect("").welcome.assigned_client_id == "auto-0"
    assert desk.connect("").welcome.assigned_client_id == "auto-1"


def test_something_that_is_not_mqtt_is_closed_without_a_word():
    client = Desk().stranger()
    client.send_bytes(b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n")
    assert client.closed
    assert client.take() == []


def test_a_client_that_does_not_start_with_connect_is_closed():
    client = Desk().stranger()
    client.send(PingReqPacket())
    assert client.closed
    assert client.take() == []


def test_another_version_is_refused_with_0x84():
    client = Desk().stranger()
    client.send_bytes(b"\x10\x0e\x00\x04MQTT\x06\x02\x00\x3c\x00\x00\x01c")
    assert int(client.take_one(ConnAckPacket).reason_code) == 0x84


def test_a_malformed_connect_is_answered_with_0x81():
    client = Desk().stranger()
    client.send_bytes(b"\x10\x0e\x00\x04MQTT\x05\x03\x00\x3c\x00\x00\x01c")
    assert int(client.take_one(ConnAckPacket).reason_code) == 0x81
    assert client.closed


def test_extended_authentication_is_refused():
    assert refused_code(Desk(), authentication_method="SCRAM") == 0x8C


def test_a_client_id_of_a_kilobyte_is_refused():
    assert refused_code(Desk(), client_id="x" * 1024) == 0x85


def test_a_will_on_a_reserved_topic_is_refused():
    assert refused_code(Desk(), will=Will("$SYS/x")) == 0x90


def test_the_client_beyond_the_limit_is_told_that_the_broker_is_busy():
    desk = Desk(max_connections=1)
    first = desk.connect("a")
    assert refused_code(desk, client_id="b") == 0x89
    first.drop()
    assert int(desk.connect("b").welcome.reason_code) == 0


def test_the_session_beyond_the_limit_is_refused_and_the_known_one_is_not():
    desk = Desk(max_sessions=1)
    desk.connect("a", session_expiry_interval=NEVER).drop()
    assert refused_code(desk, client_id="b") == 0x97
    assert desk.connect("a").welcome.session_present


def test_a_second_connect_is_a_protocol_error():
    client = Desk().connect()
    client.send(ConnectPacket("c"))
    assert client.goodbye_code() == 0x82


def test_auth_without_a_method_is_a_protocol_error():
    client = Desk().connect()
    client.send(AuthPacket(authentication_method="x"))
    assert client.goodbye_code() == 0x82


def test_ping_is_answered():
    client = Desk().connect()
    client.send(PingReqPacket())
    client.take_one(PingRespPacket)


def test_takeover_tells_the_old_connection_and_keeps_the_session():
    desk = Desk()
    old = desk.connect("a", session_expiry_interval=60)
    old.subscribe("t")
    new = desk.connect("a", session_expiry_interval=60)
    assert old.goodbye_code() == 0x8E
    assert new.welcome.session_present
    desk.connect("b").publish("t", b"for a")
    assert new.payloads() == [b"for a"]


def test_clean_start_forgets_the_session():
    desk = Desk()
    old = desk.connect("a", session_expiry_interval=60)
    old.subscribe("t")
    old.drop()
    new = desk.connect("a", clean_start=True)
    assert not new.welcome.session_present
    assert new.publish("t") == 0x10


def test_keep_alive_is_one_and_a_half_times_what_was_agreed():
    desk = Desk()
    client = desk.connect(keep_alive=10)
    desk.wait(14)
    assert not client.closed
    client.send(PingReqPacket())
    client.take()
    desk.wait(15)
    assert not client.closed
    desk.wait(1)
    assert client.goodbye_code() == 0x8D


def test_without_keep_alive_nobody_is_sent_away():
    desk = Desk()
    client = desk.connect(keep_alive=0)
    desk.wait(1e6)
    assert not client.closed


def test_who_says_nothing_is_closed_after_the_connect_timeout():
    desk = Desk(connect_timeout_s=10)
    client = desk.stranger()
    desk.wait(9)
    assert not client.closed
    desk.wait(2)
    assert client.closed
    assert client.take() == []


def test_a_session_ends_when_its_expiry_has_passed():
    desk = Desk()
    desk.connect("a", session_expiry_interval=60).drop()
    desk.wait(59)
    back = desk.connect("a", session_expiry_interval=60)
    assert back.welcome.session_present
    back.drop()
    desk.wait(61)
    assert not desk.connect("a").welcome.session_present


def test_an_expiry_of_all_ones_never_ends():
    desk = Desk()
    desk.connect("a", session_expiry_interval=NEVER).drop()
    desk.wait(1e9)
    assert desk.connect("a").welcome.session_present


def test_disconnect_may_shorten_the_expiry_of_the_session():
    desk = Desk()
    client = desk.connect("a", session_expiry_interval=60)
    client.send(DisconnectPacket(session_expiry_interval=0))
    assert client.closed
    assert not desk.connect("a").welcome.session_present


def test_disconnect_may_not_give_an_expiry_to_a_session_without_one():
    client = Desk().connect()
    client.send(DisconnectPacket(session_expiry_interval=5))
    assert client.goodbye_code() == 0x82


def test_what_follows_disconnect_is_ignored():
    desk = Desk()
    listener = desk.connect("l")
    listener.subscribe("t")
    client = desk.connect("a")
    client.send(DisconnectPacket(), PublishPacket("t", b"late"))
    assert client.closed
    assert listener.take() == []


def test_shutting_down_says_so_to_everybody():
    desk = Desk()
    client = desk.connect()
    stranger = desk.stranger()
    desk.core.shut_down()
    desk.settle()
    assert client.goodbye_code() == 0x8B
    assert stranger.closed


def test_wanted_authentication_holds_the_client_until_it_is_answered(tmp_path):
    desk = Desk(password_file=tmp_path / "users")
    client = desk.stranger()
    client.send(ConnectPacket("a", username="u", password=b"p"), PingReqPacket())
    (event,) = desk.core.take_events()
    assert event == AuthenticationWanted(client.connection, "u", b"p")
    assert client.take() == []
    desk.core.authenticated(client.connection, desk.now_s, accepted=True)
    desk.settle()
    welcome, pong = client.take()
    assert int(welcome.reason_code) == 0
    assert isinstance(pong, PingRespPacket)
    (connected,) = desk.core.take_events()
    assert isinstance(connected, ClientConnected)
    assert connected.user_name == "u"


def test_a_wrong_password_is_refused(tmp_path):
    desk = Desk(password_file=tmp_path / "users")
    client = desk.stranger()
    client.send(ConnectPacket("a", username="u", password=b"p"))
    desk.core.authenticated(client.connection, desk.now_s, accepted=False)
    desk.settle()
    assert int(client.take_one(ConnAckPacket).reason_code) == 0x86
    assert isinstance(desk.core.take_events()[-1], ClientRefused)


def test_a_client_without_a_password_is_refused_at_once(tmp_path):
    assert refused_code(Desk(password_file=tmp_path / "users")) == 0x86
    assert refused_code(Desk(password_file=tmp_path / "users"), username="u") == 0x86


def test_an_answer_for_a_client_that_is_gone_is_ignored(tmp_path):
    desk = Desk(password_file=tmp_path / "users")
    client = desk.stranger()
    client.send(ConnectPacket("a", username="u", password=b"p"))
    client.drop()
    desk.core.authenticated(client.connection, desk.now_s, accepted=True)
    assert desk.core.router.sessions == {}


def test_a_disconnect_with_a_reason_above_0x80_counts_as_gone_with_will():
    desk = Desk()
    listener = desk.connect("l")
    listener.subscribe("w")
    client = desk.connect("a", will=Will("w", payload=b"gone"))
    client.send(DisconnectPacket(reason_code=DisconnectReasonCode.UNSPECIFIED_ERROR))
    assert listener.payloads() == [b"gone"]
