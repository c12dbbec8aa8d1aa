"""A real `shoal-agent` without models or devices, as the installed command starts it. For idle.py."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import processes
from measure import BenchError

READY_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class IdleAgent:
    """A running one. `pid` is the agent's own, whatever stands before it on the command line."""

    pid: int
    state_dir: Path


@contextlib.contextmanager
def idle_agent(
    folder: Path,
    broker_port: int,
    *,
    node: str,
    transport: str,
    report_every_s: float,
    prefix: Sequence[str | Path] = (),
    host: str = "127.0.0.1",
) -> Iterator[IdleAgent]:
    """Yield once it says that it is ready. Raises BenchError."""
    config, ready, state_dir = folder / "agent.toml", folder / "ready", folder / "state"
    config.write_text(
        f'node = "{node}"\nstate_dir = "{state_dir}"\nreport_every_s = {report_every_s}\n'
        f'[broker]\nhost = "{host}"\nport = {broker_port}\ntransport = "{transport}"\n'
        + ("" if host == "127.0.0.1" else "plaintext = true\n")
        +
        # Announced on loopback alone: mDNS is of the neighbourhood, not of the uplink.
        '[peers]\nhost = "127.0.0.1"\ninterfaces = ["127.0.0.1"]\n',
        encoding="utf-8",
    )
    program = Path(processes.PYTHON).with_name("shoal-agent")
    log = folder / "agent.log"
    with (
        log.open("wb") as stderr,
        processes.child(
            [*prefix, program, "--config", config, "--ready-file", ready, "--log-format", "json"],
            stderr=stderr,
        ) as child,
    ):
        until = time.monotonic() + READY_TIMEOUT_S
        while not ready.exists():
            if child.poll() is not None or time.monotonic() > until:
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                raise BenchError(f"shoal-agent does not run: {lines[-1] if lines else 'no word'}")
            time.sleep(0.05)
        yield IdleAgent(_agent_pid(child.pid) if prefix else child.pid, state_dir)


def _agent_pid(pid: int) -> int:
    """The one child of strace."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(children[0]) if children else os.getpid()
