"""Who wants a topic: a trie of topic filters, with shared subscriptions. Pure, knows no queues.

Filters and topics come in checked. Cost of a match is the number of filters that could still match,
whatever the number of subscriptions; a fleet in which every client has its own topics is one lookup a level.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from shoal_broker.topic_filter import SHARE_PREFIX

if TYPE_CHECKING:
    from shoal_broker.server.access import Rights


class Subscriber(Protocol):
    """A session, as far as subscriptions know it."""

    client_id: str

    @property
    def connected(self) -> bool:
        """Whether it can be sent to now."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One filter of one session with its options."""

    subscriber: Subscriber
    topic_filter: str
    """Without `$share/name/`."""
    share_name: str | None
    max_qos: int
    no_local: bool
    retain_as_published: bool
    identifiers: list[int]
    """None or one, as it goes into the packet. Shared by many: never changed."""
    rights: Rights | None = None
    """By which each message is looked at; None: all that belong to the filter may be read."""

    def may_have(self, topic: str) -> bool:
        """Whether the subscriber may read this topic, which belongs to the filter."""
        return self.rights is None or self.rights.may_read(topic)


class SharedGroup:
    """The members of one `$share/name/filter`, who take turns."""

    __slots__ = ("_last", "members", "name", "topic_filter")

    def __init__(self, name: str, topic_filter: str) -> None:
        self.name = name
        self.topic_filter = topic_filter
        self.members: dict[str, Subscription] = {}
        self._last = ""

    def candidates(self) -> list[Subscription]:
        """Members in the order they are to be asked: connected ones first, each in turn."""
        members = self.members
        if self._last in members:
            ids = list(members)
            after = ids.index(self._last) + 1
            turn = [members[client_id] for client_id in ids[after:] + ids[:after]]
        else:
            turn = list(members.values())
        turn.sort(key=lambda member: not member.subscriber.connected)
        return turn

    def chosen(self, member: Subscription) -> None:
        """Remember whose turn it was."""
        self._last = member.subscriber.client_id


_Found = tuple[list[Subscription], list[SharedGroup]]

REMEMBERED = 1 << 16
"""What a tree remembers of its answers, counted in characters of topics and in subscriptions."""


NODE_BYTES = 256
"""What a subscription costs in memory, and a level that it shares with no other one, beside their texts."""


class _Node:
    __slots__ = ("children", "groups", "subscriptions")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.groups: dict[str, SharedGroup] = {}

    @property
    def empty(self) -> bool:
        return not (self.children or self.subscriptions or self.groups)


