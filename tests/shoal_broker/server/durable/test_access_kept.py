"""Access rules after a power cut: sessions are still whose they were, and held to the rules of now."""

from tests.shoal_broker.server.desk import NEVER
from tests.shoal_broker.server.durable.durable_desk import DurableDesk

from shoal_broker.codec import ConnAckPacket, ConnectPacket, Will
from shoal_broker.server.access_rules import AccessRules, Policy, Rule

A_AND_B = AccessRules(
    policy=Policy.RULES,
    rule=tuple(Rule(topic=topic, access="readwrite") for topic in ("a/#", "b/#")),
)
ONLY_B = AccessRules(policy=Policy.RULES, rule=(Rule(topic="b/#", access="readwrite"),))


def come_back(desk, client_id, certificate):
    client = desk.stranger(certificate)
    client.send(ConnectPacket(client_id, session_expiry_interval=NEVER))
    client.welcome = client.reader.next_packet()
    assert isinstance(client.welcome, ConnAckPacket)
    return client


def with_an_absent_reader():
    desk = DurableDesk(access=A_AND_B)
    reader = desk.connect("r", certificate="u", session_expiry_interval=NEVER)
    reader.subscribe("#")
    reader.drop()
    writer = desk.connect("w", certificate="v")
    writer.publish("a/1", b"a before")
    writer.publish("b/1", b"b before")
    desk.commit()
    return desk


def test_a_session_that_was_loaded_gets_only_what_it_may_read():
    after = with_an_absent_reader().after_power_cut(access=A_AND_B)
    admin = after.connect("anonymous")
    admin.publish("a/1", b"a after")
    admin.publish("c/1", b"c after")
    reader = come_back(after, "r", "u")
    assert reader.welcome.session_present
    assert reader.payloads() == [b"a before", b"b before", b"a after"]


def test_what_waits_is_held_to_the_rules_of_the_new_start():
    desk = with_an_absent_reader()
    after = desk.after_power_cut(access=ONLY_B)
    assert come_back(after, "r", "u").payloads() == [b"b before"]
    after.commit()
    again = after.after_power_cut(access=A_AND_B)
    assert [m.payload for m in come_back(again, "r", "u").messages()] == [b"b before"]


def test_a_session_is_still_its_users():
    after = with_an_absent_reader().after_power_cut(access=A_AND_B)
    assert int(come_back(after, "r", "v").welcome.reason_code) == 0x85


def test_a_will_that_may_not_be_published_any_more_is_not():
    desk = DurableDesk(access=A_AND_B)
    desk.connect(
        "w", certificate="v", session_expiry_interval=NEVER, will=Will("a/w", payload=b"will")
    )
    desk.commit()
    after = desk.after_power_cut(access=ONLY_B)
    watcher = after.connect("anonymous")
    watcher.subscribe("#")
    after.wait(60)
    assert watcher.payloads() == []
    allowed = desk.after_power_cut(access=A_AND_B)
    watcher = allowed.connect("anonymous")
    watcher.subscribe("#")
    allowed.wait(60)
    assert watcher.payloads() == [b"will"]
