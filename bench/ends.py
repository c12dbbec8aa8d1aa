"""`ends.py hub|node KIND PORT COUNT HUB_PIDS FOLDER`: one end of the command path, a process; started by commands.py.

The hub sends commands at QoS 1 and waits for each one's answer, which comes at QoS 1 too; the node
answers. Which client an end stands on is its KIND: ours in ends_session.py, peers in ends_peers.py.
A node prints `ready` when it is subscribed and serves until it is ended. A hub prints `ready`, waits
for a line on stdin, warms up, sends COUNT commands IN_FLIGHT at a time, then some one by one, and
prints what that took as JSON; HUB_PIDS are the broker's and the node's, whose CPU it reads.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

import processes
from load import IN_FLIGHT, single_count
from measure import percentile

COMMANDS_TOPIC = "shoal/n/bench-node/c"
RESULTS_TOPIC = "shoal/n/bench-node/r"
WARM_UP = 200
TIMEOUT_S = 60.0

# Sends the command with this number; returns when its answer is there.
Ask = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Task:
    """What the command line asked of this end."""

    port: int
    count: int
    broker_pid: int
    node_pid: int
    folder: Path


@dataclass(slots=True)
class Answers:
    """Commands that wait for their answer, by number."""

    waiting: dict[int, asyncio.Future[None]] = field(default_factory=dict)

    def expect(self, number: int) -> asyncio.Future[None]:
        """To be awaited after the command was sent."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting[number] = future
        return future

    def came(self, number: int) -> None:
        """One answer; a second one to the same command finds nobody."""
        future = self.waiting.pop(number, None)
        # Done: its asker has given up.
        if future is not None and not future.done():
            future.set_result(None)


class Meter:
    """CPU of hub, node and broker between two looks."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._before = self._look()

    def took(self) -> dict[str, float]:
        """Seconds since it was made: wall time, and CPU of each end."""
        names = ("took_s", "hub_cpu_s", "node_cpu_s", "broker_cpu_s")
        pairs = zip(names, self._look(), self._before, strict=True)
        return {name: after - before for name, after, before in pairs}

    def _look(self) -> tuple[float, float, float, float]:
        mine = resource.getrusage(resource.RUSAGE_SELF)
        return (
            time.perf_counter(),
            mine.ru_utime + mine.ru_stime,
            processes.cpu_s(self._task.node_pid),
            processes.cpu_s(self._task.broker_pid),
        )


async def measure_hub(ask: Ask, task: Task) -> None:
    """Drive an asyncio client; prints the figures."""
    singles = single_count(task.count)
    lost = 0

    async def ask_many(numbers: range) -> None:
        nonlocal lost
        remaining = iter(numbers)

        async def worker() -> None:
            for number in remaining:
                await ask(number)

        try:
            async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
                for _ in range(IN_FLIGHT):
                    tasks.create_task(worker())
        except TimeoutError:
            lost += len(list(remaining)) + IN_FLIGHT

    wait_for_the_start()
    await ask_many(range(WARM_UP))
    meter = Meter(task)
    await ask_many(range(WARM_UP, WARM_UP + task.count))
    took = meter.took()
    round_trips_s: list[float] = []
    for number in range(WARM_UP + task.count, WARM_UP + task.count + singles):
        started_s = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await ask(number)
        except TimeoutError:
            lost += 1
            break
        round_trips_s.append(time.perf_counter() - started_s)
    print_figures(task, took, round_trips_s, lost=lost)


def wait_for_the_start() -> None:
    """Say that we are connected, and wait for the line that starts the measurement."""
    say_ready()
    sys.stdin.readline()


def say_ready() -> None:
    """Connected and subscribed."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def print_figures(
    task: Task, took: dict[str, float], round_trips_s: list[float], *, lost: int
) -> None:
    """One line of JSON for commands.py."""
    sent = WARM_UP + task.count + single_count(task.count)
    figures = took | {
        "sent": sent,
        "delivered": sent - lost,
        "p50_us": percentile(round_trips_s or [TIMEOUT_S], 0.5) * 1e6,
        "p99_us": percentile(round_trips_s or [TIMEOUT_S], 0.99) * 1e6,
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def main(role: str, kind: str, task: Task) -> int:
    """Run one end."""
    # Not on stdout, which commands.py reads.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    is_ours = kind.startswith("session")
    # Only who takes part is imported: a peer's library does not weigh on us, nor ours on it.
    ends = importlib.import_module("ends_session" if is_ours else "ends_peers")
    run: Callable[[str, str, Task], None] = ends.run
    run(role, kind, task)
    return 0


if __name__ == "__main__":
    # The ends import this module: it is to be one, not two.
    sys.modules["ends"] = sys.modules["__main__"]
    _, role, kind, port, count, broker_pid, node_pid, folder = sys.argv
    sys.exit(
        main(
            role,
            kind,
            Task(int(port), int(count), int(broker_pid), int(node_pid), Path(folder)),
        )
    )
