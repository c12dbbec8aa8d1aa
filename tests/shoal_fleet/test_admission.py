from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract.messages import Hardware, ModelState, Phase, Reported
from shoal_contract.release_targets import path_of
from shoal_contract.requirements import Requirement, parse_requirements
from shoal_fleet.admission import Admission
from shoal_fleet.audience import Audience
from shoal_fleet.errors import RequestError
from shoal_fleet.registry import Node
from shoal_fleet.releases import Release
from shoal_fleet.rollout import step
from shoal_fleet.rollout_open import OpenRollout
from shoal_fleet.rollout_roster import Roster
from shoal_fleet.rollout_state import (
    Event,
    Fails,
    Freeze,
    Frozen,
    Member,
    Options,
    Prepare,
    Prepared,
    Ready,
    Rollout,
    Serves,
    Standing,
    Status,
    Tick,
)
from shoal_fleet.signed_list import SignedList
from shoal_fleet.windows import parse_window, zone_of

MONDAY_MS = round(datetime(2026, 11, 30, 3, 0, tzinfo=UTC).timestamp() * 1000)
HOUR_MS = 3_600_000


def node(name: str, *, online: bool = True, labels=None, **versions: str) -> Node:
    states = [
        ModelState(model, b"r" * 32, version, b"r" * 32, Phase.SERVING)
        for model, version in versions.items()
    ]
    hardware = Hardware("Raspberry Pi 4", "Linux", "aarch64", 4)
    reported = Reported("1", b"boot", 0, hardware, states, [])
    return Node(name=name, first_seen_ms=0, online=online, labels=labels or {}, reported=reported)


def release(model: str) -> Release:
    return Release(b"r" * 32, model, "2.0.0", "", b"", b"m" * 32, 1, {}, 0)


def rollout(
    number: int,
    names: Sequence[str],
    *,
    requires: tuple[Requirement, ...] = (),
    where: str = "",
    group: str = "",
    **options,
) -> OpenRollout:
    """One whose first wave is open."""
    opened = OpenRollout(
        number,
        release(f"model-{number}"),
        Audience.parse(where=where, group=group),
        Rollout(options=Options(**{"first_wave": 3, **options})),
        Roster((name, Member()) for name in names),
        requires,
    )
    feed(opened, Prepared())
    return opened


def feed(opened: OpenRollout, event: Event, now_ms: int = MONDAY_MS) -> None:
    outcome = step(opened.state, opened.roster, event, now_ms)
    opened.state = outcome.rollout
    opened.roster.put(outcome.changes)
    if any(isinstance(action, Prepare) for action in outcome.actions):
        feed(opened, Prepared(), now_ms)


def why(opened: OpenRollout, one: Node, *others: OpenRollout, now_ms: int = MONDAY_MS) -> str:
    return Admission(opened, [opened, *others], now_ms).why_not(one)


def test_a_node_waits_until_its_window_opens_by_its_own_clock():
    opened = rollout(1, ["a", "b"], window="mon-fri 01:00-04:00", tz="UTC")
    assert why(opened, node("a")) == ""
    assert why(opened, node("a", labels={"tz": "Asia/Kolkata"})) == (
        "its window opens Tue 2026-12-01 01:00 Asia/Kolkata"
    )
    assert why(opened, node("a", labels={"tz": "Europe/Oslo"})) == (
        "its window opens Tue 2026-12-01 01:00 Europe/Oslo"
    )
    assert why(opened, node("a"), now_ms=MONDAY_MS + HOUR_MS) != ""


def test_a_node_whose_label_names_no_time_zone_is_not_touched():
    opened = rollout(1, ["a"], window="00:00-24:00")
    assert why(opened, node("a", labels={"tz": "Europe/Olso"})) == (
        "'Europe/Olso' is not a time zone (like Europe/Oslo)"
    )


