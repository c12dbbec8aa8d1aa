"""Access rules in the core: what is refused says so, and what reaches a client is what it may read."""

import pytest
from tests.shoal_broker.server.desk import NEVER, Desk
from tests.shoal_broker.server.test_access import NODE, OTHER, PLACES, RULES, TOPICS, USER, WHO

from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    PubAckPacket,
    PublishPacket,
    PubRecPacket,
    QoS,
    Will,
)
from shoal_broker.server.access_rules import AccessRules, Policy, Rule
from shoal_broker.server.counters import Dropped
from shoal_broker.server.events import ClientDenied
from shoal_contract.access import Access, access

DENIED = 0x87
CONTROLLER = "shoal-controller"


@pytest.fixture
def desk():
    return Desk(access=RULES)


def join(desk, name, **options):
    return desk.connect("whatever it says", certificate=name, **options)


def refused(desk, name, **options):
    """The code of the CONNACK that turned it away."""
    client = desk.stranger(name)
    client.send(ConnectPacket("c", **options))
    assert client.closed
    return int(client.take_one(ConnAckPacket).reason_code)


def test_every_role_writes_and_reads_what_the_table_grants_and_nothing_else(desk):
    readers = {name: join(desk, name) for name in WHO}
    for reader in readers.values():
        reader.subscribe("#")
    for writer, role in WHO.items():
        for topic in PLACES:
            label = f"{writer} {topic}".encode()
            readers[writer].send(PublishPacket(topic, label, qos=QoS.AT_LEAST_ONCE, packet_id=1))
            came_back = readers[writer].take()
            (answer,) = (p for p in came_back if isinstance(p, PubAckPacket))
            code = int(answer.reason_code)
            allowed = Access.WRITE in access(role, writer, topic, TOPICS)
            assert (code == DENIED) is not allowed, (writer, topic)
            for name, reader in readers.items():
                packets = came_back if name == writer else reader.take()
                came = [p for p in packets if isinstance(p, PublishPacket)]
                reader.acknowledge(came)
                may = allowed and Access.READ in access(WHO[name], name, topic, TOPICS)
                assert [m.payload for m in came] == [label] * may, (writer, topic, name)


def test_a_subscription_that_could_bring_nothing_is_refused(desk):
    node = join(desk, NODE)
    assert node.subscribe(
        TOPICS.commands(NODE), TOPICS.commands(OTHER), "#", TOPICS.state(NODE), "$share/g/x/#"
    ) == [1, DENIED, 1, DENIED, DENIED]
    assert set(desk.core.router.sessions[NODE].subscriptions) == {TOPICS.commands(NODE), "#"}


def test_a_refused_qos_0_message_is_dropped_and_counted(desk):
    watcher = join(desk, CONTROLLER)
    watcher.subscribe("#")
    node = join(desk, NODE)
    node.publish_qos0(TOPICS.state(OTHER), retain=True)
    assert node.take() == []
    assert not node.closed
    assert watcher.messages() == []
    assert len(desk.core.router.retained) == 0
    assert desk.core.counters.dropped[Dropped.NOT_AUTHORIZED] == 1


def test_a_refused_qos_2_message_is_told_in_its_pubrec(desk):
    node = join(desk, NODE)
    for packet_id in (1, 2):
        message = PublishPacket(
            TOPICS.state(OTHER), b"m", qos=QoS.EXACTLY_ONCE, packet_id=packet_id, retain=True
        )
        node.send(message)
        assert int(node.take_one(PubRecPacket).reason_code) == DENIED
    assert len(desk.core.router.retained) == 0
    # The id is free: nothing was taken.
    node.send(PublishPacket(TOPICS.state(NODE), b"m", qos=QoS.EXACTLY_ONCE, packet_id=1))
    assert int(node.take_one(PubRecPacket).reason_code) < 0x80


