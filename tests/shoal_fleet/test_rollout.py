import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_fleet.rollout import step, uncounted
from shoal_fleet.rollout_gate import first_wave
from shoal_fleet.rollout_roster import Counts, Roster, due_key
from shoal_fleet.rollout_state import (
    Approval,
    Approve,
    Fails,
    Freeze,
    Frozen,
    Joined,
    Member,
    Note,
    Offer,
    Options,
    Pause,
    Prepare,
    Prepared,
    Ready,
    Recall,
    Resume,
    Rollout,
    Serves,
    Standing,
    Status,
    Stop,
    Tick,
)

OVERDUE_S = 100.0


def test_time_that_does_not_count_is_added_to_the_patience_of_those_who_were_offered_it():
    run = Run(2, first_wave=1).feed(Prepared()).ready()
    run.state = uncounted(run.state, 50_000)
    assert run.feed(Tick(), after_s=OVERDUE_S + 49).failures == 0
    assert run.feed(Tick(), after_s=1).failures == 1


def test_time_that_did_not_count_is_no_longer_added_for_who_is_offered_it_later():
    run = Run(2, first_wave=2).feed(Prepared()).ready("n0")
    run.state = uncounted(run.state, 50_000)
    run.feed(Tick(), after_s=50).ready("n1")
    assert run.feed(Tick(), after_s=OVERDUE_S - 1).failures == 0
    assert run.feed(Tick(), after_s=1).failures == 2


class Run:
    """A rollout and what it has asked for."""

    def __init__(self, nodes: int, **options: object) -> None:
        self.names = [f"n{index}" for index in range(nodes)]
        self.state = Rollout(options=Options(overdue_s=OVERDUE_S, **options))
        self.roster = Roster((name, Member()) for name in self.names)
        self.now_ms = 0
        self.offered: list[str] = []
        self.recalled: list[str] = []
        self.notes: list[str] = []
        self.prepares = True

    def feed(self, event, *, after_s: float = 0) -> "Run":
        self.now_ms += round(after_s * 1000)
        before = self.roster.counts.copy()
        outcome = step(self.state, self.roster, event, self.now_ms)
        assert self.roster.counts == before, "a step leaves the roster alone"
        self.state = outcome.rollout
        self.roster.put(outcome.changes)
        for action in outcome.actions:
            match action:
                case Offer(node):
                    self.offered.append(node)
                case Recall(node):
                    self.recalled.append(node)
                case Note(text):
                    self.notes.append(text)
                case Prepare() if self.prepares:
                    self.feed(Prepared())
        return self

    def ready(self, *names: str) -> "Run":
        return self.feed(Ready(frozenset(names or self.names)))

    def standing(self, name: str) -> Standing:
        return self.roster.members[name].standing

    @property
    def failures(self) -> int:
        return self.roster.counts.all_failures

    @property
    def started(self) -> int:
        return self.roster.counts.all_started


def started(nodes: int, **options: object) -> Run:
    return Run(nodes, **options).feed(Prepared())


def test_nobody_is_offered_anything_before_the_deltas_are_built():
    assert Run(3).ready().offered == []


@pytest.mark.parametrize(("nodes", "size"), [(5, 6), (300, 6), (500, 10), (1000, 20), (10_000, 20)])
def test_the_first_wave_is_two_percent_but_six_to_twenty(nodes, size):
    assert first_wave(Options(), nodes) == size


def test_the_next_wave_opens_when_the_last_one_is_through_but_for_what_may_be_chance():
    run = started(100, first_wave=20).ready()
    assert len(run.offered) == 20
    for name in run.offered[:18]:
        run.feed(Serves(name))
    run.ready()
    assert len(run.offered) == 20
    run.feed(Serves(run.offered[18])).ready()
    assert run.state.wave == 2
    assert len(run.offered) > 40


