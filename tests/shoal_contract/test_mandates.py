"""Who may have a node do what: roots, mandates, mandates of mandates, denials."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from shoal_contract.mandates import MAX_DEPTH, Mandates, includes
from shoal_contract.messages import Mandate, Policy

ROOT, SECOND, ALICE, BOB, CAROL = (bytes([n]) * 32 for n in range(1, 6))
OVEN = frozenset({"oven", "oslo"})
NOW = 1000


def mandate(key: bytes, ops=("*",), groups=("*",), *, may_delegate=False, until_ms=0) -> Mandate:
    return Mandate(key, f"key {key[0]}", list(ops), list(groups), may_delegate, until_ms)


def policy(*mandates: Mandate, **more) -> Policy:
    return Policy(1, 0, list(mandates), **more)


def refusal(policies, key=ALICE, op="device.set", groups=OVEN, roots=(ROOT,)) -> str:
    return Mandates(roots, policies).refusal(key, op, groups=groups, now_ms=NOW)


def test_a_root_may_everything_and_a_stranger_nothing():
    assert refusal({}, key=ROOT) == ""
    assert refusal({}, key=ALICE) == "the key has no mandate here"


def test_a_mandate_names_operations_and_groups():
    policies = {ROOT: policy(mandate(ALICE, ["device.*", "ping"], ["oven"]))}
    assert refusal(policies) == ""
    assert refusal(policies, op="ping") == ""
    assert refusal(policies, op="agent.restart") == (
        "the mandate of key 3 does not include agent.restart"
    )
    assert refusal(policies, op="devices.set")
    assert refusal(policies, groups=frozenset({"bath"})) == (
        "the mandate of key 3 does not reach here"
    )
    assert refusal(policies, groups=frozenset())


def test_a_mandate_for_all_groups_reaches_a_node_without_any():
    assert refusal({ROOT: policy(mandate(ALICE))}, groups=frozenset()) == ""


def test_a_mandate_ends():
    assert refusal({ROOT: policy(mandate(ALICE, until_ms=NOW))}) == ""
    assert refusal({ROOT: policy(mandate(ALICE, until_ms=NOW - 1))}) == (
        "the mandate of key 3 has ended"
    )


def test_only_who_may_delegate_gives_mandates():
    given_on = {ALICE: policy(mandate(BOB))}
    assert refusal({ROOT: policy(mandate(ALICE)), **given_on}, key=BOB)
    may = {ROOT: policy(mandate(ALICE, may_delegate=True)), **given_on}
    assert refusal(may, key=BOB) == ""
    assert Mandates([ROOT], may).may_delegate(ALICE)
    assert not Mandates([ROOT], may).may_delegate(BOB)


def test_a_mandate_that_is_given_on_is_never_wider_than_the_one_above():
    policies = {
        ROOT: policy(mandate(ALICE, ["device.*"], ["oven"], may_delegate=True, until_ms=NOW)),
        ALICE: policy(mandate(BOB, ["*"], ["*"], may_delegate=True, until_ms=0)),
        BOB: policy(mandate(CAROL)),
    }
    assert refusal(policies, key=CAROL) == ""
    assert refusal(policies, key=CAROL, op="ping")
    assert refusal(policies, key=CAROL, groups=frozenset({"bath"}))
    mandates = Mandates([ROOT], policies)
    assert mandates.refusal(CAROL, "device.set", groups=OVEN, now_ms=NOW + 1)


def test_two_mandates_of_a_key_each_count():
    policies = {
        ROOT: policy(mandate(ALICE, ["ping"])),
        SECOND: policy(mandate(ALICE, ["device.*"])),
    }
    assert refusal(policies, roots=(ROOT, SECOND)) == ""
    assert refusal(policies, op="ping", roots=(ROOT, SECOND)) == ""


def test_a_key_that_a_root_revoked_is_worth_nothing_whoever_gave_it_a_mandate():
    policies = {
        ROOT: policy(mandate(ALICE, may_delegate=True)),
        ALICE: policy(mandate(BOB)),
        SECOND: policy(revoked=[BOB]),
    }
    assert refusal(policies, key=BOB, roots=(ROOT,)) == ""
    assert refusal(policies, key=BOB, roots=(ROOT, SECOND))


def test_what_a_revoked_key_gave_is_gone_with_it():
    policies = {
        ROOT: policy(mandate(ALICE, may_delegate=True), revoked=[ALICE]),
        ALICE: policy(mandate(BOB)),
    }
    assert refusal(policies, key=BOB)
    assert not Mandates([ROOT], policies).may_delegate(ALICE)


def test_a_delegate_takes_back_what_came_from_it_and_nothing_else():
    policies = {
        ROOT: policy(mandate(ALICE, may_delegate=True), mandate(CAROL)),
        ALICE: policy(mandate(BOB, may_delegate=True), revoked=[CAROL, BOB]),
        BOB: policy(mandate(CAROL)),
    }
    assert refusal(policies, key=CAROL) == ""
    assert refusal(policies, key=BOB)


def test_nobody_revokes_a_key_of_the_configuration():
    policies = {ROOT: policy(mandate(ALICE, may_delegate=True), revoked=[SECOND])}
    assert refusal(policies, key=SECOND, roots=(ROOT, SECOND)) == ""


def test_an_operation_runs_only_if_every_root_approves_and_none_denies():
    assert refusal({ROOT: policy(approved=["ping"])}, key=ROOT) == "device.set is not approved here"
    assert refusal({ROOT: policy(denied=["device.*"])}, key=ROOT)
    both = {ROOT: policy(approved=["device.*"]), SECOND: policy(approved=["ping"])}
    assert refusal(both, key=ROOT, roots=(ROOT, SECOND))


def test_a_delegate_neither_approves_nor_denies():
    policies = {
        ROOT: policy(mandate(ALICE, may_delegate=True)),
        ALICE: policy(approved=[], denied=["*"]),
    }
    assert refusal(policies, key=ROOT) == ""


def test_mandates_in_a_circle_end():
    policies = {
        ROOT: policy(mandate(ALICE, may_delegate=True)),
        ALICE: policy(mandate(BOB, may_delegate=True)),
        BOB: policy(mandate(ALICE, may_delegate=True), mandate(CAROL)),
    }
    assert refusal(policies, key=CAROL) == ""


def test_a_row_of_mandates_has_an_end():
    keys = [bytes([n]) * 32 for n in range(10, 20)]
    policies = {ROOT: policy(mandate(keys[0], may_delegate=True))}
    for above, below in itertools.pairwise(keys):
        policies[above] = policy(mandate(below, may_delegate=True))
    assert refusal(policies, key=keys[MAX_DEPTH - 1]) == ""
    assert refusal(policies, key=keys[MAX_DEPTH])


def test_many_policies_that_point_at_each_other_are_read_in_a_moment():
    keys = [bytes([n]) * 32 for n in range(10, 70)]
    everybody = [mandate(key, may_delegate=True) for key in keys]
    policies = {key: policy(*everybody) for key in [ROOT, *keys]}
    assert refusal(policies, key=keys[0]) == ""


def test_a_pattern_is_a_name_a_beginning_or_everything():
    assert includes(["*"], "a")
    assert includes(["a.*"], "a.b")
    assert includes(["a"], "a")
    assert not includes(["a.*"], "a")
    assert not includes(["a"], "a.b")
    assert not includes([], "a")


KEYS = st.sampled_from([ROOT, ALICE, BOB, CAROL])
OPS = st.lists(st.sampled_from(["*", "device.*", "device.set", "ping"]), max_size=2)
GROUPS = st.lists(st.sampled_from(["*", "oven", "bath"]), max_size=2)
MANDATES = st.builds(
    Mandate,
    KEYS,
    st.just("m"),
    OPS,
    GROUPS,
    st.booleans(),
    st.sampled_from([0, NOW - 1, NOW + 1]),
)
POLICIES = st.dictionaries(
    KEYS, st.builds(Policy, st.just(1), st.just(0), st.lists(MANDATES, max_size=3)), max_size=4
)


@given(POLICIES)
def test_what_a_key_may_is_within_what_the_roots_own_policy_lets_somebody(policies):
    """No row of delegations ends wider than the mandate that it began with."""
    direct = policies.get(ROOT, policy()).mandates
    for key in (ALICE, BOB, CAROL):
        for op in ("device.set", "ping", "agent.restart"):
            if refusal(policies, key=key, op=op, groups=frozenset({"oven"})) == "":
                assert any(
                    includes(m.ops, op) and {"*", "oven"} & set(m.groups) and m.until_ms != NOW - 1
                    for m in direct
                )
