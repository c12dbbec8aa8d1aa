"""What is on probation, when it goes back, and what a restart makes of it."""

from dataclasses import replace

import pytest

from shoal_agent.errors import UnusableReleaseError
from shoal_agent.inference.served import ModelFacts
from shoal_agent.probation import MAX_ATTEMPTS, Probation
from shoal_broker.store import Store
from shoal_contract.release import GateTable

OLD, NEW = b"o" * 32, b"n" * 32
GATE = GateTable(probation_s=60.0, error_share=0.2, latency_factor=2.0)
WELL = ModelFacts("m", "serving", 1000, 0, 1, 1000, (), None, answered=100)


@pytest.fixture
async def store(tmp_path):
    async with Store.open(tmp_path / "agent.db") as store:
        yield store


async def watched(store, *, before: ModelFacts | None = WELL) -> Probation:
    watching = await Probation.load(store)
    await watching.begin("m", NEW, GATE, before, now_s=0.0)
    return watching


async def reasons(watching: Probation, facts: ModelFacts, *, now_s: float = 1.0) -> list[str]:
    return [bad.reason for bad in await watching.look({"m": facts}, now_s=now_s)]


async def test_a_release_that_does_well_for_its_time_is_watched_no_more(store):
    watching = await watched(store)
    assert await reasons(watching, WELL, now_s=59.0) == []
    assert await reasons(watching, WELL, now_s=60.0) == []
    assert await reasons(watching, replace(WELL, failed=100), now_s=61.0) == []
    for _ in range(MAX_ATTEMPTS + 1):
        assert await watching.started({"m": NEW}) == []


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (replace(WELL, answered=6, failed=2), None),  # too few to say anything
        (replace(WELL, answered=12, failed=3), None),  # 20 %
        (replace(WELL, answered=11, failed=3), "3 of 14 requests failed"),
        (replace(WELL, broken="it loads no more"), "it loads no more"),
    ],
)
async def test_failures_beyond_its_share_and_breaking_end_a_probation(store, facts, reason):
    watching = await watched(store)
    found = await reasons(watching, facts)
    assert [reason in one for one in found] == ([True] if reason else [])


async def test_being_slow_for_a_moment_is_forgiven_and_for_three_looks_is_not(store):
    watching = await watched(store)
    slow = replace(WELL, row_us=2300)
    assert await reasons(watching, slow) == []
    assert await reasons(watching, slow) == []
    assert await reasons(watching, WELL) == []
    assert await reasons(watching, slow) == []
    assert await reasons(watching, slow) == []
    (reason,) = await reasons(watching, slow)
    assert "a row takes 2300 us, with the release before 1000 us" in reason


async def test_a_release_with_which_the_agent_keeps_ending_goes_back(store):
    await watched(store)
    for _ in range(MAX_ATTEMPTS):
        again = await Probation.load(store)
        assert await again.started({"m": NEW}) == []
    (bad,) = await again.started({"m": NEW})
    assert (bad.model, bad.release) == ("m", NEW)
    assert "ended 5 times" in bad.reason


async def test_ends_on_purpose_are_no_fault_of_the_release(store):
    watching = await watched(store)
    for _ in range(3 * MAX_ATTEMPTS):
        assert await watching.started({"m": NEW}) == []
        await watching.ended_on_purpose()


async def test_a_probation_begins_anew_after_a_start_and_only_for_what_serves(store):
    await watched(store)
    again = await Probation.load(store)
    assert await again.started({"m": NEW}) == []
    await again.goes_on("m", NEW, GATE, now_s=100.0)
    assert await reasons(again, replace(WELL, broken="no"), now_s=120.0) != []
    # Another serves by now: nothing is left of it.
    assert await again.started({"m": OLD}) == []
    fresh = await Probation.load(store)
    await fresh.goes_on("m", NEW, GATE, now_s=0.0)
    assert await reasons(fresh, replace(WELL, broken="no")) == []


async def test_trials_in_which_the_agent_ended_are_counted_and_others_are_not(store):
    watching = await Probation.load(store)
    for _ in range(10):
        await watching.attempt(NEW)
        await watching.attempt_over(NEW)
    for _ in range(MAX_ATTEMPTS):
        await watching.attempt(NEW)  # and the agent ends
    with pytest.raises(UnusableReleaseError, match="the agent ended in 5 trials of it"):
        await watching.attempt(NEW)
    # Forgiven, it has as many once more.
    await watching.attempt(NEW)
