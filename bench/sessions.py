"""`sessions.py PORT COUNT IDLE_S`: many agents' sessions in one process; started by fleet.py.

Each is a real connection of its own, on the codec transport, with one subscription. It prints what
memory and idle CPU they take, then waits until the broker, which goes and comes back, has them all again,
and prints how long that took.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import resource
import sys
import time

import structlog

import processes
from shoal_broker.session import Inbound, Session, SessionConfig
from shoal_contract.topics import Topics

AT_ONCE = 100
TIMEOUT_S = 120.0
LOOK_S = 0.1


async def _nothing(_inbound: Inbound) -> None:
    """Nobody sends them anything."""


async def main(port: int, count: int, idle_s: float) -> None:
    """Measure, line by line."""
    topics = Topics()
    async with contextlib.AsyncExitStack() as stack:
        # What the first one brings (modules, threads) is not what each takes.
        first_one = await stack.enter_async_context(_session(topics, port, count))
        await first_one.wait_connected(TIMEOUT_S)
        before_bytes = processes.pss_bytes()
        sessions: list[Session] = []
        started_s = time.perf_counter()
        for first in range(0, count, AT_ONCE):
            batch = [
                await stack.enter_async_context(_session(topics, port, number))
                for number in range(first, min(first + AT_ONCE, count))
            ]
            for session in batch:
                await session.wait_connected(TIMEOUT_S)
            sessions += batch
        connected_s = time.perf_counter() - started_s
        gc.collect()
        session_bytes = (processes.pss_bytes() - before_bytes) / count
        cpu_before_s, idle_started_s = _cpu_s(), time.perf_counter()
        await asyncio.sleep(idle_s)
        idle_share = (_cpu_s() - cpu_before_s) / (time.perf_counter() - idle_started_s)
        _print(
            connected=sum(session.connected for session in sessions),
            connected_s=connected_s,
            session_bytes=session_bytes,
            idle_share=idle_share,
        )
        await _follow(sessions)


def _session(
    topics: Topics, port: int, number: int
) -> contextlib.AbstractAsyncContextManager[Session]:
    node = f"n{number}"
    config = SessionConfig(
        host="127.0.0.1",
        port=port,
        client_id=node,
        close_timeout_s=0.1,
        transport="codec",
    )
    return Session.open(config, subscriptions={topics.commands(node): _nothing})


async def _follow(sessions: list[Session]) -> None:
    """A line on stdin says when the broker that had gone was there again, as `time.time()`."""
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    cpu_before_s = _cpu_s()
    async with asyncio.timeout(TIMEOUT_S):
        for session in sessions:
            # Connected before the broker went is not connected again.
            while not (session.connected and session.stats.reconnects):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(LOOK_S)
    _print(
        back=sum(session.connected for session in sessions),
        back_s=time.time() - float(line),
        client_cpu_s=_cpu_s() - cpu_before_s,
    )


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _print(**figures: float) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
    )
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
