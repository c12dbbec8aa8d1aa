"""Child processes that never outlive the demo, each with its log in a file.

However the demo ends (also by SIGKILL), the kernel ends its children: each asks for that itself.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self

from shoal_fleet.demo.errors import DemoError

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 8.0
_LOOK_EVERY_S = 0.02
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def _die_with(parent: int) -> None:
    """Run in the child before it becomes the program."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


class Processes:
    """The running children, by name."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: dict[str, asyncio.subprocess.Process] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, logs: Path) -> AsyncIterator[Self]:
        """Leaving ends every child, the last started first: politely, then by force."""
        processes = cls(logs)
        try:
            yield processes
        finally:
            await asyncio.shield(processes._stop_all())

    async def start(
        self,
        name: str,
        module: str,
        *arguments: str,
        ready_file: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Start `python -m module arguments`; with a ready file wait for it and return what it says.

        Raises:
            DemoError: it ended or was not ready in time; the message quotes its last log line.
        """
        with (self._logs / f"{name}.log").open("ab") as log:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # Ctrl-C reaches the demo alone; it ends them in order
                preexec_fn=partial(_die_with, os.getpid()),
            )
        self._children[name] = child
        return "" if ready_file is None else await self._wait_ready(name, ready_file)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one child."""
        self._children[name].send_signal(number)

    def check(self) -> None:
        """Raise DemoError when a child has ended that should run."""
        for name, child in self._children.items():
            if child.returncode is not None:
                raise DemoError(f"{name} ended with {child.returncode}: {self._last_line(name)}")

    def pss_bytes(self, name: str) -> int:
        """Memory of a child and its own children, shared pages counted by their share."""
        return sum(map(_pss_bytes, _family(self._children[name].pid)))

    def __len__(self) -> int:
        return len(self._children)

    async def _wait_ready(self, name: str, ready_file: Path) -> str:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while (said := _read(ready_file)) is None:
                    self.check()
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError as exc:
            raise DemoError(
                f"{name} is not ready after {READY_TIMEOUT_S:g} s: {self._last_line(name)}"
            ) from exc
        return said

    def _last_line(self, name: str) -> str:
        path = self._logs / f"{name}.log"
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1]} (log: {path})" if lines else f"no log ({path})"

    async def _stop_all(self) -> None:
        children = [
            child for child in reversed(self._children.values()) if child.returncode is None
        ]
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                for child in children:
                    await child.wait()
        for child in children:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        self._children.clear()


def _read(ready_file: Path) -> str | None:
    """What a ready file says, or None as long as it is not there."""
    try:
        return ready_file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return [pid]
    return [pid, *(one for child in text.split() for one in _family(int(child)))]


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
