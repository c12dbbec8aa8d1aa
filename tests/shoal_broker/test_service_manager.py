"""What systemd hears from a program, on a socket as systemd's own."""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from shoal_broker.service_manager import ServiceManager

PID = 4711


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A socket's path is short, the test's folder may be long.
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0shoal-test-" + tmp_path.parent.name + tmp_path.name[-40:])
        listening.settimeout(5)
        yield listening


def environment(systemd: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": systemd.getsockname().decode().replace("\0", "@"), **more}


def test_a_ready_program_says_so(systemd):
    ServiceManager.of(environment(systemd), pid=PID).ready()
    assert systemd.recv(100) == b"READY=1"


async def test_a_loop_that_turns_is_heard_again_and_again_until_the_end(systemd):
    manager = ServiceManager.of(
        environment(systemd, WATCHDOG_USEC="30000", WATCHDOG_PID=str(PID)), pid=PID
    )
    async with manager.watched():
        for _ in range(3):
            assert await asyncio.to_thread(systemd.recv, 100) == b"WATCHDOG=1"
    heard = b""
    while heard != b"STOPPING=1":
        heard = systemd.recv(100)


async def test_a_loop_that_stands_still_is_not_heard(systemd):
    manager = ServiceManager.of(environment(systemd, WATCHDOG_USEC="30000"), pid=PID)
    async with manager.watched():
        await asyncio.to_thread(systemd.recv, 100)
        # From here on nothing waits for the loop: what it sent before is read, then nothing comes.
        systemd.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while systemd.recv(100):
                pass
        systemd.settimeout(0.3)  # ten times as long as the watchdog waits
        with pytest.raises(TimeoutError):
            systemd.recv(100)


@pytest.mark.parametrize(
    ("said", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "20000000"}, 20.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(PID)}, 20.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "\u0663"}, None),
    ],
)
def test_the_watchdog_is_ours_or_it_is_none(said, watchdog_s):
    manager = ServiceManager.of({"NOTIFY_SOCKET": "/run/none", **said}, pid=PID)
    assert manager.watchdog_s == watchdog_s


@pytest.mark.parametrize("address", ["", "vsock:2:1", "relative"])
async def test_without_a_socket_of_systemd_nothing_is_said(address):
    manager = ServiceManager.of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000"}, pid=PID)
    assert manager == ServiceManager()
    manager.ready()
    async with manager.watched():
        pass


def test_a_socket_that_is_gone_stops_nobody(tmp_path):
    ServiceManager(str(tmp_path / "gone")).ready()
