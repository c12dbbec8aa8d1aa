"""Every topic of Shoal, built and parsed in one place; no topic literal stands anywhere else.

Topics are short because links are metered, and of fixed arity so that one `+` reads a role.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shoal_contract.errors import TopicError

_NODE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LEAF = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ROOT = re.compile(r"[A-Za-z0-9_-]{1,32}(?:/[A-Za-z0-9_-]{1,32}){0,3}")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MAX_CHUNKS = 1 << 20

EVERY: Final = "+"
"""Stands for one level of any name in a filter."""


EVERYBODY = "all"
"""The group that every node belongs to."""


class Channel(StrEnum):
    """The last level of a node's topic: what flows there."""

    COMMANDS = "c"
    RESULTS = "r"
    PRESENCE = "p"
    STATE = "s"
    WANTED = "w"
    TELEMETRY = "t"
    INFERENCE = "i"


_LEAFED = frozenset({Channel.TELEMETRY, Channel.INFERENCE})
DOOR_CHANNELS: Final = (
    Channel.COMMANDS,
    Channel.RESULTS,
    Channel.PRESENCE,
    Channel.STATE,
    Channel.TELEMETRY,
)
"""The channels of a node that stand in the JSON door, too."""


@dataclass(frozen=True, slots=True)
class NodeTopic:
    """`<root>/n/<node>/<channel>[/<leaf>]`; the leaf is the stream or the model."""

    node: str
    channel: Channel
    leaf: str | None = None


@dataclass(frozen=True, slots=True)
class GroupTopic:
    """`<root>/g/<group>/c`: commands to every node of a group."""

    group: str


@dataclass(frozen=True, slots=True)
class ChunkTopic:
    """`<root>/b/<digest>/<index>`: one chunk of a content-addressed blob."""

    digest: bytes
    index: int


@dataclass(frozen=True, slots=True)
class UpdateTopic:
    """`<root>/u/<name>`: update metadata."""

    name: str


@dataclass(frozen=True, slots=True)
class DoorTopic:
    """`<root>/j/<user>/n/<node>/<channel>[/<leaf>]`: what a node's topic is in JSON, for one user.

    A subscriber is not told who published, but the broker lets only `user` write here.
    """

    user: str
    node: str
    channel: Channel
    leaf: str | None = None


Address = NodeTopic | GroupTopic | ChunkTopic | UpdateTopic | DoorTopic


def check_node_id(node: str) -> str:
    """The node id itself, or TopicError. Client id, certificate CN and topic level in one."""
    if not _NODE.fullmatch(node):
        raise TopicError(
            f"{node!r} is not a node id: 1 to 63 of a-z, 0-9 and '-', no '-' at either end"
        )
    return node


def check_leaf(name: str) -> str:
    """A stream, model or group name that may stand in a topic, or TopicError."""
    if not _LEAF.fullmatch(name):
        raise TopicError(f"{name!r} is not a name: 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'")
    return name


def check_user(user: str) -> str:
    """The name of a client of the broker that may stand in a topic, or TopicError."""
    if not _USER.fullmatch(user):
        raise TopicError(
            f"{user!r} is not a user: 1 to 64 of A-Z, a-z, 0-9, '.', '_', '@' and '-', "
            "a letter or digit first"
        )
    return user


