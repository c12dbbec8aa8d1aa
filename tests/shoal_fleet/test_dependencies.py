from hypothesis import given
from hypothesis import strategies as st

from shoal_contract.messages import Hardware, ModelState, Phase, Reported
from shoal_contract.requirements import parse_requirements
from shoal_fleet.dependencies import Needs, circle, missing
from shoal_fleet.registry import Node


def release(title: str, **requires: str) -> Needs:
    model, version = title.split("@")
    return Needs(model, version, parse_requirements(requires))


def node(phase: Phase = Phase.SERVING, **versions: str) -> Node:
    states = [
        ModelState(model, b"r" * 32, version, b"r" * 32, phase)
        for model, version in versions.items()
    ]
    hardware = Hardware("Raspberry Pi 4", "Linux", "aarch64", 4)
    reported = Reported("1", b"boot", 0, hardware, states, [])
    return Node(name="n", first_seen_ms=0, reported=reported)


def test_a_node_has_what_it_serves():
    needs = parse_requirements({"detector": ">=2"})
    assert missing(needs, node(detector="2.1.0")) == ""
    assert missing(needs, node(detector="1.0.0")) == "needs detector >=2.0.0, has 1.0.0"
    assert missing(needs, node(other="2.0.0")) == "needs detector >=2.0.0, has none"
    assert missing(needs, node(Phase.FETCHING, detector="2.0.0")) == (
        "needs detector >=2.0.0, has none"
    )
    assert missing(needs, Node(name="n", first_seen_ms=0)) == "needs detector >=2.0.0, has none"
    assert missing((), Node(name="n", first_seen_ms=0)) == ""


def test_two_releases_that_need_each_other_are_a_circle():
    a, b = release("a@2.0.0", b=">=2"), release("b@2.0.0", a=">=2")
    assert circle(a, [b]) == ["a@2.0.0", "b@2.0.0", "a@2.0.0"]
    assert circle(release("c@1.0.0", a=">=2"), [a, b]) == ["a@2.0.0", "b@2.0.0", "a@2.0.0"]


def test_an_older_release_that_fulfils_it_is_the_way_out():
    a, b = release("a@2.0.0", b=">=2"), release("b@2.0.0", a=">=1")
    assert circle(a, [b, release("a@1.0.0")]) == []
    assert circle(a, [b]) != []


def test_a_release_may_need_an_older_one_of_its_own_model():
    assert circle(release("a@3.0.0", a=">=2"), [release("a@2.0.0")]) == []
    assert circle(release("a@3.0.0", a=">=3"), [release("a@2.0.0")]) == ["a@3.0.0", "a@3.0.0"]


def test_a_release_that_is_not_there_yet_is_no_circle():
    assert circle(release("a@1.0.0", b=">=9"), []) == []


MODELS = st.sampled_from("abc")
RELEASES = st.lists(
    st.tuples(MODELS, st.integers(1, 3), st.dictionaries(MODELS, st.integers(1, 3), max_size=2)),
    min_size=1,
    max_size=7,
    unique_by=lambda one: one[:2],
)


@given(RELEASES)
def test_there_is_no_circle_just_when_an_order_exists_in_which_all_can_go(drawn):
    catalogue = [
        release(f"{model}@{version}.0.0", **{name: f">={least}" for name, least in needs.items()})
        for model, version, needs in drawn
    ]
    gone: list[Needs] = []
    left = list(catalogue)
    while True:
        can_go = [
            item
            for item in left
            if all(
                any(r.model == g.model and r.is_met_by(g.version) for g in gone)
                or not any(r.model == c.model and r.is_met_by(c.version) for c in catalogue)
                for r in item.requires
            )
        ]
        if not can_go:
            break
        gone += can_go
        left = [item for item in left if item not in can_go]
    for item in catalogue:
        others = [other for other in catalogue if other is not item]
        found = circle(item, others)
        assert bool(found) is (item in left)
        if found:
            assert found[0] == found[-1]
            assert set(found) <= {one.title for one in left}
