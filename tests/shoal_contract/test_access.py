"""The table of who may do what: complete, and the same in filters and in single decisions."""

from typing import get_args

import pytest

from shoal_contract.access import (
    EVERY_NODE,
    EVERY_USER,
    TABLE,
    Access,
    Door,
    Fleetwide,
    Role,
    access,
    family_of,
    grants,
)
from shoal_contract.topics import Address, Channel, Topics

TOPICS = Topics("acme/plant-1")
DIGEST = bytes(range(32))
TOPIC_OF = {
    Channel.COMMANDS: TOPICS.commands("a"),
    Channel.RESULTS: TOPICS.results("a"),
    Channel.PRESENCE: TOPICS.presence("a"),
    Channel.STATE: TOPICS.state("a"),
    Channel.WANTED: TOPICS.wanted("a"),
    Channel.TELEMETRY: TOPICS.telemetry("a", "readings"),
    Channel.INFERENCE: TOPICS.inference("a", "digits"),
    Fleetwide.GROUP_COMMANDS: TOPICS.group_commands("north"),
    Fleetwide.CHUNKS: TOPICS.chunk(DIGEST, 7),
    Fleetwide.UPDATES: TOPICS.update("timestamp"),
    Door.COMMANDS: TOPICS.door("ha", "a", Channel.COMMANDS),
    Door.RESULTS: TOPICS.door("ha", "a", Channel.RESULTS),
    Door.PRESENCE: TOPICS.door("ha", "a", Channel.PRESENCE),
    Door.STATE: TOPICS.door("ha", "a", Channel.STATE),
    Door.TELEMETRY: TOPICS.door("ha", "a", Channel.TELEMETRY, "readings"),
}
NODES_OWN = [family for family in TOPIC_OF if not isinstance(family, Door)]


def covers(topic_filter, topic):
    levels, wanted = topic.split("/"), topic_filter.split("/")
    return len(levels) == len(wanted) and all(
        w in ("+", level) for level, w in zip(levels, wanted, strict=True)
    )


def test_every_kind_of_topic_has_a_row_and_every_role_a_column():
    assert set(TABLE) == {*Channel, *Fleetwide, *Door} == set(TOPIC_OF)
    assert all(set(row) == set(Role) for row in TABLE.values())
    assert {type(TOPICS.parse(topic)) for topic in TOPIC_OF.values()} == set(get_args(Address))
    assert all(family_of(TOPICS.parse(topic)) is family for family, topic in TOPIC_OF.items())


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.DOOR])
@pytest.mark.parametrize("node", ["a", "b", EVERY_NODE])
def test_filters_grant_what_single_decisions_allow(role, node):
    granted = grants(role, TOPICS, node=node)
    assert all(grant.access for grant in granted)
    for family, topic in TOPIC_OF.items():
        found = Access.NONE
        for grant in granted:
            if covers(grant.topic_filter, topic):
                assert grant.family is family
                found |= grant.access
        expected = access(role, "a" if node == EVERY_NODE else node, topic, TOPICS)
        assert found is expected, (role, topic)


@pytest.mark.parametrize("family", Channel)
def test_a_node_has_nothing_to_do_with_another_ones_topics(family):
    assert access(Role.NODE, "b", TOPIC_OF[family], TOPICS) is Access.NONE


@pytest.mark.parametrize("user", ["ha", "other", EVERY_USER])
def test_filters_of_the_door_grant_what_single_decisions_allow(user):
    granted = grants(Role.DOOR, TOPICS, user=user)
    assert {grant.family for grant in granted} == set(Door)
    for topic in TOPIC_OF.values():
        found = Access.NONE
        for grant in granted:
            if covers(grant.topic_filter, topic):
                found |= grant.access
        assert found is access(Role.DOOR, "ha" if user == EVERY_USER else user, topic, TOPICS)


def test_a_client_of_the_door_writes_its_own_commands_and_reads_its_own_answers():
    allowed = {family: access(Role.DOOR, "ha", topic, TOPICS) for family, topic in TOPIC_OF.items()}
    assert {family for family, right in allowed.items() if right is Access.WRITE} == {Door.COMMANDS}
    assert {family for family, right in allowed.items() if right is Access.READ} == (
        set(Door) - {Door.COMMANDS}
    )
    assert not any(access(Role.DOOR, "other", topic, TOPICS) for topic in TOPIC_OF.values())


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.OBSERVER, Role.NODE])
def test_nobody_but_its_user_and_the_controller_writes_into_the_door(role):
    assert not any(Access.WRITE in access(role, "ha", TOPIC_OF[family], TOPICS) for family in Door)


@pytest.mark.parametrize("family", NODES_OWN)
def test_what_a_node_reads_it_cannot_write(family):
    assert access(Role.NODE, "a", TOPIC_OF[family], TOPICS) in (Access.READ, Access.WRITE)


@pytest.mark.parametrize("family", TOPIC_OF)
def test_an_observer_writes_nothing(family):
    assert access(Role.OBSERVER, "o", TOPIC_OF[family], TOPICS) is Access.READ


def test_an_operator_commands_but_changes_no_release():
    writes = {
        f for f, t in TOPIC_OF.items() if Access.WRITE in access(Role.OPERATOR, "o", t, TOPICS)
    }
    assert writes == {Channel.COMMANDS, Channel.INFERENCE, Fleetwide.GROUP_COMMANDS}


@pytest.mark.parametrize("role", Role)
def test_a_topic_of_nobody_is_denied(role):
    for topic in ("acme/plant-1", "acme/plant-1/n/a/x", "other/n/a/c", "$SYS/broker/uptime", ""):
        assert access(role, "a", topic, TOPICS) is Access.NONE


def test_a_placeholder_stands_at_the_node_level_only():
    filters = {grant.family: grant.topic_filter for grant in grants(Role.NODE, TOPICS, node="%u")}
    assert filters[Channel.TELEMETRY] == "acme/plant-1/n/%u/t/+"
    assert filters[Fleetwide.CHUNKS] == "acme/plant-1/b/+/+"
    assert filters[Fleetwide.GROUP_COMMANDS] == "acme/plant-1/g/+/c"
    assert filters[Fleetwide.UPDATES] == "acme/plant-1/u/+"