@dataclass(frozen=True, slots=True)
class Topics:
    """Builds and parses the topics below one root.

    Args:
        root: one to four levels of letters, digits, '_' and '-'.
    """

    root: str = "shoal"

    def __post_init__(self) -> None:
        if not _ROOT.fullmatch(self.root):
            raise TopicError(f"{self.root!r} cannot be the topic root")

    def commands(self, node: str) -> str:
        """Commands to a node."""
        return self._node(node, Channel.COMMANDS)

    def results(self, node: str) -> str:
        """Acknowledgements and results of a node."""
        return self._node(node, Channel.RESULTS)

    def presence(self, node: str) -> str:
        """Presence of a node: retained, also its last will."""
        return self._node(node, Channel.PRESENCE)

    def state(self, node: str) -> str:
        """Reported state of a node: retained."""
        return self._node(node, Channel.STATE)

    def wanted(self, node: str) -> str:
        """Wanted state of a node: retained, written by the controller."""
        return self._node(node, Channel.WANTED)

    def telemetry(self, node: str, stream: str) -> str:
        """Telemetry and inference results of one stream of a node."""
        return f"{self._node(node, Channel.TELEMETRY)}/{check_leaf(stream)}"

    def inference(self, node: str, model: str) -> str:
        """Inference requests to one model of a node (MQTT 5 response topic)."""
        return f"{self._node(node, Channel.INFERENCE)}/{check_leaf(model)}"

    def group_commands(self, group: str) -> str:
        """Commands to every node of a group."""
        return f"{self.root}/g/{check_leaf(group)}/{Channel.COMMANDS}"

    def chunk(self, digest: bytes, index: int) -> str:
        """One chunk of a blob, named by the blob's sha256."""
        return f"{self.root}/b/{digest.hex()}/{index}"

    def update(self, name: str) -> str:
        """Update metadata."""
        return f"{self.root}/u/{check_leaf(name)}"

    def door(self, user: str, node: str, channel: Channel, leaf: str | None = None) -> str:
        """The JSON door's topic for one of DOOR_CHANNELS of a node; the leaf as the channel has it."""
        if channel not in DOOR_CHANNELS or (leaf is None) is (channel in _LEAFED):
            raise TopicError(f"{channel.value!r} with leaf {leaf!r} is no topic of the JSON door")
        tail = "" if leaf is None else f"/{check_leaf(leaf)}"
        return f"{self.root}/j/{check_user(user)}/n/{check_node_id(node)}/{channel}{tail}"

    def every(self, channel: Channel) -> str:
        """The filter that reads one channel of every node (all leaves, where it has them)."""
        tail = "/+" if channel in _LEAFED else ""
        return f"{self.root}/n/+/{channel}{tail}"

    def every_door(self, channel: Channel, *, user: str = EVERY) -> str:
        """The filter that reads one channel of every node in the JSON door of one user, or of all.

        `user` may be a broker's placeholder; it is put in as it is.
        """
        tail = "/+" if channel in _LEAFED else ""
        return f"{self.root}/j/{user}/n/+/{channel}{tail}"

    def every_model(self, node: str) -> str:
        """The filter for inference requests to any model of one node."""
        return f"{self._node(node, Channel.INFERENCE)}/+"

    def every_chunk(self, digest: bytes) -> str:
        """The filter for all chunks of one blob."""
        return f"{self.root}/b/{digest.hex()}/+"

    def shared(self, hub: str, topic_filter: str) -> str:
        """The same filter, shared between the controllers named `hub`."""
        return f"$share/{check_leaf(hub)}/{topic_filter}"

    def parse(self, topic: str) -> Address:
        """What a topic says.

        Raises:
            TopicError: it is not one of ours.
        """
        prefix = self.root + "/"
        if not topic.startswith(prefix):
            raise TopicError(f"{topic[:80]!r} is not below {self.root!r}")
        match topic[len(prefix) :].split("/"):
            case ["n", node, channel] if channel in _PLAIN_NAMES:
                return NodeTopic(check_node_id(node), Channel(channel))
            case ["n", node, channel, leaf] if channel in _LEAFED_NAMES:
                return NodeTopic(check_node_id(node), Channel(channel), check_leaf(leaf))
            case ["g", group, Channel.COMMANDS]:
                return GroupTopic(check_leaf(group))
            case ["b", digest, index] if _DIGEST.fullmatch(digest) and _is_index(index):
                return ChunkTopic(bytes.fromhex(digest), int(index))
            case ["u", name]:
                return UpdateTopic(check_leaf(name))
            case ["j", user, "n", node, channel] if channel in _DOOR_PLAIN_NAMES:
                return DoorTopic(check_user(user), check_node_id(node), Channel(channel))
            case ["j", user, "n", node, Channel.TELEMETRY, leaf]:
                return DoorTopic(
                    check_user(user), check_node_id(node), Channel.TELEMETRY, check_leaf(leaf)
                )
        raise TopicError(f"{topic[:80]!r} is not a topic of Shoal")

    def _node(self, node: str, channel: Channel) -> str:
        return f"{self.root}/n/{check_node_id(node)}/{channel}"


_LEAFED_NAMES = frozenset(channel.value for channel in _LEAFED)
_PLAIN_NAMES = frozenset(channel.value for channel in Channel) - _LEAFED_NAMES
_DOOR_PLAIN_NAMES = _PLAIN_NAMES & {channel.value for channel in DOOR_CHANNELS}


def _is_index(text: str) -> bool:
    return len(text) <= 7 and text.isascii() and text.isdigit() and int(text) < _MAX_CHUNKS  # noqa: PLR2004 - digits of the limit