def test_a_wave_is_as_large_as_its_budget_allows_after_what_has_failed():
    # (20 nodes, no failure): at most 7.73 % fail, with a confidence of 80 %.
    sizes = []
    for failures in (0, 1, 2):
        run = started(4000, first_wave=20).ready()
        for name in run.offered[:failures]:
            run.feed(Fails(name, "x"))
        for name in run.offered[failures:]:
            run.feed(Serves(name))
        sizes.append(run.state.wave_size)
    assert sizes == [53, 25, 20]


def test_a_wave_never_grows_by_more_than_the_factor():
    run = started(4000, first_wave=20, factor=2.0).ready()
    for name in run.offered:
        run.feed(Serves(name))
    assert run.state.wave_size == 40


def test_nine_tenths_of_a_wave_must_have_answered_whatever_the_waves_before_say():
    run = started(5000, first_wave=2000, factor=1.0).ready()
    for name in run.offered:
        run.feed(Serves(name))
    run.ready()
    assert (run.state.wave, len(run.offered)) == (2, 4000)
    for name in run.offered[2000:3799]:
        run.feed(Serves(name))
    assert run.state.wave == 2


def test_an_offline_node_neither_blocks_a_wave_nor_holds_a_lease():
    run = started(4, first_wave=2)
    run.ready("n2", "n3")
    assert run.offered == ["n2", "n3"]
    run.feed(Serves("n2")).feed(Serves("n3")).ready("n0")
    assert run.offered == ["n2", "n3", "n0"]


def test_a_lease_that_is_free_waits_for_the_node_that_comes_back():
    run = started(2, first_wave=2).ready("n0")
    run.feed(Serves("n0"))
    assert run.state.status is Status.RUNNING
    run.ready("n1").feed(Serves("n1"))
    assert run.state.status is Status.DONE
    assert run.state.reason == "2 of 2 nodes serve it"


def test_a_failure_that_may_be_chance_is_written_down_and_the_rollout_goes_on():
    run = started(400, first_wave=20).ready()
    run.feed(Fails("n0", "golden outputs differ"))
    assert run.state.status is Status.RUNNING
    assert run.notes[-2] == "n0 failed: golden outputs differ"
    assert run.notes[-1].startswith("1 of 20 started nodes failed (evidence ")
    assert run.notes[-1].endswith("50 holds it, 200 stops it")


def test_of_fewer_than_ten_nodes_any_failure_holds():
    run = started(400, first_wave=9).ready().feed(Fails("n0", "x"))
    assert run.state.status is Status.HELD
    run = started(400, first_wave=10).ready().feed(Fails("n0", "x"))
    assert run.state.status is Status.RUNNING


def test_on_request_one_failure_holds_the_rollout_and_nobody_is_offered_more():
    run = started(40, first_wave=12, hold_on_any=True).ready()
    run.feed(Fails("n0", "golden outputs differ"))
    assert run.state.status is Status.HELD
    assert run.state.reason == "n0 failed: golden outputs differ"
    for name in run.offered[1:]:
        run.feed(Serves(name))
    run.ready()
    assert len(run.offered) == 12


def test_failures_that_speak_against_the_release_hold_it():
    run = started(400, first_wave=20).ready()
    for name in run.offered[:3]:
        run.feed(Fails(name, "x"))
    assert run.state.status is Status.RUNNING
    run.feed(Fails(run.offered[3], "golden outputs differ"))
    assert run.state.status is Status.HELD
    assert run.state.reason == "n3 failed: golden outputs differ (and 3 more)"
    assert "held in wave 1: 4 of 20 started nodes failed (evidence 157 to 1" in run.notes[-1]


def test_resuming_opens_no_wave_by_itself_and_the_gate_is_passed_anew():
    run = started(40, first_wave=6, hold_on_any=True).ready()
    run.feed(Fails("n0", "x"))
    for name in run.offered[1:]:
        run.feed(Serves(name))
    run.feed(Resume())
    assert (run.state.status, run.state.wave) == (Status.RUNNING, 1)
    run.feed(Tick())
    assert run.state.wave == 2


