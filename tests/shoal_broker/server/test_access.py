"""Compiled access rules say what the table says, and what filters have in common is what topics show."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_broker.errors import ConfigError
from shoal_broker.server.access import AccessPolicy, Reading, compiled
from shoal_broker.server.access_rules import AccessRules, Policy, Rule, Site
from shoal_broker.topic_filter import matches
from shoal_contract.access import TABLE, Access, Door, Fleetwide, Role, access
from shoal_contract.topics import Channel, Topics

TOPICS = Topics("acme/plant-1")
NODE, OTHER, USER = "node-a", "node-b", "homeassistant"
WHO = {
    "shoal-controller": Role.CONTROLLER,
    "alice": Role.OPERATOR,
    "grafana": Role.OBSERVER,
    USER: Role.DOOR,
    NODE: Role.NODE,
}
RULES = AccessRules(
    root=TOPICS.root, operators=("alice",), observers=("grafana",), doors=(USER, "nodered")
)
PLACES = [
    TOPICS.group_commands("north"),
    TOPICS.chunk(bytes(32), 7),
    TOPICS.update("timestamp"),
    *(
        f"{TOPICS.root}/n/{node}/{channel}{leaf}"
        for node in (NODE, OTHER)
        for channel in Channel
        for leaf in (["/x"] if channel in (Channel.TELEMETRY, Channel.INFERENCE) else [""])
    ),
    *(
        TOPICS.door(user, NODE, door.value, "x" if door is Door.TELEMETRY else None)
        for user in (USER, "nodered")
        for door in Door
    ),
]


def test_the_places_are_every_row_of_the_table():
    assert len(PLACES) == 3 + 2 * len(Channel) + 2 * len(Door)
    assert len(TABLE) == len(Fleetwide) + len(Channel) + len(Door)


@pytest.mark.parametrize("topic", PLACES)
@pytest.mark.parametrize("identity", WHO)
def test_rights_are_those_of_the_table(identity, topic):
    rights = AccessPolicy(RULES).rights(identity)
    granted = access(WHO[identity], identity, topic, TOPICS)
    for _ in range(2):
        assert rights.may_write(topic) is (Access.WRITE in granted)
    assert rights.may_read(topic) is (Access.READ in granted)
    assert rights.reading(topic) is (Reading.ALL if Access.READ in granted else Reading.NOTHING)


@pytest.mark.parametrize("topic", ["", "acme", "acme/plant-1", "acme/plant-1/n/node-a", "x/y", "$SYS/x", "acme/plant-1/n/node-a/c/x"])  # fmt: skip
@pytest.mark.parametrize("identity", WHO)
def test_what_is_not_in_the_table_is_denied(identity, topic):
    rights = AccessPolicy(RULES).rights(identity)
    assert not rights.may_write(topic)
    assert not rights.may_read(topic)


@pytest.mark.parametrize(
    ("topic_filter", "reading"),
    [
        (f"{TOPICS.root}/n/{NODE}/c", Reading.ALL),
        (f"{TOPICS.root}/n/{NODE}/i/+", Reading.ALL),
        (f"{TOPICS.root}/g/+/c", Reading.ALL),
        (f"{TOPICS.root}/b/+/+", Reading.ALL),
        ("#", Reading.SOME),
        (f"{TOPICS.root}/#", Reading.SOME),
        (f"{TOPICS.root}/n/+/c", Reading.SOME),
        (f"{TOPICS.root}/n/{NODE}/#", Reading.SOME),
        (f"{TOPICS.root}/n/{NODE}/i/#", Reading.SOME),
        ("+/+/+/+/+", Reading.SOME),
        (f"{TOPICS.root}/n/{OTHER}/c", Reading.NOTHING),
        (f"{TOPICS.root}/n/{OTHER}/#", Reading.NOTHING),
        (f"{TOPICS.root}/n/{NODE}/s", Reading.NOTHING),
        (f"{TOPICS.root}/n/+/r", Reading.NOTHING),
        ("other/#", Reading.NOTHING),
        ("+", Reading.NOTHING),
        ("$SYS/#", Reading.NOTHING),
    ],
)
def test_a_nodes_filter_is_granted_as_far_as_something_of_it_may_be_read(topic_filter, reading):
    assert AccessPolicy(RULES).rights(NODE).reading(topic_filter) is reading


@pytest.mark.parametrize("identity", ["+", "#", "a/b", "", "%u"])
def test_a_name_that_is_no_level_has_no_topics_of_its_own(identity):
    rights = AccessPolicy(RULES).rights(identity)
    for node in (NODE, "+", "#", "%u"):
        assert rights.may_write(f"{TOPICS.root}/n/{node}/s") is (identity == node == "%u")
    assert rights.reading(f"{TOPICS.root}/n/+/c") is not Reading.ALL
    assert not rights.may_read(TOPICS.commands(NODE))


def test_a_site_speaks_for_the_nodes_behind_it():
    rules = AccessRules(site=(Site(name="berlin", nodes=(NODE,)), Site(name="paris")))
    topics = Topics()
    berlin, paris = (AccessPolicy(rules).rights(name) for name in ("berlin", "paris"))
    assert berlin.may_write(topics.state(NODE))
    assert not berlin.may_write(topics.state(OTHER))
    assert not berlin.may_write(topics.state("berlin"))
    assert not berlin.may_write(topics.commands(NODE))
    assert berlin.may_read(topics.commands(NODE))
    assert paris.may_write(topics.state(OTHER))
    assert paris.reading(topics.every(Channel.COMMANDS)) is Reading.ALL


def test_rules_add_to_the_table_or_stand_alone():
    rules = (
        Rule(topic="home/%u/#", access="readwrite"),
        Rule(topic="$SYS/#", access="read", user="grafana"),
    )
    for policy in (Policy.TABLE, Policy.RULES):
        made = AccessPolicy(AccessRules(policy=policy, rule=rules))
        node, grafana = made.rights(NODE), made.rights("grafana")
        assert node.may_write(f"home/{NODE}/lamp")
        assert node.may_read(f"home/{NODE}")
        assert not node.may_write(f"home/{OTHER}/lamp")
        assert not node.may_read("$SYS/broker/uptime")
        assert grafana.may_read("$SYS/broker/uptime")
        assert not grafana.may_write("$SYS/broker/uptime")
        assert node.may_write(Topics().state(NODE)) is (policy is Policy.TABLE)


def test_an_open_policy_is_none_at_all():
    assert compiled(AccessRules(policy=Policy.OPEN)) is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"root": "a b"}, "topic root"),
        ({"controllers": ("x",), "doors": ("x",)}, "x is named twice"),
        ({"site": (Site(name="s", nodes=("No Node",)),)}, "not a node id"),
        ({"rule": (Rule(topic="a/#/b", access="read"),)}, "'#' stands alone"),
        ({"rule": (Rule(topic="$share/g/a", access="read"),)}, "leave out"),
        ({"rule": (Rule(topic="a/x%u", access="read"),)}, "a level of its own"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(wrong, told):
    with pytest.raises(ConfigError, match=told):
        AccessRules(**wrong)


def test_what_a_client_can_make_its_rights_remember_is_bounded():
    rights = AccessPolicy(AccessRules()).rights(NODE)
    for n in range(1000):
        assert rights.may_write(f"shoal/n/{NODE}/t/{n}")
    assert not rights.may_write("x" * 60_000)
    assert len(rights._known) <= 64
    assert max(map(len, rights._known)) <= 256


levels = st.sampled_from(["a", "b", "$x"])
topics_of = st.lists(levels, min_size=1, max_size=4).map("/".join)
filters_of = st.builds(
    lambda head, tail: "/".join([*head, *tail]) or "#",
    st.lists(st.one_of(levels, st.just("+")), max_size=3),
    st.sampled_from([[], ["#"]]),
)


@settings(max_examples=400)
@given(granted=filters_of, asked=filters_of, topic=topics_of)
def test_a_filter_is_judged_as_its_topics_would_be(granted, asked, topic):
    rules = AccessRules(policy=Policy.RULES, rule=(Rule(topic=granted, access="read"),))
    rights = AccessPolicy(rules).rights("u")
    assert rights.may_read(topic) == matches(granted, topic)
    match rights.reading(asked):
        case Reading.ALL:
            assert not matches(asked, topic) or matches(granted, topic)
        case Reading.NOTHING:
            assert not (matches(asked, topic) and matches(granted, topic))
