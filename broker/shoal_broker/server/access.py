"""Which topics a client may use: access rules compiled, so that a message costs a look-up. Pure.

Rights are those of an identity, a user name or the CN of a certificate; sessions without one have no
rights object and no limits. The rules for Shoal's own topics come from `shoal_contract.access`, as those
of a rendered Mosquitto do. What is not granted is denied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum, auto
from typing import Final

from shoal_broker.server.access_rules import EVERYBODY, OWN, AccessRules, Policy
from shoal_contract.access import EVERY_NODE, Access, Grant, Role, grants
from shoal_contract.topics import Topics

_WORDS: Final = {"read": Access.READ, "write": Access.WRITE, "readwrite": Access.BOTH}
_MAX_KNOWN, _LONGEST_KNOWN = 64, 256
"""Topics that rights remember: what a client can make them hold is bounded."""


class Reading(Enum):
    """How much of what belongs to a topic filter may be read."""

    NOTHING = auto()
    SOME = auto()
    """Each message is looked at when it is delivered."""
    ALL = auto()


Levels = tuple[str, ...]


class _Grants:
    """Filters for one kind of access, shared by everybody they are granted to."""

    __slots__ = ("_by_depth", "_deep")

    def __init__(self, filters: Iterable[str]) -> None:
        self._by_depth: dict[int, list[Levels]] = {}
        self._deep: list[Levels] = []
        """Those that end with `#`."""
        for topic_filter in dict.fromkeys(filters):
            levels = tuple(topic_filter.split("/"))
            if levels[-1] == "#":
                self._deep.append(levels)
            else:
                self._by_depth.setdefault(len(levels), []).append(levels)

    def __iter__(self) -> Iterator[Levels]:
        for same_depth in self._by_depth.values():
            yield from same_depth
        yield from self._deep

    def match(self, topic: str, own: str | None) -> bool:
        levels = topic.split("/")
        for granted in self._by_depth.get(len(levels), ()):
            if _covers(granted, levels, own):
                return True
        return any(_covers(granted, levels, own) for granted in self._deep)


class Rights:
    """What one identity may do."""

    __slots__ = (
        "_known",
        "_own",
        "_readable",
        "_writable",
        "identity",
        "names_client",
        "was_denied",
    )

    def __init__(
        self, identity: str, readable: _Grants, writable: _Grants, *, names_client: bool
    ) -> None:
        self.identity = identity
        self.was_denied = False
        """Whether this was said in the log: once is enough."""
        self.names_client = names_client
        """The identity is the client id, too: else a node could end another one's session."""
        # A name that is no single level, or a wildcard, stands for no topic of its own.
        self._own = None if not identity or any(c in identity for c in "+#/") else identity
        self._readable = readable
        self._writable = writable
        self._known: dict[str, bool] = {}
        """Topics written to lately, and whether they may be."""

    def may_write(self, topic: str) -> bool:
        """Whether the identity may publish there."""
        known = self._known.get(topic)
        if known is not None:
            return known
        allowed = self._writable.match(topic, self._own)
        if len(topic) <= _LONGEST_KNOWN:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[topic] = allowed
        return allowed

    def may_read(self, topic: str) -> bool:
        """Whether a message of this topic may be delivered to the identity."""
        return self._readable.match(topic, self._own)

    def reading(self, topic_filter: str) -> Reading:
        """What a subscription (without its `$share/name/`) would bring.

        ALL where one rule grants the whole filter, so that no message need be looked at.
        """
        levels = topic_filter.split("/")
        found = Reading.NOTHING
        for granted in self._readable:
            if _covers(granted, levels, self._own):
                return Reading.ALL
            if _overlap(granted, levels, self._own):
                found = Reading.SOME
        return found


class AccessPolicy:
    """The rules of one configuration; `rights` is what they say about an identity."""

    def __init__(self, rules: AccessRules) -> None:
        self._rules = rules
        self._roles = {name: role for role, names in rules.by_role().items() for name in names}
        self._sites = {site.name: site for site in rules.site}
        named = {*self._roles, *self._sites, *(rule.user for rule in rules.rule)} - {EVERYBODY}
        self._of_named = {name: self._compiled(name) for name in named}
        self._of_nodes = self._compiled(None)

    def rights(self, identity: str) -> Rights:
        """What this user may do."""
        readable, writable = self._of_named.get(identity, self._of_nodes)
        names_client = self._rules.policy is Policy.TABLE
        return Rights(identity, readable, writable, names_client=names_client)

    def _compiled(self, name: str | None) -> tuple[_Grants, _Grants]:
        """For a user who is named in the configuration, or for every other one."""
        granted = list(self._granted(name))
        return (
            _Grants(topic_filter for topic_filter, access in granted if Access.READ in access),
            _Grants(topic_filter for topic_filter, access in granted if Access.WRITE in access),
        )

    def _granted(self, name: str | None) -> Iterator[tuple[str, Access]]:
        if self._rules.policy is Policy.TABLE:
            yield from ((grant.topic_filter, grant.access) for grant in self._of_table(name))
        for rule in self._rules.rule:
            if rule.user in (EVERYBODY, name):
                yield rule.topic, _WORDS[rule.access]

    def _of_table(self, name: str | None) -> list[Grant]:
        topics = Topics(self._rules.root)
        site = self._sites.get(name or "")
        if site is not None:
            behind = site.nodes or (EVERY_NODE,)
            return [grant for node in behind for grant in grants(Role.NODE, topics, node=node)]
        role = self._roles.get(name or "", Role.NODE)
        return grants(role, topics, node=OWN, user=OWN)


def compiled(rules: AccessRules) -> AccessPolicy | None:
    """The policy; None where every client may use every topic."""
    return None if rules.policy is Policy.OPEN else AccessPolicy(rules)


def reader_of(rights: Rights | None, topic_filter: str) -> Rights | None:
    """What messages of a subscription are to be looked at by; None: by nothing."""
    if rights is None or rights.reading(topic_filter) is Reading.ALL:
        return None
    return rights


def _covers(granted: Levels, levels: list[str] | Levels, own: str | None) -> bool:
    """Whether `granted` includes every topic of `levels`, which are those of a topic or a filter."""
    # MQTT 5, 4.7.2: a wildcard at the start does not reach topics that begin with $.
    if levels[0].startswith("$") and granted[0] in ("+", "#"):
        return False
    size = len(levels)
    for position, level in enumerate(granted):
        if level == "#":
            return True
        if position >= size:
            return False
        asked = levels[position]
        if level == "+":
            if asked == "#":
                return False
        elif asked != (own if level == OWN else level):
            return False
    return size == len(granted)


def _overlap(granted: Levels, levels: list[str], own: str | None) -> bool:
    """Whether some topic belongs to both filters."""
    first, asked = granted[0], levels[0]
    if (first.startswith("$") and asked in ("+", "#")) or (
        asked.startswith("$") and first in ("+", "#")
    ):
        return False
    for position, level in enumerate(granted):
        if level == "#":
            return True
        if position >= len(levels):
            return False
        asked = levels[position]
        if asked == "#":
            return True
        wanted = own if level == OWN else level
        if wanted is None or (wanted != "+" and asked not in ("+", wanted)):
            return False
    return len(granted) == len(levels) or levels[len(granted) :] == ["#"]