def test_a_second_failure_after_resuming_holds_again():
    run = started(300, first_wave=100, hold_on_any=True).ready()
    run.feed(Fails("n0", "x")).feed(Resume()).feed(Fails("n1", "y"))
    assert run.state.status is Status.HELD
    assert run.state.reason == "n1 failed: y"


def test_a_class_of_hardware_on_which_it_fails_stops_it_though_the_fleet_is_well():
    run = Run(0, first_wave=200)
    kinds = [(f"n{index}", "rare" if index % 50 == 0 else "common") for index in range(400)]
    run.names = [node for node, _ in kinds]
    run.feed(Joined(tuple(kinds))).feed(Prepared()).ready()
    rare = [node for node, kind in kinds if kind == "rare" and node in run.offered]
    assert len(rare) == 4
    for node in rare:
        run.feed(Fails(node, "illegal instruction"))
    assert run.state.status is Status.STOPPED
    assert "4 of 200 started nodes failed, 4 of 4 that are rare" in run.state.reason


def test_failures_without_doubt_stop_it_and_order_everybody_back():
    run = started(40, first_wave=6).ready()
    run.feed(Serves("n5"))
    for name in ("n0", "n1", "n2"):
        run.feed(Fails(name, "x"))
    assert run.state.status is Status.STOPPED
    assert "3 of 6 started nodes failed" in run.state.reason
    assert set(run.recalled) == set(run.names[:6])


def test_a_node_that_never_answers_is_a_failure():
    run = started(6, first_wave=6).ready().feed(Tick(), after_s=OVERDUE_S - 1)
    assert run.state.status is Status.RUNNING
    run.feed(Tick(), after_s=1)
    assert run.state.status is Status.STOPPED
    assert run.failures == 6


def test_a_node_that_serves_after_all_is_no_failure_any_more():
    run = started(40, first_wave=6, hold_on_any=True).ready()
    for name in run.offered[1:]:
        run.feed(Serves(name))
    run.feed(Tick(), after_s=OVERDUE_S)
    assert run.state.status is Status.HELD
    run.feed(Serves("n0"))
    assert run.failures == 0
    assert run.state.status is Status.HELD


def test_a_node_that_failed_the_release_before_is_not_offered_it():
    run = Run(2, first_wave=2).feed(Fails("n0", "failed last week")).feed(Prepared()).ready()
    assert run.offered == ["n1"]
    run.feed(Serves("n1"))
    assert run.state.status is Status.DONE


def test_a_node_that_serves_it_already_needs_no_lease():
    run = Run(2, first_wave=1).feed(Serves("n0")).feed(Prepared()).ready()
    assert run.offered == ["n1"]
    assert run.started == 1


def test_a_node_that_served_and_then_failed_is_a_failure():
    run = started(40, first_wave=6).ready().feed(Serves("n0")).feed(Fails("n0", "error rate"))
    assert (run.standing("n0"), run.failures) == (Standing.FAILED, 1)


def test_stopping_recalls_those_that_are_not_through():
    run = started(3, first_wave=2).ready().feed(Serves("n0")).feed(Stop("by an operator"))
    assert run.recalled == ["n1"]
    assert run.standing("n0") is Standing.SERVING


def test_stopping_with_back_recalls_the_others_too():
    run = started(3, first_wave=2).ready().feed(Serves("n0"))
    run.feed(Stop("by an operator", back=True))
    assert run.recalled == ["n0", "n1"]


def test_a_node_that_joins_gets_its_turn():
    run = started(1, first_wave=5).ready().feed(Joined((("late", "rpi4"),)))
    run.ready("late")
    assert run.offered == ["n0", "late"]


def test_a_rollout_that_has_ended_stays_as_it_is():
    run = started(1, first_wave=1).feed(Stop("enough"))
    before = run.state
    run.feed(Serves("n0")).feed(Resume()).ready().feed(Tick(), after_s=1e6)
    assert run.state == before
    assert run.offered == []


def test_the_state_survives_a_restart_as_json():
    run = started(8, first_wave=6).ready().feed(Fails("n1", "x"))
    assert msgspec.json.decode(msgspec.json.encode(run.state), type=Rollout) == run.state


