"""`$SYS`: figures for who asks, at no cost for who does not."""

import pytest
from tests.shoal_broker.server.desk import NEVER, Desk

from shoal_broker.errors import ConfigError
from shoal_broker.server.config import BrokerConfig

ROOT = "$SYS/broker"


def figures(client) -> dict[str, str]:
    return {m.topic.removeprefix(f"{ROOT}/"): m.payload.decode() for m in client.messages()}


def test_who_subscribes_gets_all_figures_at_once():
    desk = Desk()
    desk.wait(0)
    sender = desk.connect("s")
    sender.publish("t", b"kept", retain=True)
    absent = desk.connect("absent", session_expiry_interval=NEVER)
    absent.subscribe("t")
    absent.drop()
    sender.publish("t")
    sender.publish("$SYS/mine")
    desk.wait(65)
    listener = desk.connect("l")
    assert listener.subscribe("$SYS/#") == [1]
    got = figures(listener)
    # CONNECT three times, SUBSCRIBE twice, PUBLISH three times, and SUBSCRIBE to see this.
    assert got.pop("messages/received") == "8"
    assert int(got.pop("messages/sent")) == 8
    assert int(got.pop("store/messages/bytes")) > 0
    assert got.pop("version").startswith("shoal-broker version ")
    assert got == {
        "durable": "no",
        "uptime": "65 seconds",
        "clients/total": "3",
        "clients/connected": "2",
        "clients/disconnected": "1",
        "publish/messages/received": "3",
        "publish/messages/sent": "1",
        "publish/messages/dropped": "1",
        "bytes/received": "0",
        "bytes/sent": "0",
        "subscriptions/count": "1",
        "retained messages/count": "1",
        "store/messages/count": "2",
    }


def test_what_has_changed_is_announced_at_each_interval():
    desk = Desk(sys_interval_s=10)
    listener = desk.connect("l")
    listener.subscribe("$SYS/broker/clients/#")
    listener.take()
    desk.wait(5)
    desk.connect("another")
    assert listener.take() == []
    desk.wait(5)
    assert figures(listener) == {"clients/total": "2", "clients/connected": "2"}
    desk.wait(10)
    assert listener.take() == []


def test_figures_come_as_retained_ones_to_who_is_new_and_as_news_to_who_listens():
    desk = Desk()
    listener = desk.connect("l")
    listener.subscribe("$SYS/broker/clients/total")
    assert [m.retain for m in listener.messages()] == [True]
    desk.connect("another")
    desk.wait(10)
    assert [(m.retain, int(m.qos)) for m in listener.messages()] == [(False, 0)]


def test_nothing_is_made_while_nobody_listens():
    desk = Desk()
    for pattern in ("#", "+/broker/#", "t"):
        desk.connect(pattern).subscribe(pattern)
    for _ in range(5):
        desk.wait(10)
    assert len(desk.core.router.status) == 0
    assert desk.core.counters.messages_out == 0


def test_a_wildcard_at_the_start_does_not_see_them():
    desk = Desk()
    desk.connect("l").subscribe("$SYS/#")
    everything = desk.connect("e")
    everything.subscribe("#", "+/broker/uptime")
    desk.wait(10)
    assert everything.take() == []


def test_subscribing_again_and_again_does_not_have_them_made_each_time():
    desk = Desk()
    seen = []
    for name, later_s in (("a", 0), ("b", 0.5), ("c", 0.5)):
        desk.now_s += later_s
        listener = desk.connect(name)
        listener.subscribe("$SYS/broker/clients/total")
        seen += figures(listener).values()
    assert seen == ["1", "1", "3"]


def test_a_share_gets_them_too():
    desk = Desk()
    listener = desk.connect("l")
    listener.subscribe("$share/g/$SYS/broker/uptime")
    desk.wait(10)
    assert figures(listener) == {"uptime": "0 seconds"}


def test_an_interval_of_0_switches_them_off():
    desk = Desk(sys_interval_s=0)
    listener = desk.connect("l")
    listener.subscribe("$SYS/#")
    desk.wait(100)
    assert listener.take() == []


@pytest.mark.parametrize("interval_s", [-1.0, float("inf"), float("nan")])
def test_an_interval_that_is_none_is_refused(interval_s):
    with pytest.raises(ConfigError, match="sys_interval_s"):
        BrokerConfig(sys_interval_s=interval_s)


def test_figures_do_not_count_as_retained_messages_of_clients():
    desk = Desk(max_retained_messages=1)
    listener = desk.connect("l")
    listener.subscribe("$SYS/broker/uptime")
    assert len(listener.messages()) == 1
    assert listener.publish("t", b"kept", retain=True) == 0x10
    assert len(desk.core.router.retained) == 1


def test_who_calls_itself_a_bridge_tells_its_state_and_nothing_longer():
    desk = Desk()
    client = desk.connect("edge")
    topic = "$SYS/broker/connection/edge/state"
    assert client.publish(topic, b"1", retain=True) == 0
    assert client.publish(topic, b"x" * 21, retain=True) == 0x90
    assert desk.core.router.status.get(topic).content.payload == b"1"