def test_a_full_queue_behind_a_filter_that_may_not_be_read_refuses_no_qos_2_message():
    desk = Desk(access=RULES, max_queued_messages=1)
    other = join(desk, OTHER, session_expiry_interval=NEVER)
    other.subscribe("#", "$share/g/#")
    other.drop()
    controller = join(desk, CONTROLLER)
    controller.publish(TOPICS.commands(OTHER))
    controller.send(PublishPacket(TOPICS.commands(NODE), b"m", qos=QoS.EXACTLY_ONCE, packet_id=1))
    assert int(controller.take_one(PubRecPacket).reason_code) < 0x80


def test_the_first_denial_of_a_connection_is_to_be_logged(desk):
    node = join(desk, NODE)
    desk.core.take_events()
    node.publish(TOPICS.state(OTHER))
    node.publish(TOPICS.wanted(OTHER))
    node.subscribe(TOPICS.state(OTHER))
    assert desk.core.take_events() == [ClientDenied(NODE, NODE, "publish", TOPICS.state(OTHER))]
    other = join(desk, OTHER)
    desk.core.take_events()
    other.subscribe(TOPICS.commands(NODE))
    assert desk.core.take_events() == [
        ClientDenied(OTHER, OTHER, "subscribe", TOPICS.commands(NODE))
    ]


def test_a_topic_alias_does_not_get_around_the_rules(desk):
    node = join(desk, NODE)
    assert node.publish(TOPICS.state(OTHER), topic_alias=1) == DENIED
    assert node.publish("", topic_alias=1) == DENIED
    assert node.publish(TOPICS.state(NODE), topic_alias=1) != DENIED
    assert node.publish("", topic_alias=1) != DENIED


def test_retained_messages_are_filtered_like_live_ones(desk):
    controller = join(desk, CONTROLLER)
    for node in (NODE, OTHER):
        controller.publish(TOPICS.wanted(node), node.encode(), retain=True)
    node = join(desk, NODE)
    node.subscribe(f"{TOPICS.root}/n/+/w")
    assert node.payloads() == [NODE.encode()]


def test_a_message_goes_to_a_member_of_a_share_that_may_read_it(desk):
    thief, member = join(desk, OTHER), join(desk, CONTROLLER)
    everything = f"$share/hub/{TOPICS.root}/#"
    assert thief.subscribe(everything) == member.subscribe(everything) == [1]
    node = join(desk, NODE)
    for n in range(6):
        assert node.publish(TOPICS.results(NODE), bytes([n])) == 0
    assert member.payloads() == [bytes([n]) for n in range(6)]
    assert thief.payloads() == []
    member.drop()
    assert node.publish(TOPICS.results(NODE), b"nobody") == 0
    assert thief.payloads() == []


@pytest.mark.parametrize("qos", [0, 1])
def test_a_will_that_may_not_be_published_is_refused_with_its_connect(desk, qos):
    will = Will(TOPICS.presence(OTHER), payload=b"gone", qos=QoS(qos))
    assert refused(desk, NODE, will=will) == DENIED
    assert NODE not in desk.core.router.sessions


def test_a_will_that_is_refused_does_not_end_the_connection_that_is_there(desk):
    node = join(desk, NODE)
    refused(desk, NODE, will=Will(TOPICS.presence(OTHER)))
    assert not node.closed


def test_the_client_id_is_the_identity_whatever_is_said(desk):
    first = desk.connect(OTHER, certificate=NODE, session_expiry_interval=NEVER)
    assert first.welcome.assigned_client_id is None
    assert set(desk.core.router.sessions) == {NODE}
    second = desk.connect("", certificate=NODE)
    assert second.welcome.assigned_client_id == NODE
    assert second.welcome.session_present
    assert first.goodbye_code() == 0x8E


def test_a_name_that_is_the_client_id_is_not_one_of_the_brokers_own(desk):
    assert refused(desk, "$bridge/upstream") == 0x85


