"""SIGKILL of a durable broker under load: what it acknowledged is delivered, QoS 2 exactly once, in order."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.support.exact_clients import Publisher, Reader
from tests.support.killed_programs import killed_broker

from shoal_broker.codec import QoS

LONGEST_LIFE_S = 0.4


async def storm(folder, kills: int, seed: int) -> None:
    """Kill the broker again and again, at random moments of its life, and look at what came."""
    chance = random.Random(seed)  # noqa: S311 - reproducible
    async with killed_broker("embedded-durable", folder) as (killed, port):
        reader = Reader("reader", port)
        publishers = [
            Publisher(f"{int(qos)}-{number}", port, qos, reader)
            for qos in (QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE)
            for number in range(2)
        ]
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(reader.run())]
            await reader.subscribed.wait()
            running += [tasks.create_task(publisher.run()) for publisher in publishers]
            for _ in range(kills):
                await until_there_is_load(publishers)
                await asyncio.sleep(chance.uniform(0, LONGEST_LIFE_S))
                await killed.kill()
                await killed.start()
            for publisher in publishers:
                publisher.stopping = True
            await until(lambda: all(publisher.settled for publisher in publishers))
            await until(
                lambda: all(
                    reader.numbers[publisher.client_id][-1:] == [publisher.sent]
                    for publisher in publishers
                )
            )
            for task in running:
                task.cancel()
    assert killed.kills == kills
    for publisher in publishers:
        numbers = reader.numbers[publisher.client_id]
        if publisher.qos is QoS.AT_LEAST_ONCE:
            # A repeat may come again; what is new comes in its order.
            numbers = list(dict.fromkeys(numbers))
        assert numbers == list(range(1, publisher.sent + 1)), publisher.client_id


async def until_there_is_load(publishers) -> None:
    """Everybody is connected and was answered since."""
    before = [publisher.acknowledged for publisher in publishers]
    await until(
        lambda: all(
            publisher.acknowledged > count
            for publisher, count in zip(publishers, before, strict=True)
        )
    )


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - over the network
            await asyncio.sleep(0.005)


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_ten_kills_lose_nothing_that_was_acknowledged(tmp_path):
    await storm(tmp_path / "broker", kills=10, seed=10)


@pytest.mark.system
@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_hundred_kills_lose_nothing_that_was_acknowledged(tmp_path):
    await storm(tmp_path / "broker", kills=100, seed=100)
