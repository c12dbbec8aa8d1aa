"""Waiting in a test for something that only another process or the event loop can bring about."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], *, timeout_s: float = 45) -> None:
    """Return when it holds; TimeoutError when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - nobody sets an event for what is looked at here
            await asyncio.sleep(0.001)
