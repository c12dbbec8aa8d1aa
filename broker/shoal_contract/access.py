"""Who may read and write which topic: one table, from which every broker's rules are derived.

Pure. It knows roles and topics, no broker's syntax (that is `shoal_broker.render`) and no
certificates. A topic that the table does not grant is denied.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, Flag, StrEnum, auto
from typing import Final, TypeAlias, assert_never

from shoal_contract.errors import TopicError
from shoal_contract.topics import (
    EVERY,
    Address,
    Channel,
    ChunkTopic,
    DoorTopic,
    GroupTopic,
    NodeTopic,
    Topics,
    UpdateTopic,
)

EVERY_NODE: Final = EVERY
EVERY_USER: Final = EVERY


class Role(StrEnum):
    """What a client of the broker is."""

    CONTROLLER = "controller"
    OPERATOR = "operator"
    """Commands nodes and asks models; changes neither wanted state nor releases."""
    OBSERVER = "observer"
    """Reads."""
    NODE = "node"
    """Speaks for itself only: its identity is the node level of its topics."""
    DOOR = "door"
    """Speaks JSON, to the controller alone: its identity is the user level of its topics."""


class Fleetwide(Enum):
    """The topics that belong to no node."""

    GROUP_COMMANDS = "group commands"
    CHUNKS = "chunks"
    UPDATES = "updates"


class Door(Enum):
    """The topics of the JSON door, each with the channel of a node that it stands for."""

    COMMANDS = Channel.COMMANDS
    RESULTS = Channel.RESULTS
    PRESENCE = Channel.PRESENCE
    STATE = Channel.STATE
    TELEMETRY = Channel.TELEMETRY


Family: TypeAlias = Channel | Fleetwide | Door


class Access(Flag):
    """What a role may do with a topic."""

    NONE = 0
    READ = auto()
    WRITE = auto()
    BOTH = READ | WRITE


@dataclass(frozen=True, slots=True)
class Grant:
    """What a role may do with the topics that `topic_filter` covers; `access` is never NONE."""

    family: Family
    topic_filter: str
    access: Access


_TO_NODES: Final = {
    Role.CONTROLLER: Access.BOTH,
    Role.OPERATOR: Access.BOTH,
    Role.OBSERVER: Access.READ,
    Role.NODE: Access.READ,
    Role.DOOR: Access.NONE,
}
_RELEASES: Final = {**_TO_NODES, Role.OPERATOR: Access.READ}
_FROM_NODES: Final = {
    Role.CONTROLLER: Access.READ,
    Role.OPERATOR: Access.READ,
    Role.OBSERVER: Access.READ,
    Role.NODE: Access.WRITE,
    Role.DOOR: Access.NONE,
}
# Whoever else could write into the door would command in its user's name.
_INTO_DOOR: Final = {
    Role.CONTROLLER: Access.BOTH,
    Role.OPERATOR: Access.READ,
    Role.OBSERVER: Access.READ,
    Role.NODE: Access.NONE,
    Role.DOOR: Access.WRITE,
}
_OUT_OF_DOOR: Final = {**_INTO_DOOR, Role.DOOR: Access.READ}

TABLE: Final[Mapping[Family, Mapping[Role, Access]]] = {
    Channel.COMMANDS: _TO_NODES,
    Channel.INFERENCE: _TO_NODES,
    # Every node may read the commands to every group: who is meant stands in the command.
    Fleetwide.GROUP_COMMANDS: _TO_NODES,
    Channel.WANTED: _RELEASES,
    Fleetwide.CHUNKS: _RELEASES,
    Fleetwide.UPDATES: _RELEASES,
    Channel.RESULTS: _FROM_NODES,
    Channel.PRESENCE: _FROM_NODES,
    Channel.STATE: _FROM_NODES,
    Channel.TELEMETRY: _FROM_NODES,
    Door.COMMANDS: _INTO_DOOR,
    Door.RESULTS: _OUT_OF_DOOR,
    Door.PRESENCE: _OUT_OF_DOOR,
    Door.STATE: _OUT_OF_DOOR,
    Door.TELEMETRY: _OUT_OF_DOOR,
}


def grants(
    role: Role, topics: Topics, *, node: str = EVERY_NODE, user: str = EVERY_USER
) -> list[Grant]:
    """Everything that a role may do, as filters of MQTT.

    For Role.NODE, `node` is what stands at the node level: a node id, a broker's placeholder (`%u`,
    `${username}`), or EVERY_NODE for a broker that speaks for all nodes behind it. For Role.DOOR,
    `user` is the same at the user level. The other roles may do with every node and user what they
    may do with one.
    """
    node_level = node if role is Role.NODE else EVERY_NODE
    user_level = user if role is Role.DOOR else EVERY_USER
    return [
        Grant(family, _filter(family, topics, node_level, user_level), by_role[role])
        for family, by_role in TABLE.items()
        if by_role[role]
    ]


def access(role: Role, identity: str, topic: str, topics: Topics) -> Access:
    """What `identity` in this role may do with one topic (not a filter).

    A topic that is not one of ours is nobody's: Access.NONE.
    """
    try:
        address = topics.parse(topic)
    except TopicError:
        return Access.NONE
    if role is Role.NODE and isinstance(address, NodeTopic) and address.node != identity:
        return Access.NONE
    if role is Role.DOOR and isinstance(address, DoorTopic) and address.user != identity:
        return Access.NONE
    return TABLE[family_of(address)][role]


def family_of(address: Address) -> Family:
    """The row of the table that a topic belongs to."""
    match address:
        case NodeTopic():
            return address.channel
        case GroupTopic():
            return Fleetwide.GROUP_COMMANDS
        case ChunkTopic():
            return Fleetwide.CHUNKS
        case UpdateTopic():
            return Fleetwide.UPDATES
        case DoorTopic():
            return Door(address.channel)
        case _:
            assert_never(address)


def _filter(family: Family, topics: Topics, node: str, user: str) -> str:
    match family:
        case Door():
            return topics.every_door(family.value, user=user)
        case Channel():
            # The first wildcard is the node: a root has none.
            return topics.every(family).replace("+", node, 1)
        case Fleetwide.GROUP_COMMANDS:
            return _opened(topics.group_commands("any"), -2)
        case Fleetwide.CHUNKS:
            return _opened(topics.chunk(bytes(32), 0), -2, -1)
        case Fleetwide.UPDATES:
            return _opened(topics.update("any"), -1)
        case _:
            assert_never(family)


def _opened(topic: str, *positions: int) -> str:
    levels = topic.split("/")
    for position in positions:
        levels[position] = "+"
    return "/".join(levels)
