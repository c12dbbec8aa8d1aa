"""The bench of a release for a fleet: a small run of its own, with every blob looked at."""

import asyncio

import pytest

pytestmark = pytest.mark.slow


def test_the_controller_sends_a_release_once_and_every_board_has_it(bench, tmp_path):
    sources = bench("sources")
    case = sources.Case(4, model_bytes=100_000, has_lan=False)
    found = asyncio.run(sources._round(case, tmp_path, 1))
    release_bytes = sum(sources.SMALL_BYTES) + 100_000
    assert release_bytes < found["up"] < 1.1 * release_bytes
    assert found["broker"] == 4 * release_bytes
    assert found["peers"] == 0


def test_neighbours_take_their_share_from_the_broker(bench, tmp_path):
    sources = bench("sources")
    case = sources.Case(8, model_bytes=100_000, has_lan=True)
    found = asyncio.run(sources._round(case, tmp_path, 1))
    assert found["peers"] > 0
    assert found["broker"] + found["peers"] == 8 * (sum(sources.SMALL_BYTES) + 100_000)