def test_without_the_table_a_client_id_is_its_first_users(desk):
    desk = Desk(access=AccessRules(policy=Policy.OPEN))
    desk.connect("c", certificate="u", session_expiry_interval=NEVER).drop()
    thief = desk.stranger("v")
    thief.send(ConnectPacket("c"))
    assert int(thief.take_one(ConnAckPacket).reason_code) == 0x85
    nobody = desk.stranger()
    nobody.send(ConnectPacket("c"))
    assert int(nobody.take_one(ConnAckPacket).reason_code) == 0x85
    assert desk.connect("c", certificate="u").welcome.session_present


def test_an_anonymous_session_is_taken_over_without_what_may_not_be_read():
    desk = Desk(access=RULES)
    nobody = desk.connect(NODE, session_expiry_interval=NEVER)
    nobody.subscribe("#")
    controller = join(desk, CONTROLLER)
    controller.publish(TOPICS.commands(OTHER), b"theirs, sent")
    nobody.drop()
    controller.publish(TOPICS.commands(OTHER), b"theirs")
    controller.publish(TOPICS.commands(NODE), b"mine")
    node = desk.stranger(NODE)
    node.send(ConnectPacket(NODE))
    assert node.payloads() == [b"mine"]
    controller.publish(TOPICS.commands(OTHER), b"theirs")
    assert node.payloads() == []


def test_a_certificate_without_one_name_is_refused(desk):
    assert refused(desk, "") == 0x86


def test_an_anonymous_listener_has_no_rules(desk):
    nobody = desk.connect("nobody")
    assert nobody.subscribe("any/#") == [1]
    nobody.publish_qos0("any/topic")
    assert nobody.payloads() == [b"m"]
    assert nobody.publish(TOPICS.commands(NODE)) != DENIED


def test_other_rules_hold_from_the_moment_they_are_applied():
    desk = Desk(
        access=AccessRules(policy=Policy.RULES, rule=(Rule(topic="#", access="readwrite"),))
    )
    reader = desk.connect("r", certificate="u", session_expiry_interval=NEVER)
    reader.subscribe("a/#", "b/#")
    writer = desk.connect("w", certificate="v", will=Will("a/will", payload=b"will"))
    writer.publish("a/1", b"sent")
    reader.acknowledge(reader.messages())
    reader.stalled = True
    writer.publish_qos0("a/1", b"written")
    writer.publish("a/1", b"waits")
    writer.publish_qos0("a/1", b"waits, too")
    writer.publish("b/1", b"may be read")
    desk.core.apply_access(
        AccessRules(policy=Policy.RULES, rule=(Rule(topic="b/#", access="readwrite"),))
    )
    reader.resume()
    assert reader.payloads() == [b"written", b"may be read"]
    assert writer.publish("a/1") == DENIED
    assert reader.subscribe("a/#") == [DENIED]
    writer.drop()
    assert reader.payloads() == []
    assert desk.core.counters.dropped[Dropped.NOT_AUTHORIZED] == 4


def test_a_retained_message_that_waits_when_the_rules_change_is_not_sent():
    desk = Desk(access=AccessRules(policy=Policy.OPEN), max_in_flight=1)
    writer = join(desk, "v")
    for topic in ("a/1", "a/2", "b/1"):
        writer.publish(topic, topic.encode(), retain=True)
    reader = desk.connect("r", certificate="u")
    reader.subscribe("#")
    first = reader.messages()
    desk.core.apply_access(
        AccessRules(policy=Policy.RULES, rule=(Rule(topic="b/#", access="read"),))
    )
    reader.acknowledge(first)
    assert reader.payloads() == [b"b/1"]


def test_of_the_door_each_user_gets_its_own(desk):
    mine, others = join(desk, USER), join(desk, "nodered")
    assert mine.subscribe("#") == others.subscribe("#") == [1]
    topic = f"{TOPICS.root}/j/{USER}/n/{NODE}/r"
    join(desk, CONTROLLER).publish(topic, b"done")
    assert (mine.payloads(), others.payloads()) == ([b"done"], [])
