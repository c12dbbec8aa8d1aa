import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_fleet.rollout import chance_of_at_least, first_wave, step, uncounted
from shoal_fleet.rollout_state import (
    Fails,
    Joined,
    Member,
    Note,
    Offer,
    Options,
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
    assert run.feed(Tick(), after_s=OVERDUE_S + 49).state.failures == 0
    assert run.feed(Tick(), after_s=1).state.failures == 1
    waiting = run.state.members["n1"]
    assert uncounted(run.state, 1000).members["n1"] == waiting


class Run:
    """A rollout and what it has asked for."""

    def __init__(self, nodes: int, **options: object) -> None:
        self.names = [f"n{index}" for index in range(nodes)]
        self.state = Rollout(
            options=Options(overdue_s=OVERDUE_S, **options),
            members={name: Member() for name in self.names},
        )
        self.now_ms = 0
        self.offered: list[str] = []
        self.recalled: list[str] = []
        self.notes: list[str] = []

    def feed(self, event, *, after_s: float = 0) -> "Run":
        self.now_ms += round(after_s * 1000)
        self.state, actions = step(self.state, event, self.now_ms)
        for action in actions:
            match action:
                case Offer(node):
                    self.offered.append(node)
                case Recall(node):
                    self.recalled.append(node)
                case Note(text):
                    self.notes.append(text)
        return self

    def ready(self, *names: str) -> "Run":
        return self.feed(Ready(frozenset(names or self.names)))

    def standing(self, name: str) -> Standing:
        return self.state.members[name].standing


def started(nodes: int, **options: object) -> Run:
    return Run(nodes, **options).feed(Prepared())


def test_nobody_is_offered_anything_before_the_deltas_are_built():
    assert Run(3).ready().offered == []


@pytest.mark.parametrize(("nodes", "size"), [(5, 6), (300, 6), (500, 10), (1000, 20), (10_000, 20)])
def test_the_first_wave_is_two_percent_but_six_to_twenty(nodes, size):
    assert first_wave(Options(), nodes) == size


def test_waves_double_when_nine_tenths_are_resolved():
    run = started(100, first_wave=10).ready()
    assert len(run.offered) == 10
    for name in run.offered[:8]:
        run.feed(Serves(name))
    run.ready()
    assert len(run.offered) == 10
    run.feed(Serves(run.offered[8])).ready()
    assert len(run.offered) == 30
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


def test_one_failure_holds_the_rollout_and_nobody_is_offered_more():
    run = started(40, first_wave=6).ready()
    run.feed(Fails("n0", "golden outputs differ"))
    assert run.state.status is Status.HELD
    assert run.state.reason == "n0 failed: golden outputs differ"
    for name in run.offered[1:]:
        run.feed(Serves(name))
    run.ready()
    assert len(run.offered) == 6


def test_resuming_opens_no_wave_by_itself_and_the_gate_is_passed_anew():
    run = started(40, first_wave=6).ready()
    run.feed(Fails("n0", "x"))
    for name in run.offered[1:]:
        run.feed(Serves(name))
    run.feed(Resume())
    assert (run.state.status, run.state.wave) == (Status.RUNNING, 1)
    run.feed(Tick())
    assert run.state.wave == 2


def test_a_second_failure_after_resuming_holds_again():
    run = started(300, first_wave=100).ready()
    run.feed(Fails("n0", "x")).feed(Resume()).feed(Fails("n1", "y"))
    assert run.state.status is Status.HELD
    assert run.state.reason == "n1 failed: y"


def test_more_failures_than_chance_explains_stop_it_and_order_everybody_back():
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
    assert run.state.failures == 6


def test_a_node_that_serves_after_all_is_no_failure_any_more():
    run = started(40, first_wave=6).ready()
    for name in run.offered[1:]:
        run.feed(Serves(name))
    run.feed(Tick(), after_s=OVERDUE_S)
    assert run.state.status is Status.HELD
    run.feed(Serves("n0"))
    assert run.state.failures == 0
    assert run.state.status is Status.HELD


def test_a_node_that_failed_the_release_before_is_not_offered_it():
    run = Run(2, first_wave=2).feed(Fails("n0", "failed last week")).feed(Prepared()).ready()
    assert run.offered == ["n1"]
    run.feed(Serves("n1"))
    assert run.state.status is Status.DONE


def test_a_node_that_serves_it_already_needs_no_lease():
    run = Run(2, first_wave=1).feed(Serves("n0")).feed(Prepared()).ready()
    assert run.offered == ["n1"]
    assert run.state.started == 1


def test_a_node_that_served_and_then_failed_is_a_failure():
    run = started(40, first_wave=6).ready().feed(Serves("n0")).feed(Fails("n0", "error rate"))
    assert run.state.status is Status.HELD


def test_stopping_recalls_those_that_are_not_through():
    run = started(3, first_wave=2).ready().feed(Serves("n0")).feed(Stop("by an operator"))
    assert run.recalled == ["n1"]
    assert run.standing("n0") is Standing.SERVING


def test_stopping_with_back_recalls_the_others_too():
    run = started(3, first_wave=2).ready().feed(Serves("n0"))
    run.feed(Stop("by an operator", back=True))
    assert run.recalled == ["n0", "n1"]


def test_a_node_that_joins_gets_its_turn():
    run = started(1, first_wave=5).ready().feed(Joined(("late",)))
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


@given(st.integers(0, 12), st.integers(0, 400))
def test_the_tail_of_the_binomial_is_the_sum_of_its_terms(failures, count):
    share = 0.02
    exact = sum(
        math.comb(count, k) * share**k * (1 - share) ** (count - k)
        for k in range(failures, count + 1)
    )
    assert chance_of_at_least(failures, count, share) == pytest.approx(exact, abs=1e-9)


EVENTS = st.one_of(
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
)
def test_whatever_happens_the_rules_hold(nodes, size, events):
    run = Run(nodes, first_wave=size)
    for event, after_s in events:
        before, offered = run.state, len(run.offered)
        run.feed(event, after_s=after_s)
        new = run.offered[offered:]
        # Leases: only of an open wave, only to nodes that are ready, never to one that failed.
        if new:
            assert before.status is Status.RUNNING
            assert isinstance(event, Ready)
            assert set(new) <= event.nodes
            assert all(before.members[node].standing is Standing.WAITING for node in new)
        in_wave = [m for m in run.state.members.values() if m.wave and m.wave == run.state.wave]
        assert len(in_wave) <= run.state.wave_size
        # A wave opens only when the last one is claimed and nine tenths of it are resolved.
        if run.state.wave > before.wave >= 1:
            last = [m for m in run.state.members.values() if m.wave == before.wave]
            resolved = sum(m.standing in {Standing.SERVING, Standing.FAILED} for m in last)
            assert len(last) == before.wave_size
            assert resolved >= 0.9 * before.wave_size
        # No unseen failure goes together with a rollout that runs on.
        if run.state.status is Status.RUNNING:
            assert all(m.seen for m in run.state.members.values() if m.standing is Standing.FAILED)
        assert len(run.offered) == len(set(run.offered))
