"""Thousands of agents' sessions in one process, and their return after the broker was gone. For bus.py.

The sessions are sessions.py's; here a broker of their own is started, killed and started again.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import brokers
import processes
from brokers import LOAD_CORE
from measure import BenchError

MANY = "sessions: in one process"
BACK = "sessions: broker restarted"
# What a process opens beside its connections.
SPARE_FILES = 200


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many sessions, how long they are watched, and how many see the broker come back."""

    sessions: int
    idle_s: float
    returning: int


def contenders(crowd: Crowd) -> dict[str, Callable[[], Mapping[str, float]]]:
    """Both need the limit that `raise_file_limit` has raised."""
    return {MANY: partial(_many, crowd), BACK: partial(_back, crowd)}


def raise_file_limit(wanted: int) -> int:
    """How many connections a process of ours may have, at most `wanted`; children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < files:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = files if hard == resource.RLIM_INFINITY else min(files, hard)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    return allowed - SPARE_FILES


def _many(crowd: Crowd) -> Mapping[str, float]:
    with (
        brokers.shoal_broker(MANY, max_connections=crowd.sessions + 1) as broker,
        _sessions(broker.port, crowd.sessions, crowd.idle_s) as child,
    ):
        took = _line(child)
        return {
            "sent": crowd.sessions,
            "delivered": took["connected"],
            "session_kb": took["session_bytes"] / 1e3,
            "idle_percent": took["idle_share"] * 100,
            "seconds": took["connected_s"],
        }


def _back(crowd: Crowd) -> Mapping[str, float]:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        port = brokers.free_port()
        limit = crowd.returning + 1
        first.enter_context(brokers.shoal_broker(BACK, port=port, max_connections=limit))
        child = stack.enter_context(_sessions(port, crowd.returning, 0.0))
        _line(child)
        first.close()
        broker = stack.enter_context(brokers.shoal_broker(BACK, port=port, max_connections=limit))
        assert child.stdin is not None  # noqa: S101 - PIPE; for the type checker
        child.stdin.write(f"{time.time()}\n".encode())
        child.stdin.flush()
        took = _line(child)
        return {
            "sent": crowd.returning,
            "delivered": took["back"],
            "seconds": took["back_s"],
            "broker_us": processes.cpu_s(broker.pid) / crowd.returning * 1e6,
            "broker_s": processes.cpu_s(broker.pid),
            "hub_us": took["client_cpu_s"] / crowd.returning * 1e6,
        }


@contextlib.contextmanager
def _sessions(port: int, count: int, idle_s: float) -> Iterator[subprocess.Popen[bytes]]:
    script = Path(__file__).with_name("sessions.py")
    with processes.child(
        [processes.PYTHON, script, str(port), str(count), str(idle_s)],
        core=LOAD_CORE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        yield child


def _line(child: subprocess.Popen[bytes]) -> dict[str, float]:
    assert child.stdout is not None  # noqa: S101 - PIPE; for the type checker
    took: dict[str, float] = json.loads(child.stdout.readline() or "{}")
    if not took:
        raise BenchError("the process with the sessions ended")
    return took
