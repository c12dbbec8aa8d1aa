"""Waits for a disk that refuses: what must be written is tried until it is. Decides nothing else."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from shoal_broker.bus_errors import StoreError

log = structlog.get_logger()

RETRY_S = 2.0

T = TypeVar("T")


async def until_stored(write: Callable[[], Awaitable[T]], *, what: str) -> T:
    """Return what `write` returned, once it does not raise StoreError.

    What is written in one transaction may be tried again as a whole. Says once that it waits.
    """
    told = False
    while True:
        try:
            return await write()
        except StoreError as exc:
            if not told:
                log.error("cannot be stored", what=what, reason=str(exc), retry_s=RETRY_S)  # noqa: TRY400 - the message says it all
                told = True
        await asyncio.sleep(RETRY_S)
