"""Shadow runs on a real engine: live requests are answered by the old release, whatever the new one says of them."""

import asyncio
import contextlib

import pytest
from tests.shoal_agent.inference import tiny_release

from shoal_agent.inference.engine import Engine
from shoal_agent.inference.errors import ModelRefusedError
from shoal_contract.release import ShadowTable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextlib.asynccontextmanager
async def two(tmp_path, seed: int):
    """An engine where the tiny release serves and the one of `seed` is admitted, and their ids."""
    first = tiny_release.write(tmp_path / "old", seed=1)
    second = tiny_release.write(tmp_path / "new", seed=seed)
    async with Engine.open() as engine:
        await engine.admit(first, tmp_path / "old")
        await engine.switch("tiny", first)
        await engine.admit(second, tmp_path / "new", replaces="tiny")
        yield engine, first, second


async def ask_for_ever(engine: Engine, release: bytes) -> None:
    n = 0
    while True:
        n += 1
        item = tiny_release.item(n % 251, n * 7 % 251, n * 31 % 251, n * 101 % 251)
        served = await engine.classify("tiny", [item], deadline_s=5)
        assert served.release == release
        assert served.answers[0].label == tiny_release.expected_label(item, 1)
        await asyncio.sleep(0.002)


async def with_traffic(engine: Engine, first: bytes, second: bytes, table: ShadowTable) -> str:
    asking = asyncio.create_task(ask_for_ever(engine, first))
    try:
        return await engine.shadow("tiny", second, table)
    finally:
        assert not asking.done(), "a live request failed"
        asking.cancel()
        await asyncio.wait([asking])


async def test_a_release_that_answers_alike_passes_with_its_figures(tmp_path):
    async with two(tmp_path, 1) as (engine, first, _):
        # The same weights under another id.
        again = tiny_release.write(tmp_path / "again", seed=1, spec={'"1.0.1"': '"1.0.9"'})
        await engine.admit(again, tmp_path / "again", replaces="tiny")
        table = ShadowTable(requests=20, within_s=60, least=20, agreement=1.0, without="refuse")
        outcome = await with_traffic(engine, first, again, table)
        assert outcome.startswith("20 of 20 rows of 20 live requests agree")
        assert engine.serving("tiny") == first


async def test_a_release_that_answers_otherwise_is_refused_and_nobody_gets_its_answers(tmp_path):
    async with two(tmp_path, 3) as (engine, first, second):
        table = ShadowTable(requests=20, within_s=60, least=20, agreement=0.99)
        with pytest.raises(
            ModelRefusedError, match=r"of 20 rows of 20 live requests agree .* 99.0%"
        ):
            await with_traffic(engine, first, second, table)
        assert engine.serving("tiny") == first


async def test_without_traffic_the_release_says_what_follows(tmp_path):
    async with two(tmp_path, 2) as (engine, _, second):
        passing = ShadowTable(requests=20, within_s=0.2)
        assert "0 of 0 rows" in await engine.shadow("tiny", second, passing)
        strict = ShadowTable(requests=20, within_s=0.2, without="refuse")
        with pytest.raises(ModelRefusedError, match=r"0 live requests in 0\.2 s, 20 are needed"):
            await engine.shadow("tiny", second, strict)
