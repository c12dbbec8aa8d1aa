"""The rules that the rollout bench compares: each does what its engine documents, upon the same fleets."""

from types import SimpleNamespace

import pytest

NODES = 400


@pytest.fixture
def sim(bench):
    """The simulation as its script sees it, with releases of every kind."""
    names = (
        vars(bench("rollout_fleet")) | vars(bench("rollout_peers")) | vars(bench("rollout_ours"))
    )
    release = names["Release"]
    return SimpleNamespace(
        **names,
        GOOD=release(base=0.01),
        REPORTS=release(1.0),
        SILENT=release(1.0, is_silent=True),
    )


def run(sim, rules, release, *, nodes=NODES, seed=1):
    return sim.course(sim.fleet(nodes, release, seed), rules)


def test_the_same_seed_gives_the_same_fleet_and_another_another(sim):
    assert sim.fleet(50, sim.GOOD, 1) == sim.fleet(50, sim.GOOD, 1)
    assert sim.fleet(50, sim.GOOD, 1) != sim.fleet(50, sim.GOOD, 2)
    assert 0.8 < sum(not board.online_s for board in sim.fleet(1000, sim.GOOD, 1)) / 1000 < 0.97


def test_ours_ends_a_bad_release_in_the_first_wave_and_lets_a_good_one_through(sim):
    for release in (sim.REPORTS, sim.SILENT):
        bad = run(sim, sim.Shoal(seed="1"), release)
        assert bad.ended in {"held", "stopped"}
        assert bad.broken <= 8
        assert bad.through_h is None
    good = run(sim, sim.Shoal(seed="1"), sim.GOOD)
    assert (good.ended, good.broken) == ("", 0)
    assert good.through_h < 5


def test_ours_sees_a_class_of_hardware_that_fails_alone(sim):
    rules = sim.Shoal(seed="1")
    found = run(sim, rules, sim.Release(1.0, only=sim.RARE_KIND), nodes=2000)
    assert found.ended
    assert rules.waves == 1


def test_hawkbit_pauses_at_the_error_threshold_and_waits_for_ever_for_who_is_silent(sim):
    def rules():
        return sim.HawkBit([0.1] * 10, success_percent=80, error_percent=30)

    assert run(sim, rules(), sim.REPORTS).ended == "paused"
    assert run(sim, rules(), sim.REPORTS).started <= NODES / 10
    silent = run(sim, rules(), sim.SILENT)
    assert silent.ended == ""
    assert silent.started <= NODES / 10


def test_aws_aborts_what_failed_and_what_timed_out_and_cancels_what_has_not_begun(sim):
    def rules(timeout_min):
        aborts = (sim.Abort(10, 10), sim.Abort(10, 10, timed_out=True))
        return sim.AwsJobs(
            base_rate=2,
            factor=2,
            grows_at=20,
            grows_by="succeeded",
            aborts=aborts,
            timeout_min=timeout_min,
        )

    assert run(sim, rules(None), sim.REPORTS).ended == "aborted"
    assert run(sim, rules(30), sim.SILENT).ended == "aborted"
    # Without a time-out, silence is no failure.
    assert run(sim, rules(None), sim.SILENT).broken > 0.85 * NODES


def test_mender_s_phases_go_by_the_clock_and_nothing_stops_them(sim):
    found = run(sim, sim.Mender([(0.1, 0.0), (0.9, 2.0)]), sim.REPORTS)
    assert found.ended == ""
    assert found.broken > 0.9 * NODES
    assert run(sim, sim.Mender([(0.1, 0.0), (0.9, 2.0)]), sim.GOOD).through_h > 2


@pytest.mark.parametrize("release", ["REPORTS", "SILENT"])
def test_flightctl_waits_for_approval_when_a_batch_falls_short(sim, release):
    found = run(sim, sim.FlightCtl([10], success_percent=70, timeout_h=1), getattr(sim, release))
    assert found.ended == "waits for approval"
    assert found.broken <= 10


def test_a_rollout_is_watched_for_two_weeks(sim):
    assert sim.HORIZON_S == 14 * 86_400
    # Who is away longer gets nothing.
    assert run(sim, sim.Mender([(1.0, 0.0)]), sim.GOOD).started >= 0.99 * NODES
