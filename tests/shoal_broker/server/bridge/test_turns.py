"""Messages leave in the order in which they came, whatever connection breaks meanwhile."""

import asyncio

from shoal_broker.server.bridge.turns import Turns

FIRST, SECOND = 1.0, 2.0


async def test_on_one_connection_nobody_waits():
    turns = Turns()
    for turn in [turns.come() for _ in range(3)]:
        assert await turns.wait(turn, FIRST)


async def test_on_a_new_connection_who_came_later_waits_for_who_came_earlier():
    turns = Turns()
    early, late = turns.come(), turns.come()
    assert await turns.wait(early, FIRST)
    assert await turns.wait(late, FIRST)
    later = asyncio.create_task(turns.wait(late, SECOND))
    await asyncio.sleep(0)
    assert not later.done()
    assert await turns.wait(early, SECOND)
    # It looks again: the connection may be another one by now.
    assert not await later
    assert await turns.wait(late, SECOND)


async def test_who_is_gone_is_waited_for_no_more():
    turns = Turns()
    early, late = turns.come(), turns.come()
    later = asyncio.create_task(turns.wait(late, FIRST))
    await asyncio.sleep(0)
    turns.gone(early)
    assert not await later
    assert await turns.wait(late, FIRST)
