"""How long the steps of a pipeline take: of each the newest few hundred times. Pure but for the clock."""

import time
from collections import deque
from collections.abc import Iterator
from typing import Final

_KEPT: Final = 256


class Steps:
    """Times in microseconds by step, in the order in which steps were first seen."""

    def __init__(self) -> None:
        self._times_us: dict[str, deque[int]] = {}

    def record(self, step: str, started_ns: int) -> None:
        """The step began at this `time.perf_counter_ns()` and has just ended."""
        self.add(step, (time.perf_counter_ns() - started_ns) // 1000)

    def add(self, step: str, took_us: int) -> None:
        """The step took so long, as somebody else has measured."""
        times = self._times_us.get(step)
        if times is None:
            times = self._times_us[step] = deque(maxlen=_KEPT)
        times.append(took_us)

    def quantiles(self, *shares: float) -> Iterator[tuple[str, list[int]]]:
        """Each step with the times that these shares (0.5: p50) of its newest runs stayed within."""
        for step, times in list(self._times_us.items()):
            ordered = sorted(times)
            yield step, [ordered[min(len(ordered) - 1, int(len(ordered) * s))] for s in shares]
