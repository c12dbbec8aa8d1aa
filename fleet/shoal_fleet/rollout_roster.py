"""The nodes of a rollout and where each stands, in the orders in which the rules ask for them.

It is told what has changed and counts along, so that no rule walks through the whole fleet.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from shoal_fleet.rollout_state import Member, Standing

_Key = TypeVar("_Key")
RESOLVED: Final = frozenset({Standing.SERVING, Standing.FAILED})


@dataclass(slots=True)
class Counts:
    """How many nodes stand where; what is not in a mapping is 0.

    Attributes:
        standing: nodes by their standing.
        started: who ever got a lease, by class of hardware.
        failures: who of those failed, by class of hardware.
        unseen: failures that no person has looked at.
        leases: leases that were claimed, by wave.
        resolved: those of them that have an answer, by wave.
    """

    standing: dict[Standing, int] = field(default_factory=dict)
    started: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    unseen: int = 0
    leases: dict[int, int] = field(default_factory=dict)
    resolved: dict[int, int] = field(default_factory=dict)

    @property
    def all_started(self) -> int:
        """Who ever got a lease."""
        return sum(self.started.values())

    @property
    def all_failures(self) -> int:
        """Who of those failed."""
        return sum(self.failures.values())

    def at(self, standing: Standing) -> int:
        """How many nodes stand there."""
        return self.standing.get(standing, 0)

    def copy(self) -> "Counts":
        """One that can be changed while this one stays."""
        return Counts(
            dict(self.standing),
            dict(self.started),
            dict(self.failures),
            self.unseen,
            dict(self.leases),
            dict(self.resolved),
        )

    def add(self, member: Member, by: int = 1) -> None:
        """Count a member, or with `by` -1 no longer."""
        _add(self.standing, member.standing, by)
        has_failed = member.standing is Standing.FAILED
        if member.offered_ms is not None:
            _add(self.started, member.kind, by)
            if has_failed:
                _add(self.failures, member.kind, by)
        if has_failed and not member.seen:
            self.unseen += by
        if member.wave:
            _add(self.leases, member.wave, by)
            if member.standing in RESOLVED:
                _add(self.resolved, member.wave, by)


def _add(counts: dict[_Key, int], key: _Key, by: int) -> None:
    counts[key] = counts.get(key, 0) + by


class Roster:
    """The members, in the order in which they are offered the release."""

    def __init__(self, members: Iterable[tuple[str, Member]]) -> None:
        self._members: dict[str, Member] = {}
        self._places: dict[str, int] = {}
        self._waiting: dict[str, None] = {}
        self._offered: dict[str, None] = {}
        self.counts = Counts()
        offered: list[tuple[int, str]] = []
        for node, member in members:
            self._put(node, member)
            if member.standing is Standing.OFFERED:
                offered.append((due_key(member), node))
        self._offered = {node: None for _, node in sorted(offered)}

    @property
    def members(self) -> Mapping[str, Member]:
        """Each node's standing. Not to be changed."""
        return self._members

    def place(self, node: str) -> int:
        """The how-manieth the node is, from 0."""
        return self._places[node]

    def offered(self) -> Iterator[str]:
        """Who was offered it and has not answered, the longest first."""
        return iter(self._offered)

    def first_waiting(self, ready: frozenset[str], most: int) -> list[str]:
        """At most `most` of the ready nodes that wait, in order."""
        if len(ready) <= most:
            found = [node for node in ready if node in self._waiting]
            return sorted(found, key=self._places.__getitem__)
        chosen: list[str] = []
        for node in self._waiting:
            if len(chosen) == most:
                break
            if node in ready:
                chosen.append(node)
        return chosen

    def put(self, changes: Mapping[str, Member]) -> None:
        """These members stand elsewhere from now on; who is new comes last."""
        for node, member in changes.items():
            self._put(node, member)

    def _put(self, node: str, member: Member) -> None:
        before = self._members.get(node)
        if before is None:
            self._places[node] = len(self._places)
        else:
            self.counts.add(before, -1)
            self._waiting.pop(node, None)
            self._offered.pop(node, None)
        self._members[node] = member
        self.counts.add(member)
        if member.standing is Standing.WAITING:
            self._waiting[node] = None
        elif member.standing is Standing.OFFERED:
            self._offered[node] = None


def due_key(member: Member) -> int:
    """Orders members by when they are overdue; only differences mean something."""
    return (member.offered_ms or 0) - member.unheard_ms
