"""Keeps many sessions on the codec transport open in one process, and tells what becomes of them.

Usage: many_sessions.py PORT FIRST COUNT BACKOFF_MAX_S. One line of JSON on stdout whenever a session is connected (number, and
seconds of the machine's monotonic clock); for every line on stdin one with the counters. Ends at the end of stdin.
"""

import asyncio
import json
import resource
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from shoal_broker import transports
from shoal_broker.session import Inbound, Session, SessionConfig

EVERYBODY = "storm/everybody"


class Counters:
    """Of all sessions of this process."""

    def __init__(self) -> None:
        self.attempts = 0
        self.received: set[int] = set()


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


async def keep_open(
    stack: AsyncExitStack, port: int, number: int, backoff_max_s: float, counters: Counters
) -> None:
    config = SessionConfig(
        host="127.0.0.1",
        port=port,
        client_id=f"storm-{number}",
        transport="codec",
        backoff_max_s=backoff_max_s,
    )
    connect = transports.connect_with(config.transport)

    @asynccontextmanager
    async def counted(*given):
        counters.attempts += 1
        async with connect(*given) as link:
            yield link

    async def connected(_session: Session, session_present: bool) -> None:  # noqa: FBT001 - the session's signature
        say(number=number, at_s=time.monotonic(), session_present=session_present)

    async def take(_inbound: Inbound) -> None:
        counters.received.add(number)

    session = Session.open(
        config, subscriptions={EVERYBODY: take}, on_connected=connected, connect=counted
    )
    await stack.enter_async_context(session)


async def main() -> None:
    port, first, count = map(int, sys.argv[1:4])
    backoff_max_s = float(sys.argv[4])
    counters = Counters()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with AsyncExitStack() as stack:
        for number in range(first, first + count):
            await keep_open(stack, port, number, backoff_max_s, counters)
        while await reader.readline():
            say(attempts=counters.attempts, received=len(counters.received))
            counters.attempts = 0


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main())
