"""Verdicts on access rules, against a broker whose rules are known: a model of one, on all its ways to refuse."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_broker.doctor.access_verdicts import Place, Verdict, Whose, Written, judge
from shoal_broker.doctor.client import NO_CBOR
from shoal_contract import messages
from shoal_contract.access import TABLE, Access, Door, Fleetwide, Role
from shoal_contract.errors import DecodeError

ROLES = (Role.CONTROLLER, Role.NODE)
PLACES = [
    Place(family, whose, f"{family.name}/{whose}")
    for family in TABLE
    for whose in (
        (Whose.FLEET,) if isinstance(family, Fleetwide | Door) else (Whose.OWN, Whose.OTHERS)
    )
]


def table(role, place):
    if role is Role.NODE and place.whose is Whose.OTHERS:
        return Access.NONE
    return TABLE[place.family][role]


EXPECTED = {(role, place): table(role, place) for place in PLACES for role in ROLES}


@dataclass(frozen=True)
class Model:
    """A broker: `rules` in force, refusing aloud or acknowledging what it discards."""

    rules: dict
    says_no: bool
    refuses_subscriptions: bool

    def judged(self):
        written = [
            Written(
                writer,
                place,
                refused=self.says_no and not self.may(writer, place, Access.WRITE),
                readers=frozenset(
                    reader
                    for reader in ROLES
                    if self.may(writer, place, Access.WRITE)
                    and self.may(reader, place, Access.READ)
                ),
            )
            for writer, place in EXPECTED
        ]
        unsubscribed = [
            (role, place)
            for role, place in EXPECTED
            if self.refuses_subscriptions and not self.may(role, place, Access.READ)
        ]
        return judge(EXPECTED, written, unsubscribed)

    def may(self, role, place, what):
        return what in self.rules[role, place]


@st.composite
def models(draw):
    rules = dict(EXPECTED)
    for role, place in draw(st.lists(st.sampled_from(list(EXPECTED)), max_size=6)):
        rules[role, place] = draw(st.sampled_from([*Access, Access.NONE, Access.BOTH]))
        if role is Role.CONTROLLER and place.whose is not Whose.FLEET:
            # A controller reads a family of every node alike.
            other = next(p for p in PLACES if p.family == place.family and p != place)
            read = rules[role, place] & Access.READ
            rules[role, other] = (rules[role, other] & Access.WRITE) | read
    return Model(rules, draw(st.booleans()), draw(st.booleans()))


@given(models())
def test_what_is_called_ok_is_as_the_table_says(model):
    for check in model.judged():
        really = model.may(check.role, check.place, check.access)
        if check.verdict is Verdict.OK:
            assert really is check.expected
        if check.verdict is Verdict.TOO_WIDE:
            assert really
            assert not check.expected


@given(models())
def test_what_is_called_too_narrow_is_so_at_one_end_at_least(model):
    for check in model.judged():
        if check.verdict is Verdict.TOO_NARROW:
            assert check.expected
            assert any(
                EXPECTED[role, check.place] & ~model.rules[role, check.place] for role in ROLES
            )


def test_a_right_broker_has_no_wrong_rule_and_nobody_is_told_what_cannot_be_seen():
    for says_no in (True, False):
        checks = Model(dict(EXPECTED), says_no, refuses_subscriptions=False).judged()
        wrong = [check for check in checks if check.verdict not in (Verdict.OK, Verdict.NOT_TOLD)]
        assert wrong == []
        untold = [check for check in checks if check.verdict is Verdict.NOT_TOLD]
        assert {(check.place.whose, check.access) for check in untold} == {
            (Whose.OTHERS, Access.READ)
        }
    # Who refuses subscriptions shows more: only what the controller may read of others is left.
    checks = Model(dict(EXPECTED), says_no=True, refuses_subscriptions=True).judged()
    untold = [check for check in checks if check.verdict is Verdict.NOT_TOLD]
    assert {check.role for check in untold} == {Role.CONTROLLER}


def test_what_the_doctor_publishes_is_a_message_of_no_kind():
    with pytest.raises(DecodeError):
        messages.decode(NO_CBOR + b"shoal-doctor 1")
