"""Broker processes on loopback for bus.py and broker.py: Shoal's, its peers', and the floor under all.

Measures nothing.
"""

from __future__ import annotations

import contextlib
import getpass
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import processes
from load import IN_FLIGHT
from measure import BenchError

START_TIMEOUT_S = 15.0
# It announces this as its receive maximum, and gmqtt fails on one that is not well above the window.
MOSQUITTO_IN_FLIGHT = 16 * IN_FLIGHT
OUR_PROGRAM = Path(processes.PYTHON).with_name("shoal-broker")
# Made by tools/setup-peers.
AMQTT_PROGRAM = Path(__file__).parents[1] / ".venv-peers/bin/amqtt"
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
    name: str,
    *,
    port: int = 0,
    max_connections: int | None = None,
    options: Sequence[str | Path] = (),
) -> Iterator[Broker]:
    """The embedded broker, as the installed command starts it (port 0: a free one). Raises BenchError."""
    port = port or free_port()
    arguments = ["--host", "127.0.0.1", "--port", str(port), *options]
    if max_connections is not None:
        arguments += ["--max-connections", str(max_connections)]
    with _broker(name, port, [OUR_PROGRAM, "run", *arguments]) as broker:
        yield broker


def we_can(option: str) -> bool:
    """Whether the embedded broker knows this command line option."""
    shown = subprocess.run(
        [OUR_PROGRAM, "run", "--help"], capture_output=True, timeout=30, check=False
    )
    return option.encode() in shown.stdout


@contextlib.contextmanager
def floor(name: str) -> Iterator[Broker]:
    """The codec without a broker (echo_floor.py). Raises BenchError."""
    port = free_port()
    script = Path(__file__).with_name("echo_floor.py")
    with _broker(name, port, [processes.PYTHON, script, str(port)]) as broker:
        yield broker


@contextlib.contextmanager
def mosquitto(
    name: str, program: str, folder: Path, *, port: int = 0, settings: Sequence[str] = ()
) -> Iterator[Broker]:
    """Debian's Mosquitto with its configuration in `folder`, and these lines more. Raises BenchError."""
    port = port or free_port()
    config = folder / f"mosquitto-{port}.conf"
    lines = (
        f"listener {port} 127.0.0.1",
        "allow_anonymous true",
        "log_type none",
        "set_tcp_nodelay true",
        f"max_inflight_messages {MOSQUITTO_IN_FLIGHT}",
        *settings,
    )
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with _broker(name, port, [program, "-c", config]) as broker:
        yield broker


def same_user() -> str:
    """Mosquitto's setting to stay the user who has started it, root included."""
    return f"user {getpass.getuser()}"


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files of a broker, PEM; whoever trusts the certificate trusts the broker."""

    certificate: Path
    key: Path


def certificate(openssl: str, folder: Path) -> Certificate:
    """For `localhost`, signed by itself. Raises BenchError."""
    made = Certificate(folder / "broker.crt", folder / "broker.key")
    arguments = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    arguments += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    arguments += ["-addext", "subjectAltName=DNS:localhost"]
    ended = subprocess.run(
        [openssl, *arguments, "-keyout", made.key, "-out", made.certificate],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if ended.returncode:
        raise BenchError(f"openssl made no certificate: {ended.stderr.strip()[-200:]}")
    return made


def every_change_saved(folder: Path) -> tuple[str, ...]:
    """Mosquitto's settings for its whole state written to `folder` whenever something changed."""
    return (
        # Started by root it becomes another user, who may not write here.
        same_user(),
        "persistence true",
        f"persistence_location {folder}/",
        "autosave_on_changes true",
        "autosave_interval 1",
    )


@contextlib.contextmanager
def amqtt(name: str, folder: Path) -> Iterator[Broker]:
    """The broker of PyPI's amqtt, without its plugins for the log and $SYS. Raises BenchError."""
    port = free_port()
    config = folder / "amqtt.yaml"
    config.write_text(
        f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{port}\n"
        "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n",
        encoding="ascii",
    )
    with _broker(name, port, [AMQTT_PROGRAM, "-c", config]) as broker:
        yield broker


def amqtt_version() -> str:
    """Of what stands in .venv-peers."""
    if not AMQTT_PROGRAM.exists():
        return "absent"
    look = "import importlib.metadata as m; print(m.version('amqtt'))"
    shown = subprocess.run(
        [AMQTT_PROGRAM.with_name("python"), "-c", look],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return f"amqtt {shown.stdout.strip() or 'of unknown version'}"


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