def test_every_wave_waits_until_the_deltas_from_what_is_out_there_are_built():
    run = started(40, first_wave=6).ready()
    run.prepares = False
    for name in run.offered:
        run.feed(Serves(name))
    run.ready()
    assert (run.state.status, run.state.wave, len(run.offered)) == (Status.PREPARING, 1, 6)
    run.feed(Prepared()).ready()
    assert (run.state.wave, len(run.offered) > 6) == (2, True)


def test_a_failure_while_deltas_are_built_still_holds_and_the_wave_does_not_open():
    run = started(40, first_wave=6).ready()
    run.prepares = False
    for name in run.offered:
        run.feed(Serves(name))
    run.feed(Fails("n0", "error rate")).feed(Prepared())
    assert (run.state.status, run.state.wave) == (Status.HELD, 1)


def test_a_paused_rollout_offers_nothing_and_goes_on_where_it_was():
    run = started(40, first_wave=6).ready("n0").feed(Pause("visitors", by="anna")).ready()
    assert (run.state.status, run.state.reason) == (Status.PAUSED, "visitors")
    assert run.offered == ["n0"]
    run.feed(Serves("n0")).feed(Resume(by="anna"))
    assert (run.state.status, run.state.wave) == (Status.RUNNING, 1)
    assert run.ready().offered == ["n0", "n1", "n2", "n3", "n4", "n5"]


def test_a_rollout_that_was_paused_before_its_first_wave_opens_it_after_resuming():
    run = Run(9, first_wave=2).feed(Pause()).feed(Prepared()).ready()
    assert (run.state.status, run.offered) == (Status.PAUSED, [])
    run.feed(Resume())
    assert run.state.wave == 0
    run.feed(Tick()).ready()
    assert run.offered == ["n0", "n1"]


def test_failures_stop_a_paused_rollout_too():
    run = started(40, first_wave=6).ready().feed(Pause())
    for name in ("n0", "n1", "n2"):
        run.feed(Fails(name, "x"))
    assert run.state.status is Status.STOPPED


def test_nothing_is_offered_and_no_wave_opens_while_the_fleet_is_frozen():
    run = started(40, first_wave=6).ready("n0", "n1", "n2", "n3", "n4")
    run.feed(Frozen(Freeze(reason="Christmas", by="anna"))).ready()
    assert len(run.offered) == 5
    for name in run.offered:
        run.feed(Serves(name))
    assert run.state.wave == 1
    run.feed(Frozen(None)).ready()
    assert len(run.offered) == 6
    run.feed(Frozen(Freeze())).feed(Serves("n5")).ready()
    assert (run.state.wave, len(run.offered)) == (1, 6)
    run.feed(Frozen(None)).ready()
    assert run.state.wave == 2


def test_a_freeze_ends_by_the_clock():
    run = Run(4, first_wave=2).feed(Frozen(Freeze(until_ms=60_000))).feed(Prepared()).ready()
    assert run.offered == []
    run.feed(Tick(), after_s=61).ready()
    assert run.offered == ["n0", "n1"]
    assert "the freeze is over" in run.notes


def test_an_emergency_goes_out_in_a_frozen_fleet():
    run = Run(4, first_wave=2, overrides_freeze=True).feed(Frozen(Freeze(reason="Christmas")))
    assert run.feed(Prepared()).ready().offered == ["n0", "n1"]
    assert "the fleet is frozen: Christmas (this rollout goes on)" in run.notes


def test_the_first_wave_waits_for_a_second_person():
    run = Run(9, first_wave=2, approval=Approval.START).feed(Prepared()).ready()
    assert (run.state.status, run.offered) == (Status.AWAITING, [])
    run.feed(Approve("bert")).ready()
    assert (run.state.approved_by, run.offered) == ("bert", ["n0", "n1"])