def test_a_node_waits_for_what_the_release_requires():
    opened = rollout(1, ["a"], requires=parse_requirements({"detector": ">=2"}))
    assert why(opened, node("a", detector="1.9.0")) == "needs detector >=2.0.0, has 1.9.0"
    assert why(opened, node("a", detector="2.0.0")) == ""


def test_a_node_that_left_the_group_waits_but_one_that_an_expression_named_is_meant_still():
    assert why(rollout(1, ["a"], group="site=oslo"), node("a")) == "it left the group"
    assert why(rollout(1, ["a"], where="site=oslo"), node("a")) == ""


def test_a_node_is_in_one_rollout_at_a_time():
    first, second = rollout(1, ["a"]), rollout(2, ["a"], priority=9)
    feed(first, Ready(frozenset({"a"})))
    assert why(second, node("a"), first) == "rollout 1 waits for it"
    feed(first, Serves("a"))
    assert why(second, node("a"), first) == ""


@pytest.mark.parametrize(
    ("first", "second", "goes_first"),
    [(4, 4, 1), (4, 5, 2), (5, 4, 1)],
)
def test_of_two_rollouts_the_one_of_higher_priority_goes_first_and_of_equal_ones_the_older(
    first, second, goes_first
):
    both = [rollout(1, ["a"], priority=first), rollout(2, ["a"], priority=second)]
    reasons = [why(opened, node("a"), *both) for opened in both]
    assert reasons[goes_first - 1] == ""
    assert reasons[2 - goes_first] == f"rollout {goes_first} goes first"


def test_who_cannot_give_a_lease_now_is_in_nobodys_way():
    needs = parse_requirements({"model-2": ">=2"})
    for other in (
        rollout(1, ["a"], priority=9, requires=needs),
        rollout(1, ["a"], priority=9, window="sun 01:00-02:00"),
        rollout(1, ["b"], priority=9),
    ):
        assert why(rollout(2, ["a"]), node("a"), other) == ""
    full = rollout(1, ["a", "b"], priority=9, first_wave=1)
    feed(full, Ready(frozenset({"b"})))
    assert why(rollout(2, ["a"]), node("a"), full) == ""
    frozen = rollout(1, ["a"], priority=9)
    feed(frozen, Frozen(Freeze()))
    assert why(rollout(2, ["a"], overrides_freeze=True), node("a"), frozen) == ""


def test_what_waiting_nodes_wait_for_is_counted():
    opened = rollout(1, ["a", "b", "c"])
    nodes = [node("a"), node("b", online=False), node("c", online=False), node("stranger")]
    assert Admission(opened, [opened], MONDAY_MS).waiting(nodes) == {
        "it is offline": 2,
        "a lease": 1,
    }


def test_a_group_and_an_expression_at_once_are_refused():
    with pytest.raises(RequestError, match="one of them names the nodes"):
        Audience.parse(group="site=oslo", where="site=oslo")


def test_an_expression_asks_the_name_and_the_boards_model_too():
    one = node("press-4", labels={"site": "oslo"})
    assert Audience.parse(where='node=press-4 and hw="Raspberry Pi 4"').has(one)
    assert not Audience.parse(where="hw=rpi4").has(one)
    assert Audience.parse(where="hw=rpi4").has(node("x", labels={"hw": "rpi4"}))


NAMES = [f"n{index}" for index in range(6)]
ZONES = ["UTC", "Europe/Oslo", "Asia/Kolkata"]
WINDOW = "01:00-04:00"
NEEDS = parse_requirements({"detector": ">=2"})
NODES = st.builds(
    lambda name, online, zone, version: node(
        name, online=online, labels={"tz": zone}, detector=version
    ),
    st.sampled_from(NAMES),
    st.booleans(),
    st.sampled_from(ZONES),
    st.sampled_from(["1.0.0", "2.0.0"]),
)
EVENTS = st.one_of(
    st.builds(Serves, st.sampled_from(NAMES)),
    st.builds(Fails, st.sampled_from(NAMES), st.just("x")),
    st.builds(Frozen, st.sampled_from([None, Freeze()])),
    st.just(Tick()),
)
MOVES = st.lists(
    st.tuples(st.sampled_from([1, 2, 3]), st.one_of(EVENTS, NODES), st.integers(0, 180)),
    max_size=40,
)


