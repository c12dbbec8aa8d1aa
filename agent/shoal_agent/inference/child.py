"""Starts and ends the process of a worker. What is said to it is `process_worker`'s matter."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

import msgspec

from shoal_agent.inference.errors import WorkerLostError
from shoal_agent.inference.segment import Segment
from shoal_agent.inference.settings import WorkerSettings


async def spawn(
    python: str, settings: WorkerSettings, segments: Sequence[Segment]
) -> tuple[asyncio.subprocess.Process, socket.socket]:
    """The process and our end of its socket.

    Raises:
        WorkerLostError: it cannot be started.
    """
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    memory = [segment.descriptor for segment in segments]
    chosen = msgspec.json.encode(settings).decode()
    arguments = (str(fd), str(os.getpid()), chosen, *map(str, memory))
    try:
        process = await asyncio.create_subprocess_exec(
            # -P: a numpy.py in the working directory is not ours.
            python, "-P", "-m", "shoal_agent.inference.worker_main", *arguments,
            pass_fds=(fd, *memory),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as exc:
        ours.close()
        raise WorkerLostError(f"the worker cannot be started: {exc.strerror}") from exc
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    if settings.nice:
        # From here: by itself it would do so only after its interpreter has started.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, os.nice(0) + settings.nice)
    return process, ours


async def kill(process: asyncio.subprocess.Process) -> None:
    """End it, if it has not ended, and collect it."""
    signal_kill(process)
    ended = asyncio.ensure_future(process.wait())
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        await ended  # not long any more, and left alone it would stay as a zombie
        raise


def signal_kill(process: asyncio.subprocess.Process) -> None:
    """End it, if it has not ended."""
    # Not process.kill(): that collects a process that has just ended, and its exit code is lost.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def how_it_ended(process: asyncio.subprocess.Process) -> str:
    """In words, of a process that was collected."""
    code: Any = process.returncode
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
