"""The doctor's walk through the access rules: both identities write everywhere, and who gets what counts.

A SUBACK or PUBACK proves nothing: some brokers grant what they never deliver. So a marker follows
each attempt, from the same publisher; what has not come before the marker does not come. Nothing is
retained, and no payload is CBOR: a controller or an agent counts it as malformed at most.
It does not try operators and observers, and judges nothing itself: see `access_verdicts`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import assert_never

from shoal_broker.doctor.access_verdicts import Check, Place, Verdict, Whose, Written, judge
from shoal_broker.doctor.client import NO_CBOR, ProbeClient, connected
from shoal_broker.doctor.errors import CutError, DoctorError, RefusedError
from shoal_broker.doctor.finding import Finding, Report
from shoal_broker.doctor.identities import Identities, Identity, check_unused
from shoal_contract.access import TABLE, Access, Door, Family, Fleetwide, Role, access
from shoal_contract.topics import Channel, Topics

LEAF = "doctor"


def check_access(identities: Identities) -> Report:
    """Try every cell of the table. Raises DoctorError when nothing can be told."""
    other = f"doctor-{secrets.token_hex(6)}"
    places = _places(identities.topics, identities.node_id, other)
    names = {Role.CONTROLLER: "controller", Role.NODE: identities.node_id}
    expected = {
        (role, place): access(role, name, place.topic, identities.topics)
        for role, name in names.items()
        for place in places
    }
    for identity in (identities.controller, identities.node):
        check_unused(identity)
    with ExitStack() as one, ExitStack() as two:
        controller = _Participant(identities.controller, places, one)
        node = _Participant(identities.node, places, two)
        walk = _Walk(controller, node)
        walk.find_markers(places, expected)
        written = [walk.attempt(writer, place) for place in places for writer in (controller, node)]
        unsubscribed = [
            (member.role, place) for member in (controller, node) for place in member.refused
        ]
    return _report(judge(expected, written, unsubscribed))


def _places(topics: Topics, node_id: str, other: str) -> list[Place]:
    """One topic of every family and, where there are several, of both nodes."""
    return [
        Place(family, whose, topic)
        for family in TABLE
        for whose, topic in _topics_of(family, topics, node_id, other)
    ]


def _topics_of(family: Family, topics: Topics, node_id: str, other: str) -> list[tuple[Whose, str]]:
    by_channel: dict[Channel, Callable[[str], str]] = {
        Channel.COMMANDS: topics.commands,
        Channel.RESULTS: topics.results,
        Channel.PRESENCE: topics.presence,
        Channel.STATE: topics.state,
        Channel.WANTED: topics.wanted,
        Channel.TELEMETRY: lambda node: topics.telemetry(node, LEAF),
        Channel.INFERENCE: lambda node: topics.inference(node, LEAF),
    }
    # Names that nobody else uses: `other` is random.
    fleetwide = {
        Fleetwide.GROUP_COMMANDS: topics.group_commands(other),
        Fleetwide.CHUNKS: topics.chunk(secrets.token_bytes(32), 0),
        Fleetwide.UPDATES: topics.update(other),
    }
    match family:
        case Fleetwide():
            return [(Whose.FLEET, fleetwide[family])]
        case Door():
            leaf = LEAF if family is Door.TELEMETRY else None
            return [(Whose.FLEET, topics.door(other, other, family.value, leaf))]
        case Channel():
            topic = by_channel[family]
            return [(Whose.OWN, topic(node_id)), (Whose.OTHERS, topic(other))]
        case _:
            assert_never(family)


class _Participant:
    """One identity, connected anew whenever the broker cuts it off."""

    client: ProbeClient

    def __init__(self, identity: Identity, places: list[Place], stack: ExitStack) -> None:
        self.identity = identity
        self.refused: set[Place] = set()
        """Subscriptions that the broker refused."""
        self._places = places
        self._stack = stack
        self.connect()

    @property
    def role(self) -> Role:
        return self.identity.role

    def connect(self) -> None:
        """Connected and subscribed to whatever the broker lets us subscribe to."""
        while True:
            self._stack.close()
            self.client = self._stack.enter_context(
                connected(self.identity.target, self.role, client_id=self.identity.client_id)
            )
            for place in self._places:
                if place in self.refused:
                    continue
                try:
                    self.client.subscribe(place.topic)
                except RefusedError:
                    self.refused.add(place)
                except CutError:
                    self.refused.add(place)
                    break
            else:
                return

    def publish(self, topic: str, payload: bytes) -> bool:
        """Whether the broker took it; connected either way."""
        try:
            self.client.publish(topic, payload)
        except RefusedError:
            return False
        except CutError:
            self.connect()
            return False
        return True

    def until(self, marker: bytes) -> set[bytes]:
        """What came before the marker."""
        came: set[bytes] = set()
        while True:
            message = self.client.next_message("a marker that came before comes no more")
            payload = bytes(message.payload)
            if payload == marker:
                return came
            came.add(payload)


class _Walk:
    """Attempts to write, each followed by markers."""

    def __init__(self, controller: _Participant, node: _Participant) -> None:
        self._controller = controller
        self._node = node
        self._marker_topics: dict[tuple[Role, Role], str] = {}
        self._count = 0

    def find_markers(
        self, places: list[Place], expected: Mapping[tuple[Role, Place], Access]
    ) -> None:
        """Find topics on which markers pass: the rules that they need may be the wrong ones."""
        for writer, reader in (
            (self._controller, self._controller),
            (self._controller, self._node),
            (self._node, self._controller),
        ):
            topic = next(
                (
                    place.topic
                    for place in places
                    if Access.WRITE in expected[writer.role, place]
                    and Access.READ in expected[reader.role, place]
                    and self._passes(writer, reader, place.topic)
                ),
                None,
            )
            if topic is None:
                raise DoctorError(
                    f"nothing that the {writer.role} publishes reaches the {reader.role}: "
                    "no rule can be told from another"
                )
            self._marker_topics[writer.role, reader.role] = topic

    def attempt(self, writer: _Participant, place: Place) -> Written:
        """Write there, then see who has it."""
        payload = self._payload()
        taken = writer.publish(place.topic, payload)
        # The writer's own marker first. The node's cannot reach the node itself, so the controller
        # sends the node one when it has seen what the node wrote.
        by_controller = self._marked(writer, self._controller)
        by_node = self._marked(self._controller, self._node)
        readers = {
            role
            for role, came in ((Role.CONTROLLER, by_controller), (Role.NODE, by_node))
            if payload in came
        }
        return Written(writer.role, place, refused=not taken, readers=frozenset(readers))

    def _passes(self, writer: _Participant, reader: _Participant, topic: str) -> bool:
        payload = self._payload()
        if not writer.publish(topic, payload):
            return False
        try:
            reader.until(payload)
        except DoctorError:
            return False
        return True

    def _marked(self, writer: _Participant, reader: _Participant) -> set[bytes]:
        marker = self._payload()
        writer.publish(self._marker_topics[writer.role, reader.role], marker)
        return reader.until(marker)

    def _payload(self) -> bytes:
        self._count += 1
        return NO_CBOR + b"shoal-doctor %d" % self._count


def _report(checks: list[Check]) -> Report:
    facts = [
        {
            "role": str(check.role),
            "family": _name(check.place.family),
            "whose": str(check.place.whose),
            "topic": check.place.topic,
            "access": (check.access.name or "").lower(),
            "allowed": check.expected,
            "verdict": str(check.verdict),
            "why": check.why,
        }
        for check in checks
    ]
    findings = []
    for role in (Role.CONTROLLER, Role.NODE):
        mine = [fact for fact in facts if fact["role"] == role]
        good = [fact for fact in mine if fact["verdict"] == Verdict.OK]
        means = f"{len(good)} of {len(mine)} hold"
        findings.append(Finding(f"{role} rules", ok=True, means=means, facts={"hold": good}))
        findings += [
            Finding(f"{role} rules", ok=False, means=_in_words(fact), facts=fact)
            for fact in mine
            if fact["verdict"] in (Verdict.TOO_WIDE, Verdict.TOO_NARROW)
        ]
        findings += [
            Finding(f"{role} rules", ok=None, means=_in_words(fact), facts=fact)
            for fact in mine
            if fact["verdict"] == Verdict.NOT_TOLD
        ]
    return Report(findings)


def _in_words(fact: dict[str, object]) -> str:
    rule = f"{fact['access']} {fact['whose']} {fact['family']} ({fact['topic']})"
    return f"{fact['verdict']}: {rule}: {fact['why']}"


def _name(family: Family) -> str:
    name = family.name.lower().replace("_", " ")
    return f"door {name}" if isinstance(family, Door) else name