def test_the_waves_behind_the_canary_wait_for_a_second_person():
    run = started(40, first_wave=6, approval=Approval.CANARY).ready()
    for name in run.offered:
        run.feed(Serves(name))
    run.ready()
    assert (run.state.status, len(run.offered)) == (Status.AWAITING, 6)
    run.feed(Approve("bert")).ready()
    assert run.state.wave == 2


def test_who_has_approved_already_is_not_asked_again():
    run = started(40, first_wave=6, approval=Approval.CANARY).feed(Approve("bert")).ready()
    for name in run.offered:
        run.feed(Serves(name))
    assert run.ready().state.wave == 2


def test_a_rollout_that_is_done_can_still_go_back():
    run = started(2, first_wave=2).ready().feed(Serves("n0")).feed(Serves("n1"))
    assert run.state.status is Status.DONE
    run.feed(Stop("wrong labels", back=True, by="anna"))
    assert (run.state.status, run.recalled) == (Status.STOPPED, ["n0", "n1"])


EVENTS = st.one_of(
    st.builds(Frozen, st.sampled_from([None, Freeze(), Freeze(until_ms=300_000)])),
    st.builds(Pause),
    st.builds(Approve, st.just("bert")),
    st.builds(Serves, st.sampled_from([f"n{i}" for i in range(12)])),
    st.builds(Fails, st.sampled_from([f"n{i}" for i in range(12)]), st.just("x")),
    st.builds(Ready, st.frozensets(st.sampled_from([f"n{i}" for i in range(12)]))),
    st.just(Prepared()),
    st.just(Tick()),
    st.just(Resume()),
)


@given(
    st.integers(1, 12),
    st.integers(1, 6),
    st.lists(st.tuples(EVENTS, st.integers(0, 60)), max_size=80),
    st.sampled_from(Approval),
    st.booleans(),
)
def test_whatever_happens_the_rules_hold(nodes, size, events, approval, overrides):
    run = Run(nodes, first_wave=size, approval=approval, overrides_freeze=overrides)
    run.prepares = False
    for event, after_s in events:
        before, offered = run.state, len(run.offered)
        members = dict(run.roster.members)
        run.feed(event, after_s=after_s)
        new = run.offered[offered:]
        # Leases: only of an open wave, only to nodes that are ready, never to one that failed.
        if new:
            assert before.status is Status.RUNNING
            assert isinstance(event, Ready)
            assert set(new) <= event.nodes
            assert all(members[node].standing is Standing.WAITING for node in new)
        # A freeze and a person that was not asked stop both; a wave opens when its deltas are there.
        if new or run.state.wave > before.wave:
            assert overrides or before.freeze is None or not before.freeze.holds_at(run.now_ms)
            assert approval is not Approval.START or before.approved_by
        if run.state.wave > before.wave:
            assert (before.status, event) == (Status.PREPARING, Prepared())
            assert approval is Approval.NONE or before.wave == 0 or before.approved_by
        in_wave = [m for m in run.roster.members.values() if m.wave and m.wave == run.state.wave]
        assert len(in_wave) <= run.state.wave_size
        # A wave opens only when the last one is claimed and nine tenths of it are resolved.
        if run.state.wave > before.wave >= 1:
            last = [m for m in run.roster.members.values() if m.wave == before.wave]
            resolved = sum(m.standing in {Standing.SERVING, Standing.FAILED} for m in last)
            assert len(last) == before.wave_size
            assert resolved >= 0.9 * before.wave_size
        # What the roster counts along is what there is, in the order that a new one would have.
        anew = Roster(run.roster.members.items())
        counted = {name: getattr(run.roster.counts, name) for name in Counts.__slots__}
        for name, value in counted.items():
            fresh = getattr(anew.counts, name)
            assert value == fresh or {k: v for k, v in value.items() if v} == fresh
        # Who was offered it in the same moment may come in any order.
        due = [
            [due_key(each.members[node]) for node in each.offered()] for each in (run.roster, anew)
        ]
        assert due[0] == due[1]
        assert set(run.roster.offered()) == set(anew.offered())
        assert len(run.offered) == len(set(run.offered))