@given(MOVES, st.integers(0, 9), st.integers(0, 9))
def test_whatever_happens_no_lease_breaks_a_rule(moves, first, second):
    """Three rollouts to the same nodes; time passes by minutes, nodes come, go and change."""
    fleet = {name: node(name, online=False) for name in NAMES}
    everyone = [
        rollout(1, NAMES, priority=first, first_wave=2, window=WINDOW),
        rollout(2, NAMES, priority=second, first_wave=2, requires=NEEDS),
        rollout(3, NAMES, first_wave=1, overrides_freeze=True),
    ]
    now_ms = MONDAY_MS
    for number, move, minutes in moves:
        now_ms += minutes * 60_000
        if isinstance(move, Node):
            fleet[move.name] = move
        elif isinstance(move, Frozen):
            for opened in everyone:
                feed(opened, move, now_ms)
        else:
            feed(everyone[number - 1], move, now_ms)
        for opened in everyone:
            before = dict(opened.roster.members)
            # Who could take a node in this moment, before anybody does.
            rivals = [
                other
                for other in everyone
                if other.rank < opened.rank and other.has_room_at(now_ms)
            ]
            ready = Admission(opened, everyone, now_ms).ready(fleet.values())
            feed(opened, Ready(ready), now_ms)
            for name, member in opened.roster.members.items():
                if member.standing is not Standing.OFFERED or before[name] == member:
                    continue
                given_to = fleet[name]
                zone = zone_of(given_to.labels.get("tz", "UTC"))
                window = opened.state.options.window
                assert given_to.online
                assert not window or parse_window(window).is_open(now_ms, zone)
                assert not opened.requires or given_to.model("detector").version == "2.0.0"
                assert opened.state.freeze is None or opened.state.options.overrides_freeze
                assert opened.state.status is Status.RUNNING
                assert sum(other.offers(name) for other in everyone) == 1
                assert not any(
                    rival.waits(name) and not Admission(rival, [rival], now_ms).why_not(given_to)
                    for rival in rivals
                )


def test_a_node_waits_until_the_release_is_signed_for_its_group():
    opened = rollout(1, ["a"])
    path = path_of("oslo", "model-1", b"r" * 32)

    def unsigned(labels: dict[str, str], digest: bytes = b"r" * 32, **groups) -> str:
        digests = {"bergen": {}, "oslo": {path: digest}, **groups}
        admission = Admission(opened, [opened], MONDAY_MS, SignedList(digests))
        return admission.why_not(node("a", labels=labels))

    assert unsigned({"group": "oslo"}) == ""
    assert unsigned({"group": "bergen"}) == "nobody has signed it for bergen"
    assert unsigned({"group": "a group/with a slash"}).startswith("nobody has signed it for")
    assert (
        unsigned({"group": "bergen"}, all={path_of("all", "model-1", b"r" * 32): b"r" * 32}) == ""
    )
    # Another release under the same path: what counts is the whole digest.
    assert unsigned({"group": "oslo"}, b"r" * 31 + b"x") == "nobody has signed it for oslo"
    # What a board without a label takes, its own configuration says.
    assert unsigned({}) == ""
    assert unsigned({}, b"x" * 32) == "nobody has signed it for all"


def test_nobody_is_offered_a_release_while_the_list_cannot_be_read():
    opened = rollout(1, ["a"])
    listed = SignedList(unreadable="targets.json: no metadata")
    assert Admission(opened, [opened], MONDAY_MS, listed).why_not(node("a")) == (
        "the update metadata cannot be read: targets.json: no metadata"
    )
