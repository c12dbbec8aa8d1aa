"""Measures a model that is given as a function: how long one input takes, and how batches of several sizes do."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from shoal_agent.inference.pace import Point

_LATENCY_RUNS: Final = 50
_LATENCY_S: Final = 1.0
_CALIBRATION_RUNS: Final = 5
_CALIBRATION_S: Final = 0.25
_CALIBRATION_WALL_S: Final = 3.0
"""On a busy board, where a thread gets but a part of a core."""
_HOPELESS_SHARE: Final = 0.8
"""Larger batches are not tried once one is so much less productive than the best."""


def latency_us(run: Callable[[], object]) -> tuple[int, int]:
    """p50 and p95 of up to 50 runs within a second, in microseconds."""
    times: list[int] = []
    until = time.perf_counter() + _LATENCY_S
    while len(times) < _LATENCY_RUNS and (not times or time.perf_counter() < until):
        started = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - started) // 1000)
    times.sort()
    return times[len(times) // 2], times[min(len(times) - 1, len(times) * 95 // 100)]


@dataclass(frozen=True, slots=True)
class Timing:
    """Batches of so many rows: how long one took, and what a row cost when they came one after the other."""

    rows: int
    p50_us: int
    p95_us: int
    rows_per_s: float
    cpu_us_per_row: float


def by_rows(
    batch_of: Callable[[int], Callable[[], object]], limit: int, *, seconds_each: float
) -> Iterator[Timing]:
    """Timings of batches of 1, 2, 4 ... and `limit` rows, each as it is known.

    Args:
        batch_of: gives what runs so many rows.
        limit: rows of the largest batch.
        seconds_each: how long each size is measured; a single batch may take longer.
    """
    rows = 1
    while rows <= limit:
        run = batch_of(rows)
        run()  # the first one takes memory
        times: list[int] = []
        cpu_s, started = time.process_time(), time.perf_counter()
        while not times or time.perf_counter() < started + seconds_each:
            before = time.perf_counter_ns()
            run()
            times.append((time.perf_counter_ns() - before) // 1000)
        took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
        times.sort()
        done = len(times) * rows
        yield Timing(
            rows=rows,
            p50_us=times[len(times) // 2],
            p95_us=times[min(len(times) - 1, len(times) * 95 // 100)],
            rows_per_s=round(done / took_s, 1),
            cpu_us_per_row=round(cpu_s / done * 1e6, 1),
        )
        rows = min(rows * 2, limit) if rows < limit else limit + 1


def calibrate(
    batch_of: Callable[[int], Callable[[], object]], limit: int, *, is_one_thread: bool
) -> tuple[Point, ...]:
    """Microseconds by rows of a batch: 1, 2, 4 ... and `limit`, as far as a quarter of a second goes.

    Args:
        batch_of: gives what runs so many rows.
        limit: rows of the largest batch.
        is_one_thread: the runs take place in this thread alone. Then its own time counts: a busy board is
            not a slow one.
    """
    clock = time.thread_time if is_one_thread else time.perf_counter
    stop = _Until(clock, clock() + _CALIBRATION_S, time.perf_counter() + _CALIBRATION_WALL_S)
    points: list[Point] = []
    rows = 1
    while rows <= limit:
        points.append((rows, _quickest_us(batch_of(rows), stop)))
        rate, best = rows / points[-1][1], max(n / us for n, us in points)
        if stop.is_over() or rate < _HOPELESS_SHARE * best:
            break
        rows = min(rows * 2, limit) if rows < limit else limit + 1
    return tuple(points)


@dataclass(frozen=True, slots=True)
class _Until:
    """When a calibration has taken enough, by its own clock or by the wall's."""

    clock: Callable[[], float]
    own_s: float
    wall_s: float

    def is_over(self) -> bool:
        return self.clock() > self.own_s or time.perf_counter() > self.wall_s


def _quickest_us(run: Callable[[], object], stop: _Until) -> int:
    """Of a few runs: whatever disturbs one makes it slower, never quicker."""
    best_s = float("inf")
    for number in range(_CALIBRATION_RUNS):
        started = stop.clock()
        run()
        best_s = min(best_s, stop.clock() - started)
        if number and stop.is_over():
            break
    return max(1, round(best_s * 1e6))
