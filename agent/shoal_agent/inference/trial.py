"""The trial of a new release: a fresh worker with limited memory and time loads, checks and measures it.

What it breaks there it breaks alone; the worker that serves never sees a release that failed.
"""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from shoal_agent.inference import memory
from shoal_agent.inference.batch import Loaded
from shoal_agent.inference.errors import ModelRefusedError, WorkerLostError
from shoal_agent.inference.process_worker import ProcessWorker
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.worker import CallRefusedError

LOAD_TIMEOUT_S: Final = 60.0
_DEFAULTS: Final = WorkerSettings()
_NICER: Final = 10
_ATTEMPTS: Final = 2
"""A process may also be killed from outside: only the second death is the release's fault."""
_START_CPU_S: Final = 20
"""Importing numpy and ONNX Runtime on a slow board; the rest is what `timeout_s` allows on every core."""
_FREE_SHARE: Final = 0.8
_MOST_BYTES: Final = 1 << 40
"""Where nothing can be read, nothing is known: the kernel takes no larger limits everywhere."""


async def try_out(
    release: bytes,
    directory: Path,
    *,
    python: str,
    settings: WorkerSettings = _DEFAULTS,
    calibrate_rows: int = 0,
    memory_bytes: int | None = None,
    timeout_s: float = LOAD_TIMEOUT_S,
) -> Loaded:
    """Load the release in a process of its own.

    Args:
        release: its id.
        directory: holds its files.
        python: the interpreter for the process.
        settings: how the worker that is to serve runs models.
        calibrate_rows: the largest batch to measure; 0: none.
        memory_bytes: how much it may take; None: 80 % of what is free, on the board and in our control group.
        timeout_s: how long loading, checking and measuring may take.

    Raises:
        ModelRefusedError: it breaks a promise, or the process; the message says which.
        WorkerLostError: the process could not be started.
    """
    limit = _free_bytes() if memory_bytes is None else memory_bytes
    cores = len(os.sched_getaffinity(0))
    settings = replace(
        settings,
        # What serves goes first: it has no time to lose, a trial has.
        nice=min(19, settings.nice + _NICER),
        trial_cpu_s=math.ceil(timeout_s * cores) + _START_CPU_S,
    )
    for attempt in range(1, _ATTEMPTS + 1):
        async with ProcessWorker.open(python=python, settings=settings) as worker:
            try:
                return await worker.load(
                    release,
                    directory,
                    trial_bytes=limit,
                    calibrate_rows=calibrate_rows,
                    timeout_s=timeout_s,
                )
            except CallRefusedError as exc:
                raise ModelRefusedError(str(exc)) from exc
            except WorkerLostError as exc:
                if attempt == _ATTEMPTS:
                    raise ModelRefusedError(f"it failed its trial: {exc}") from exc
    raise AssertionError  # the loop returns or raises


def _free_bytes() -> int:
    """What board and control group leave, less a reserve."""
    return min(int(memory.read().free_bytes * _FREE_SHARE), _MOST_BYTES)
