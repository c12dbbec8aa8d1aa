"""Every limit has its answer: slow consumers, full queues, subscriptions, sizes."""

import pytest
from tests.shoal_broker.server.desk import NEVER, Desk

from shoal_broker.codec import (
    ConnectPacket,
    PubAckPacket,
    PublishPacket,
    PubRecPacket,
    QoS,
    SubscribePacket,
    TopicFilter,
    encode,
)
from shoal_broker.server.counters import Dropped
from shoal_broker.server.messages import OVERHEAD_BYTES
from shoal_broker.server.retained import LEVEL_BYTES


def test_a_packet_above_the_limit_is_refused_from_its_header_alone():
    client = Desk(max_packet_bytes=1000).connect()
    client.send_bytes(b"\x30\xe8\x07")
    assert client.goodbye_code() == 0x95


def test_a_stranger_may_not_send_a_megabyte_before_connect():
    client = Desk().stranger()
    client.send_bytes(b"\x10\x80\x80\x20")
    assert client.closed


def test_the_subscription_beyond_the_limit_is_refused():
    desk = Desk(max_subscriptions=2)
    client = desk.connect()
    assert client.subscribe("a", "b", "c") == [1, 1, 0x97]
    assert client.subscribe("a") == [1]


def test_filters_of_all_sessions_have_a_limit_in_bytes():
    desk = Desk(max_subscription_bytes=100_000)
    deep = "/".join("a" * 127)
    one, other = desk.connect("one"), desk.connect("other")
    assert one.subscribe(*(f"{n}/{deep}" for n in range(3))) == [1, 1, 1]
    assert one.subscribe(f"5/{deep}") == [0x97]
    assert other.subscribe("x") == [0x97]
    one.drop()
    assert desk.core.router.subscriptions.size_bytes == 0
    assert other.subscribe("x") == [1]


def test_a_filter_with_too_many_levels_is_refused():
    assert Desk().connect().subscribe("+/" * 200) == [0x8F]


def test_a_full_queue_of_an_absent_client_is_told_to_the_publisher():
    desk = Desk(max_queued_messages=2)
    desk.connect("l", session_expiry_interval=NEVER).subscribe("t")
    desk.core.router.sessions["l"].connection.owner.drop()
    other = desk.connect("o")
    other.subscribe("t")
    sender = desk.connect("s")
    codes = []
    for n in range(3):
        codes.append(sender.publish("t", bytes([n])))
        other.acknowledge(other.messages())
    assert codes == [0, 0, 0x97]
    assert desk.core.counters.dropped[Dropped.QUEUE_FULL] == 1
    back = desk.stranger()
    back.send(ConnectPacket("l"))
    assert back.payloads() == [b"\0", b"\1"]


def test_a_full_queue_of_a_client_that_is_not_to_be_remembered_is_only_counted():
    desk = Desk(max_queued_messages=1)
    listener = desk.connect("l")
    listener.subscribe("t")
    sender = desk.connect("s")
    assert [sender.publish("t"), sender.publish("t")] == [0, 0]
    assert desk.core.counters.dropped[Dropped.QUEUE_FULL] == 1


def test_the_byte_limit_counts_what_is_in_flight():
    desk = Desk(max_queued_bytes=2 * (1100 + OVERHEAD_BYTES))
    listener = desk.connect("l", session_expiry_interval=1)
    listener.subscribe("t")
    sender = desk.connect("s")
    assert [sender.publish("t", bytes(1000)) for _ in range(3)] == [0, 0, 0x97]
    listener.acknowledge(listener.messages())
    assert sender.publish("t", bytes(1000)) == 0
    session = desk.core.router.sessions["l"]
    listener.acknowledge(listener.messages())
    assert session.held_bytes == 0


def test_a_slow_consumer_loses_the_oldest_qos_0_messages_first():
    desk = Desk(max_queued_messages=3)
    listener = desk.connect("l")
    listener.subscribe("t")
    listener.stalled = True
    sender = desk.connect("s")
    sender.publish_qos0("t", b"written")
    for n in range(5):
        sender.publish_qos0("t", bytes([n]))
    listener.resume()
    assert listener.payloads() == [b"written", b"\2", b"\3", b"\4"]
    assert desk.core.counters.dropped[Dropped.QUEUE_FULL] == 2


def test_qos_1_pushes_out_qos_0():
    desk = Desk(max_queued_messages=2)
    listener = desk.connect("l")
    listener.subscribe("t")
    listener.stalled = True
    sender = desk.connect("s")
    sender.publish_qos0("t", b"written")
    sender.publish_qos0("t", b"0a")
    sender.publish_qos0("t", b"0b")
    assert sender.publish("t", b"1") == 0
    listener.resume()
    assert listener.payloads() == [b"written", b"1", b"0b"]


