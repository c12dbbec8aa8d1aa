import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_broker.slots import Slots


async def test_places_go_to_whoever_has_waited_longest():
    slots = Slots(1)
    assert slots.try_take()
    order: list[int] = []

    async def take(number: int) -> None:
        await slots.take()
        order.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(take(number))
        await asyncio.sleep(0)
        slots.give()
        # Nobody pushes in, though a place is free for a moment.
        assert not slots.try_take()
        await asyncio.sleep(0)
        slots.give()
        await asyncio.sleep(0)
        slots.give()
    assert order == [0, 1, 2]


async def test_a_place_given_to_somebody_who_left_in_that_moment_goes_on():
    slots = Slots(1)
    assert slots.try_take()
    first, second = (asyncio.create_task(slots.take()) for _ in range(2))
    await asyncio.sleep(0)
    slots.give()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with asyncio.timeout(5):
        await second


async def test_somebody_who_left_before_a_place_came_by_takes_none():
    slots = Slots(1)
    assert slots.try_take()
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)
    waiting.cancel()
    slots.give()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert slots.try_take()


@given(st.lists(st.integers(0, 3), max_size=60))
async def test_whatever_happens_no_place_is_lost_and_none_is_made(plan):
    slots, taken = Slots(2), 0
    waiting: list[asyncio.Task[None]] = []
    for action in plan:
        if action == 0:
            taken += slots.try_take()
        elif action == 1:
            waiting.append(asyncio.create_task(slots.take()))
        elif action == 2 and taken:
            taken -= 1
            slots.give()
        elif action == 3 and waiting:
            waiting[len(plan) % len(waiting)].cancel()
        await asyncio.sleep(0)
        taken += sum(task.done() and not task.cancelled() for task in waiting)
        waiting = [task for task in waiting if not task.done()]
        assert taken <= 2
        assert not waiting or taken == 2 or any(task.cancelling() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    taken += sum(not task.cancelled() for task in waiting)
    free = 0
    while slots.try_take():
        free += 1
    assert free + taken == 2
