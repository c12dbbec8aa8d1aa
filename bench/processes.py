"""Child processes of a benchmark: started, kept on a core, their CPU time read, and always ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from measure import BenchError

END_TIMEOUT_S = 5.0
_LOOK_S = 0.02
PYTHON = sys.executable

# Linux: the clock of another process's CPU time (clock_getcpuclockid(3)).
_CPU_CLOCK_OF_PROCESS = 2


def asked(arguments: list[str | Path], *, what: str, timeout_s: float) -> dict[str, float]:
    """What a script prints as one JSON object, in a process of its own. Raises BenchError, which names `what`."""
    # numpy's BLAS would start a thread that spins for a while and is counted.
    env = {"OPENBLAS_NUM_THREADS": "1"}
    with child([PYTHON, *arguments], stdout=subprocess.PIPE, env=env) as started:
        try:
            said, _ = started.communicate(timeout=timeout_s)
            took: dict[str, float] = json.loads(said)
        except (subprocess.TimeoutExpired, ValueError) as exc:
            raise BenchError(f"{what} did not say what it took") from exc
    return took


@contextlib.contextmanager
def child(
    arguments: list[str | Path],
    *,
    core: int | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = None,
    env: dict[str, str] | None = None,
    keep: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own (Ctrl-C is ours), ended when the block is left. `keep`: descriptors that it gets."""
    with contextlib.ExitStack() as stack:
        # A signal in the middle of the start would leave a process that nobody knows.
        with _signals_later(), on_core(core):
            process = subprocess.Popen(
                arguments,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=None if env is None else os.environ | env,
                start_new_session=True,
                pass_fds=keep,
            )
            stack.callback(_end, process)
        yield process


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Keep this process, and those it starts meanwhile, on one core. None: wherever they like."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def two_cores() -> tuple[int, int] | None:
    """A core for the load and one for what is measured; None where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else None


def cpu_s(pid: int) -> float:
    """The CPU seconds that a living process has used, in nanosecond steps (Linux).

    Raises:
        BenchError: there is no such process.
    """
    try:
        return time.clock_gettime(~pid << 3 | _CPU_CLOCK_OF_PROCESS)
    except OSError as exc:
        raise BenchError(f"process {pid} ended while it was measured") from exc


def tree(pid: int) -> list[int]:
    """A living process and all that it, or one of those, has started."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found


def rss_mib(pid: int) -> float:
    """The resident memory of a living process. Raises BenchError when there is no such process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError as exc:
        raise BenchError(f"process {pid} ended while it was measured") from exc
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def pss_bytes(pid: int | str = "self") -> int:
    """The proportional set size: what the process has for itself and its share of what it has not.

    Raises:
        BenchError: there is no such process.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError as exc:
        raise BenchError(f"process {pid} ended while it was measured") from exc
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and whom it has started: strace, told to end, leaves what it traces running."""
    _signal_group(process.pid, signal.SIGTERM)
    until_s = time.monotonic() + END_TIMEOUT_S
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    while _signal_group(process.pid, 0) and time.monotonic() < until_s:
        time.sleep(_LOOK_S)
    _signal_group(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            # What was not flushed to a process that has ended is lost, as it should be.
            with contextlib.suppress(OSError):
                stream.close()


def _signal_group(leader_pid: int, number: int) -> bool:
    """False when nobody is left in the session that the child has led."""
    try:
        os.killpg(leader_pid, number)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """SIGINT and SIGTERM take effect when the block is left."""
    caught: list[int] = []

    def keep(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for caught_number in caught:
            signal.raise_signal(caught_number)