def test_an_expired_message_makes_room():
    desk = Desk(max_queued_messages=1)
    desk.connect("l", session_expiry_interval=NEVER).subscribe("t")
    desk.core.router.sessions["l"].connection.owner.drop()
    sender = desk.connect("s")
    assert sender.publish("t", b"old", message_expiry_interval=1) == 0
    assert sender.publish("t", b"refused") == 0x97
    desk.now_s += 2
    assert sender.publish("t", b"new") == 0


def test_user_properties_count_as_what_they_take_in_memory():
    desk = Desk(max_queued_bytes=100_000)
    desk.connect("l", session_expiry_interval=NEVER).subscribe("t")
    desk.core.router.sessions["l"].connection.owner.drop()
    sender = desk.connect("s")
    assert sender.publish("t", user_properties=[("", "")] * 1_000) == 0x97
    assert sender.publish("t", user_properties=[("", "")] * 100) == 0


def test_levels_of_retained_topics_count_as_what_they_take_in_memory():
    desk = Desk(max_retained_bytes=90_000)
    sender = desk.connect("s")
    deep = "/".join("a" * 128)
    codes = [sender.publish(f"{n}/{deep[4:]}", retain=True) for n in range(4)]
    assert codes == [0x10, 0x10, 0x97, 0x97]
    assert sender.publish(f"1/{deep[4:]}", b"shared", retain=True) == 0x10
    for n in range(2):
        sender.publish(f"{n}/{deep[4:]}", b"", retain=True)
    assert desk.core.router.retained.size_bytes == 0


def test_output_for_one_connection_stops_at_the_write_buffer():
    desk = Desk(write_buffer_bytes=10_000, max_queued_messages=1000)
    listener = desk.connect("l")
    listener.subscribe("t")
    sender = desk.connect("s")
    burst = b"".join(PublishPacket("t", bytes(1000)).write() for _ in range(200))
    desk.core.receive(sender.connection, burst, desk.now_s)
    assert listener.connection.output_bytes < 12_000
    desk.settle()
    assert len(listener.messages()) == 200


def test_an_absent_client_gets_no_qos_0_and_that_is_counted():
    desk = Desk()
    listener = desk.connect("l", session_expiry_interval=NEVER)
    listener.subscribe("t")
    listener.drop()
    desk.connect("s").publish_qos0("t")
    assert desk.core.counters.dropped[Dropped.OFFLINE_QOS0] == 1
    assert desk.core.router.sessions["l"].held_messages == 0


def test_qos_0_that_waited_is_forgotten_when_the_client_goes():
    desk = Desk()
    listener = desk.connect("l", session_expiry_interval=NEVER)
    listener.subscribe("t")
    listener.stalled = True
    sender = desk.connect("s")
    sender.publish_qos0("t", b"written")
    sender.publish_qos0("t", b"waits")
    listener.drop()
    session = desk.core.router.sessions["l"]
    assert (session.held_messages, session.held_bytes) == (0, 0)


def test_a_very_long_wrong_topic_is_not_quoted_in_full():
    client = Desk().connect()
    client.send(SubscribePacket(1, [TopicFilter("x" * 60_000)]))
    client.take()
    raw = ("+" * 60_000).encode()
    body = b"\0\1\0" + len(raw).to_bytes(2, "big") + raw + b"\1"
    remaining = len(body)
    header = bytes([0x82, remaining & 0x7F | 0x80, remaining >> 7 & 0x7F | 0x80, remaining >> 14])
    client.send_bytes(header + body)
    assert client.goodbye_code() == 0x8F


def test_a_client_that_wants_every_retained_message_many_times_over_is_refused():
    desk = Desk(max_retained_messages=10, max_in_flight=1)
    sender = desk.connect("s")
    for n in range(8):
        sender.publish(f"t/{n}", retain=True)
    client = desk.connect("greedy")
    assert client.subscribe("#", "+/#", "t/+") == [1, 0x97, 0x97]
    client.take()
    assert client.subscribe("#") == [1]
    assert set(desk.core.router.sessions["greedy"].subscriptions) == {"#"}


# --- all queues together


def gone(desk, client_id, *filters):
    """A session that is to be remembered, and is away."""
    client = desk.connect(client_id, session_expiry_interval=NEVER)
    client.subscribe(*filters)
    client.drop()


def test_a_gigabyte_for_absent_sessions_ends_at_the_limit_of_all_queues():
    limit = 64 << 20
    desk = Desk(max_queued_bytes_total=limit, max_queued_bytes=1 << 40, max_queued_messages=1 << 30)
    for n in range(4):
        gone(desk, f"away-{n}", f"t/{n}")
    sender = desk.connect("s")
    payload = bytes(256 << 10)
    codes = [sender.publish(f"t/{n % 4}", payload) for n in range(4_096)]
    ledger = desk.core.router.ledger
    assert sum(len(payload) for _ in codes) == 1 << 30
    assert limit - len(payload) - 1024 < ledger.queued_bytes <= limit
    kept = codes.count(0)
    assert codes == [0] * kept + [0x97] * (len(codes) - kept)
    assert kept * len(payload) <= limit
    assert desk.core.counters.dropped[Dropped.QUEUE_FULL] == codes.count(0x97)
    # What waits is all there, and room comes back with each acknowledgement.
    got = 0
    for n in range(4):
        back = desk.stranger()
        back.send(ConnectPacket(f"away-{n}"))
        while messages := back.messages():
            got += len(messages)
            back.acknowledge(messages)
    assert got == kept
    assert (ledger.live_bytes, sender.publish("t/0")) == (0, 0)


