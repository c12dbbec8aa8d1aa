"""Broker processes on loopback for bus.py: Shoal's, Mosquitto, and the floor under both. Measures nothing."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import processes
from load import IN_FLIGHT
from measure import BenchError

START_TIMEOUT_S = 15.0
# It announces this as its receive maximum, and gmqtt fails on one that is not well above the window.
MOSQUITTO_IN_FLIGHT = 16 * IN_FLIGHT
# Where the scheduler puts two processes that wake each other decides on half of their time: say it.
LOAD_CORE, BROKER_CORE = processes.two_cores() or (None, None)


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker process on loopback."""

    name: str
    port: int
    pid: int


@contextlib.contextmanager
def shoal_broker(
    name: str, *, port: int = 0, max_connections: int | None = None
) -> Iterator[Broker]:
    """The embedded broker, as the installed command starts it (port 0: a free one). Raises BenchError."""
    port = port or free_port()
    program = Path(processes.PYTHON).with_name("shoal-broker")
    arguments = ["--host", "127.0.0.1", "--port", str(port)]
    if max_connections is not None:
        arguments += ["--max-connections", str(max_connections)]
    with _broker(name, port, [program, "run", *arguments]) as broker:
        yield broker


@contextlib.contextmanager
def floor(name: str) -> Iterator[Broker]:
    """The codec without a broker (echo_floor.py). Raises BenchError."""
    port = free_port()
    script = Path(__file__).with_name("echo_floor.py")
    with _broker(name, port, [processes.PYTHON, script, str(port)]) as broker:
        yield broker


@contextlib.contextmanager
def mosquitto(name: str, program: str, folder: Path) -> Iterator[Broker]:
    """Debian's Mosquitto with its configuration in `folder`. Raises BenchError."""
    port = free_port()
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nlog_type none\n"
        f"set_tcp_nodelay true\nmax_inflight_messages {MOSQUITTO_IN_FLIGHT}\n",
        encoding="ascii",
    )
    with _broker(name, port, [program, "-c", config]) as broker:
        yield broker


def mosquitto_version() -> str:
    """What it says it is."""
    if (program := mosquitto_program()) is None:
        return "absent"
    # It prints its usage and ends with 3.
    shown = subprocess.run([program, "-h"], capture_output=True, timeout=5, check=False).stdout
    first, *_ = shown.decode("utf-8", "replace").splitlines() or ["unknown version"]
    return first


def mosquitto_program() -> str | None:
    """Its path, None when it is not installed; Debian keeps it where only root looks."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


@contextlib.contextmanager
def _broker(name: str, port: int, arguments: list[str | Path]) -> Iterator[Broker]:
    with processes.child(arguments, core=BROKER_CORE, stderr=subprocess.DEVNULL) as child:
        _wait_listening(name, port, child)
        yield Broker(name, port, child.pid)


def _wait_listening(name: str, port: int, child: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if child.poll() is not None:
            raise BenchError(f"{name} ended with {child.returncode} before it listened")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise BenchError(f"{name} does not listen within {START_TIMEOUT_S:g} s")


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