class SubscriptionTree:
    """All subscriptions of the broker. What it found for a topic it remembers until one of them changes."""

    def __init__(self) -> None:
        self._root = _Node()
        self._count = 0
        self.size_bytes = 0
        """About what they take in memory."""
        self._found: dict[str, _Found] = {}
        self._room = REMEMBERED

    def __len__(self) -> int:
        return self._count

    def add(self, subscription: Subscription) -> bool:
        """Add it, or replace the one of the same client and filter. Returns whether it is new."""
        self._forget()
        node = self._root
        for level in subscription.topic_filter.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
                self.size_bytes += NODE_BYTES + len(level)
            node = child
        client_id = subscription.subscriber.client_id
        if subscription.share_name is None:
            held = node.subscriptions
        else:
            group = node.groups.get(subscription.share_name)
            if group is None:
                group = SharedGroup(subscription.share_name, subscription.topic_filter)
                node.groups[subscription.share_name] = group
            held = group.members
        is_new = client_id not in held
        held[client_id] = subscription
        self._count += is_new
        self.size_bytes += is_new * (NODE_BYTES + len(subscription.topic_filter))
        return is_new

    def remove(self, subscription: Subscription) -> None:
        """Remove it; nothing happens when it is not there."""
        self._forget()
        path: list[tuple[_Node, str]] = []
        node = self._root
        for level in subscription.topic_filter.split("/"):
            path.append((node, level))
            child = node.children.get(level)
            if child is None:
                return
            node = child
        client_id = subscription.subscriber.client_id
        name = subscription.share_name
        if name is None:
            removed = node.subscriptions.pop(client_id, None)
        else:
            group = node.groups.get(name)
            removed = group.members.pop(client_id, None) if group else None
            if group and not group.members:
                del node.groups[name]
        if removed is not None:
            self._count -= 1
            self.size_bytes -= NODE_BYTES + len(subscription.topic_filter)
        for parent, level in reversed(path):
            if not parent.children[level].empty:
                break
            del parent.children[level]
            self.size_bytes -= NODE_BYTES + len(level)

    def has_branch(self, level: str) -> bool:
        """Whether there is any filter that begins with `level`, shared ones included."""
        return level in self._root.children

    def group(self, name: str, topic_filter: str) -> SharedGroup:
        """The members of `$share/name/filter`; an empty group when there are none."""
        node: _Node | None = self._root
        for level in topic_filter.split("/"):
            node = None if node is None else node.children.get(level)
        found = None if node is None else node.groups.get(name)
        return SharedGroup(name, topic_filter) if found is None else found

    def match(self, topic: str) -> _Found:
        """Subscriptions (one client may have several) and shared groups that `topic` belongs to.

        Without subscriptions whose rights do not reach it; members of groups have to be asked. The lists
        are remembered: never change them.
        """
        found = self._found.get(topic)
        return self._look_up(topic) if found is None else found

    def _look_up(self, topic: str) -> _Found:
        subscriptions: list[Subscription] = []
        groups: list[SharedGroup] = []
        for node in self._matching_nodes(topic):
            subscriptions.extend(one for one in node.subscriptions.values() if one.may_have(topic))
            groups.extend(node.groups.values())
        found = subscriptions, groups
        size = len(topic) + len(subscriptions) + len(groups) + 1
        if size > self._room:
            self._forget()
        if size <= self._room:
            self._found[topic] = found
            self._room -= size
        return found

    def _forget(self) -> None:
        if self._found:
            self._found = {}
            self._room = REMEMBERED

    def _matching_nodes(self, topic: str) -> list[_Node]:
        # MQTT 5, 4.7.2: a wildcard at the start does not match topics that begin with $.
        hidden = topic.startswith("$")
        found: list[_Node] = []
        nodes = [self._root]
        for level in topic.split("/"):
            following: list[_Node] = []
            for node in nodes:
                children = node.children
                child = children.get(level)
                if child is not None:
                    following.append(child)
                if hidden:
                    continue
                child = children.get("+")
                if child is not None:
                    following.append(child)
                child = children.get("#")
                if child is not None:
                    found.append(child)
            if not following:
                return found
            nodes = following
            hidden = False
        for node in nodes:
            found.append(node)
            # `a/#` includes `a` itself.
            child = node.children.get("#")
            if child is not None:
                found.append(child)
        return found


def split_share(pattern: str) -> tuple[str | None, str]:
    """`$share/name/filter` -> (name, filter); any other filter -> (None, filter)."""
    if not pattern.startswith(SHARE_PREFIX):
        return None, pattern
    _, name, topic_filter = pattern.split("/", 2)
    return name, topic_filter


def merge_overlapping(subscriptions: list[Subscription], publisher: str) -> Iterable[Subscription]:
    """One subscription a client, with the highest QoS, every identifier, and retain as any of them has it.

    MQTT 5, 3.3.4: a message that several subscriptions of a client match is delivered once.
    """
    if len(subscriptions) == 1 and not subscriptions[0].no_local:
        return subscriptions
    heard = [
        one for one in subscriptions if not one.no_local or one.subscriber.client_id != publisher
    ]
    if len({one.subscriber.client_id for one in heard}) == len(heard):
        return heard
    merged: dict[str, Subscription] = {}
    for one in heard:
        client_id = one.subscriber.client_id
        earlier = merged.get(client_id)
        merged[client_id] = (
            one
            if earlier is None
            else replace(
                one,
                max_qos=max(one.max_qos, earlier.max_qos),
                retain_as_published=one.retain_as_published or earlier.retain_as_published,
                identifiers=earlier.identifiers + one.identifiers,
            )
        )
    return merged.values()