def test_a_message_that_waits_for_many_is_counted_once():
    desk = Desk(max_queued_bytes_total=1 << 20)
    for n in range(100):
        gone(desk, f"away-{n}", "t")
    sender = desk.connect("s")
    assert sender.publish("t", bytes(100_000)) == 0
    ledger = desk.core.router.ledger
    assert 100_000 < ledger.queued_bytes < 100_000 + 100 * 256 + 1024
    assert sender.publish("t", bytes(100_000)) == 0


def test_small_messages_for_many_count_what_their_entries_cost():
    desk = Desk(max_queued_bytes_total=256 * 1024)
    for n in range(100):
        gone(desk, f"away-{n}", "t")
    sender = desk.connect("s")
    codes = [sender.publish("t") for _ in range(30)]
    assert codes[:8] == [0] * 8
    assert codes[12:] == [0x97] * 18


def test_at_the_limit_of_all_queues_a_client_that_keeps_up_goes_on():
    desk = Desk(max_queued_bytes_total=1 << 20)
    gone(desk, "away", "hoard")
    listener = desk.connect("l")
    listener.subscribe("live")
    sender = desk.connect("s")
    while sender.publish("hoard", bytes(50_000)) == 0:
        pass
    for n in range(20):
        assert sender.publish("live", bytes([n])) == 0
        messages = listener.messages()
        assert [m.payload for m in messages] == [bytes([n])]
        listener.acknowledge(messages)
    sender.publish_qos0("live", b"last")
    assert listener.payloads() == [b"last"]


def test_what_passed_through_long_ago_is_not_taken_for_waiting():
    desk = Desk(max_queued_bytes_total=64 << 10)
    listener = desk.connect("l")
    listener.subscribe("t")
    sender = desk.connect("s")
    for _ in range(2_000):
        assert sender.publish("t") == 0
        listener.acknowledge(listener.messages())
    assert desk.core.counters.dropped[Dropped.QUEUE_FULL] == 0


def test_retained_messages_have_a_limit_of_their_own():
    desk = Desk(max_queued_bytes_total=100_000)
    sender = desk.connect("s")
    for n in range(10):
        assert sender.publish(f"r/{n}", bytes(50_000), retain=True) == 0x10
    ledger = desk.core.router.ledger
    assert ledger.retained_bytes == ledger.live_bytes
    # `r` and what is below it.
    assert desk.core.router.retained.size_bytes == ledger.live_bytes + 11 * LEVEL_BYTES
    gone(desk, "away", "t")
    assert sender.publish("t", bytes(50_000)) == 0
    for n in range(10):
        sender.publish(f"r/{n}", b"", retain=True)
    assert ledger.retained_bytes == 0
    assert ledger.live_bytes == desk.core.router.sessions["away"].held_bytes


def test_a_qos_2_message_that_finds_all_queues_full_is_refused_before_anybody_has_it():
    desk = Desk(max_queued_bytes_total=100_000)
    gone(desk, "away", "t")
    sender = desk.connect("s")
    while sender.publish("t", bytes(50_000)) == 0:
        pass
    sender.send(PublishPacket("t", bytes(50_000), qos=QoS.EXACTLY_ONCE, packet_id=9))
    assert int(sender.take_one(PubRecPacket).reason_code) == 0x97


@pytest.mark.slow
def test_every_packet_id_may_be_in_use_and_each_is_free_again_with_its_acknowledgement():
    everything = 65_535
    desk = Desk(max_in_flight=everything, max_queued_messages=1 << 20, max_queued_bytes=1 << 30)
    listener = desk.connect("l", receive_max=everything)
    listener.subscribe("t")
    sender = desk.connect("s")
    burst = b"".join(
        encode(PublishPacket("t", b"", qos=QoS.AT_LEAST_ONCE, packet_id=n % 1000 + 1))
        for n in range(1, 1001)
    )
    for _ in range(66):
        sender.send_bytes(burst)
        sender.take()
    sent = [message.packet_id for message in listener.messages()]
    assert sorted(sent) == list(range(1, everything + 1))
    session = desk.core.router.sessions["l"]
    assert len(session.queue) == 66_000 - everything
    # The one id that is free is found, wherever it is.
    listener.send(PubAckPacket(40_000))
    assert [message.packet_id for message in listener.messages()] == [40_000]
    listener.send_bytes(b"".join(encode(PubAckPacket(n)) for n in range(1, everything + 1)))
    listener.acknowledge(listener.messages())
    assert (session.held_messages, session.held_bytes) == (0, 0)
    assert sender.publish("t") == 0
