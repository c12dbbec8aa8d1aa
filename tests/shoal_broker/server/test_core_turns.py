"""One client cannot keep the broker from hearing the others, whatever little it sends."""

from tests.shoal_broker.server.desk import Desk

from shoal_broker.codec import (
    PingReqPacket,
    PingRespPacket,
    PublishPacket,
    SubAckPacket,
    SubscribePacket,
    TopicFilter,
    encode,
)
from shoal_broker.server.core import LARGEST_LOOK_UP, TURN


def test_what_one_client_says_at_once_is_acted_on_in_turns():
    desk = Desk(max_queued_messages=10 * TURN)
    talker, listener = desk.connect("talker"), desk.connect("listener")
    listener.subscribe("t")
    said = encode(PublishPacket("t", b"m")) * 3 * TURN
    desk.core.receive(talker.connection, said, desk.now_s)
    assert desk.core.counters.messages_in < TURN
    (unread,) = desk.core.take_unread()
    assert unread is talker.connection
    # In between anybody else is heard.
    desk.core.receive(listener.connection, encode(PingReqPacket()), desk.now_s)
    assert PingRespPacket().write() in listener.connection.output
    desk.core.read_on(unread, desk.now_s)
    desk.settle()
    assert len(listener.messages()) == 3 * TURN


def test_a_message_to_many_takes_as_much_of_a_turn_as_it_has_listeners():
    desk = Desk()
    for n in range(TURN // 2):
        desk.connect(f"listener-{n}").subscribe("t")
    talker = desk.connect("talker")
    said = encode(PublishPacket("t", b"m")) * 100
    desk.core.receive(talker.connection, said, desk.now_s)
    assert desk.core.counters.messages_in <= 2


def test_what_comes_before_the_next_turn_waits_for_it():
    desk = Desk(max_queued_messages=10 * TURN)
    talker, listener = desk.connect("talker"), desk.connect("listener")
    listener.subscribe("t")
    said = encode(PublishPacket("t", b"first")) * 2 * TURN
    desk.core.receive(talker.connection, said, desk.now_s)
    desk.core.receive(talker.connection, encode(PublishPacket("t", b"last")), desk.now_s)
    desk.settle()
    assert listener.payloads() == [*[b"first"] * 2 * TURN, b"last"]


def test_one_subscribe_may_not_have_everything_retained_looked_at_a_thousand_times():
    desk = Desk()
    publisher = desk.connect("publisher")
    topics = 2_000
    for n in range(topics):
        publisher.publish_qos0(f"{n}", retain=True)
    client = desk.connect("client")
    client.stalled = True
    filters = [TopicFilter("#")] * 2 * (LARGEST_LOOK_UP // topics)
    client.send(SubscribePacket(1, filters))
    client.resume()
    answer = next(packet for packet in client.take() if isinstance(packet, SubAckPacket))
    codes = [int(code) for code in answer.reason_codes]
    assert codes.count(0x97) > len(filters) // 3
    assert codes == sorted(codes)
    # It is the packet's limit, and the filter stands.
    assert client.subscribe("1") == [1]
    publisher.publish_qos0("unheard")
    assert b"m" in client.payloads()
