"""kill -9 of agents at random moments of updates: they serve what they may at every start, and end on the right one."""

import asyncio
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from tests.support.board import Board, short_folder
from tests.support.hub import Hub, Release

from shoal_broker.server import Broker, BrokerConfig
from shoal_fleet import digits

LONGEST_LIFE_S = 4.0


def releases(folder: Path) -> list[Release]:
    """v1, v2, and another with the model of v1: of the three only two are on a board at a time."""
    third = folder / "third"
    shutil.copytree(digits.release_dir(1), third)
    description = third / "release.toml"
    description.write_text(description.read_text().replace('"1.0.0"', '"1.2.0"'))
    return [Release(digits.release_dir(1)), Release(digits.release_dir(2)), Release(third)]


async def kill_at_random(kills: int, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - the same moments for the same seed
    with short_folder() as folder:
        board, known = Board(folder), releases(folder)
        ids = {release.id for release in known}
        async with (
            Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
            Hub.open(broker.port, board.node) as hub,
        ):
            wanted = 0
            await hub.want(known[0])
            async with board.agent(broker.port):
                await hub.until(lambda: hub.serving() == known[0].id)
            reached, began_s = 0, time.monotonic()
            for number in range(kills):
                if hub.serving() == known[wanted].id:
                    reached += 1
                    before, wanted = known[wanted], (wanted + 1) % len(known)
                    await hub.want(known[wanted], base=before if dice.random() < 0.5 else None)
                hub.reported.clear()
                async with board.agent(broker.port) as agent:
                    life_s = dice.uniform(0.0, LONGEST_LIFE_S)
                    await asyncio.sleep(life_s)
                    agent.signal(signal.SIGKILL)
                    assert await agent.ended() == -signal.SIGKILL
                served = {report.models[0].release for report in hub.reported if report.models}
                assert served <= ids, f"kill {number}: it served nothing, or something else"
            hub.reported.clear()
            async with board.agent(broker.port):
                await hub.until(lambda: bool(hub.reported))
                assert hub.serving() in ids
                await hub.until(lambda: hub.serving() == known[wanted].id, timeout_s=30)
            took_s = time.monotonic() - began_s
            print(f"{kills} kills in {took_s:.0f} s, {reached} updates done between them: 0 wrong")


@pytest.mark.system
@pytest.mark.timeout(180)
async def test_killed_at_ten_random_moments_of_updates_a_board_ends_on_the_right_release():
    await kill_at_random(10, seed=1)


@pytest.mark.system
@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_killed_at_two_hundred_random_moments_of_updates_boards_end_on_the_right_release():
    async with asyncio.TaskGroup() as boards:
        for seed in range(4):
            boards.create_task(kill_at_random(50, seed))
