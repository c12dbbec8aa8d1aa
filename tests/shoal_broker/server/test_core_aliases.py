"""Topic aliases that the broker gives: as many as the client allows, each known before it is used alone."""

from tests.shoal_broker.server.desk import NEVER, Desk

from shoal_broker.codec import ConnectPacket


def heard(client) -> list[tuple[str, int | None, bytes]]:
    return [(m.topic, m.topic_alias, m.payload) for m in client.messages()]


def test_a_client_that_allows_none_gets_none():
    desk = Desk()
    listener = desk.connect("l")
    listener.subscribe("#")
    sender = desk.connect("s")
    for _ in range(2):
        sender.publish("long/topic")
    assert heard(listener) == [("long/topic", None, b"m")] * 2
    assert listener.connection.aliases_given is None


def test_a_topic_goes_with_its_alias_first_and_then_stays_away():
    desk = Desk()
    listener = desk.connect("l", topic_alias_max=10)
    listener.subscribe("#")
    sender = desk.connect("s")
    sender.publish("first/topic", b"1")
    sender.publish_qos0("second/topic", b"2")
    sender.publish_qos0("first/topic", b"3")
    sender.publish_qos2("second/topic", b"4")
    assert heard(listener) == [
        ("first/topic", 1, b"1"),
        ("second/topic", 2, b"2"),
        ("", 1, b"3"),
        ("", 2, b"4"),
    ]


def test_no_more_aliases_than_the_client_or_the_broker_allows():
    for desk, allowed in ((Desk(), 2), (Desk(max_topic_aliases=2), 65_535)):
        listener = desk.connect("l", topic_alias_max=allowed)
        listener.subscribe("#")
        sender = desk.connect("s")
        for _ in range(2):
            for n in range(4):
                sender.publish_qos0(f"topic/{n}")
        aliases = [(topic, alias) for topic, alias, _ in heard(listener)]
        assert aliases == [
            ("topic/0", 1),
            ("topic/1", 2),
            ("topic/2", None),
            ("topic/3", None),
            ("", 1),
            ("", 2),
            ("topic/2", None),
            ("topic/3", None),
        ]


def test_a_very_long_topic_is_not_remembered_for_a_client():
    desk = Desk()
    listener = desk.connect("l", topic_alias_max=10)
    listener.subscribe("#")
    sender = desk.connect("s")
    for topic in ("t" * 1_025, "t" * 1_024):
        sender.publish(topic)
    assert [alias for _, alias, _ in heard(listener)] == [None, 1]


def test_an_alias_that_would_save_nothing_is_not_given():
    desk = Desk()
    listener = desk.connect("l", topic_alias_max=5)
    listener.subscribe("#")
    sender = desk.connect("s")
    sender.publish_qos0("abc")
    sender.publish_qos0("abcd")
    assert [(topic, alias) for topic, alias, _ in heard(listener)] == [("abc", None), ("abcd", 1)]


def test_a_message_that_is_left_out_does_not_make_its_alias_known():
    desk = Desk()
    listener = desk.connect("l", topic_alias_max=5, max_packet_size=100)
    listener.subscribe("#")
    sender = desk.connect("s")
    sender.publish("some/topic", bytes(200))
    sender.publish("some/topic", b"small")
    assert heard(listener) == [("some/topic", 1, b"small")]


def test_a_new_connection_begins_without_aliases():
    desk = Desk()
    listener = desk.connect("l", topic_alias_max=5, session_expiry_interval=NEVER)
    listener.subscribe("#")
    sender = desk.connect("s")
    sender.publish("some/topic", b"1")
    sender.publish("some/topic", b"2")
    assert [alias for _, alias, _ in heard(listener)] == [1, 1]
    listener.drop()
    back = desk.stranger()
    back.send(ConnectPacket("l", topic_alias_max=1))
    assert heard(back) == [("some/topic", 1, b"1"), ("", 1, b"2")]
