"""The gate on p95: what is refused, and that one bad measurement refuses nothing."""

import pytest
from tests.shoal_agent.inference import tiny_release

from shoal_agent.inference.engine import Engine
from shoal_agent.inference.errors import ModelRefusedError
from shoal_agent.inference.latency_gate import is_too_slow, require_pace


@pytest.mark.parametrize(
    ("new_us", "old_us", "factor", "verdict"),
    [
        (2001, 1000, 2.0, True),
        (2000, 1000, 2.0, False),
        (9000, 1000, 0.0, False),  # any
        (300, 101, 2.0, False),  # by chance
        (302, 101, 2.0, True),
    ],
)
def test_what_is_too_slow(new_us, old_us, factor, verdict):
    assert is_too_slow(new_us, old_us, factor) is verdict


class Clock:
    """Gives these measurements, one after the other."""

    def __init__(self, *us: int) -> None:
        self.left = list(us)

    async def __call__(self) -> int:
        return self.left.pop(0)


async def test_a_release_that_was_only_disturbed_passes():
    new, old = Clock(1100), Clock(1000)
    await require_pace(9000, 1000, 2.0, measure_new=new, measure_old=old)
    assert new.left == old.left == []


async def test_a_release_that_is_slow_each_time_is_refused_with_both_figures():
    new, old = Clock(3300, 3100), Clock(1000, 1050)
    with pytest.raises(
        ModelRefusedError, match=r"3100 us, 3.1 times the 1000 us .* allows 2 times"
    ):
        await require_pace(9000, 5, 2.0, measure_new=new, measure_old=old)


async def test_where_the_old_one_was_never_measured_it_is_now():
    old = Clock(1000)
    await require_pace(1500, 0, 2.0, measure_new=Clock(), measure_old=old)
    assert old.left == []


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_the_engine_refuses_a_release_many_times_as_slow_as_the_one_that_serves(tmp_path):
    """28 bytes a value: 0.6 MB of weights are read for each answer, and 25 times as many."""
    quick, slow = tmp_path / "quick", tmp_path / "slow"
    first = tiny_release.write(quick, model=tiny_release.wide(20_000))
    second = tiny_release.write(slow, model=tiny_release.wide(500_000))
    async with Engine.open() as engine:
        await engine.admit(first, quick)
        await engine.switch("tiny", first)
        with pytest.raises(ModelRefusedError, match="too slow: p95"):
            await engine.admit(second, slow, replaces="tiny", latency_factor=2.0)
        served = await engine.classify("tiny", [tiny_release.item()], deadline_s=5)
        assert served.release == first
