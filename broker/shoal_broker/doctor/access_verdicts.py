"""From what was seen on a broker to verdicts on its access rules. Pure: no broker, no clock.

What one write shows: whether the broker refused it, and who got it. What two identities cannot
show, a topic that neither may write and read, say, is NOT_TOLD and never counted as right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from shoal_contract.access import Access, Family, Role

NOBODY = "acknowledged and delivered to nobody: the writer or the reader is denied"


class Whose(StrEnum):
    """Which topics of a family: those of the node that takes part, of another one, or of no node."""

    OWN = "the node's own"
    OTHERS = "another node's"
    FLEET = "the fleet's"


class Verdict(StrEnum):
    """How one rule of the broker stands to the table."""

    OK = "ok"
    TOO_WIDE = "too wide"
    TOO_NARROW = "too narrow"
    NOT_TOLD = "not told"


@dataclass(frozen=True, slots=True)
class Place:
    """A topic of the walk."""

    family: Family
    whose: Whose
    topic: str


@dataclass(frozen=True, slots=True)
class Written:
    """One attempt to write: refused (or cut off), and who got it if not."""

    writer: Role
    place: Place
    refused: bool
    readers: frozenset[Role]


@dataclass(frozen=True, slots=True)
class Check:
    """The verdict on one cell of the table, and what it rests on."""

    role: Role
    place: Place
    access: Access
    expected: bool
    verdict: Verdict
    why: str


def judge(
    expected: Mapping[tuple[Role, Place], Access],
    written: Iterable[Written],
    unsubscribed: Iterable[tuple[Role, Place]],
) -> list[Check]:
    """A verdict for reading and for writing in every cell of `expected`.

    Args:
        expected: what the table grants.
        written: one attempt for each cell.
        unsubscribed: who was refused the subscription to what.
    """
    attempts = {(one.writer, one.place): one for one in written}
    refused = set(unsubscribed)
    checks = []
    for (role, place), granted in expected.items():
        there = [one for (_, at), one in attempts.items() if at == place]
        # A controller reads a family of every node alike.
        witnessed = any(one.readers for one in there) or any(
            Role.CONTROLLER in one.readers
            for (_, at), one in attempts.items()
            if at.family == place.family
        )
        arrives = any(
            Access.WRITE in expected[one.writer, place] and not one.refused for one in there
        )
        may_write, may_read = Access.WRITE in granted, Access.READ in granted
        found = _on_writing(attempts[role, place], expected=may_write, witnessed=witnessed)
        checks.append(Check(role, place, Access.WRITE, may_write, *found))
        unsubscribable = (role, place) in refused
        found = _on_reading(
            role, there, expected=may_read, arrives=arrives, unsubscribable=unsubscribable
        )
        checks.append(Check(role, place, Access.READ, may_read, *found))
    return checks


def _on_writing(attempt: Written, *, expected: bool, witnessed: bool) -> tuple[Verdict, str]:
    if attempt.readers:
        return (Verdict.OK if expected else Verdict.TOO_WIDE), "delivered"
    if attempt.refused:
        return (Verdict.TOO_NARROW if expected else Verdict.OK), "refused"
    if expected:
        return Verdict.TOO_NARROW, NOBODY
    if witnessed:
        return Verdict.OK, "acknowledged and delivered to nobody"
    return Verdict.NOT_TOLD, "acknowledged, and nobody is known to read there"


def _on_reading(
    role: Role, there: list[Written], *, expected: bool, arrives: bool, unsubscribable: bool
) -> tuple[Verdict, str]:
    if any(role in one.readers for one in there):
        return (Verdict.OK if expected else Verdict.TOO_WIDE), "delivered"
    if unsubscribable:
        return (Verdict.TOO_NARROW if expected else Verdict.OK), "subscription refused"
    if any(one.readers for one in there):
        return (Verdict.TOO_NARROW if expected else Verdict.OK), "delivered to others only"
    if expected and arrives:
        return Verdict.TOO_NARROW, NOBODY
    return Verdict.NOT_TOLD, "no message of ours got there"
