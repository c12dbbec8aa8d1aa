"""The bridge in this process, on real sockets, ptys and TCP, with the simulated microcontroller behind it."""

import asyncio
import contextlib
import io
import json
import os
import stat
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random

import pytest
from structlog.testing import capture_logs
from tests.support.device_client import DeviceClient

from shoal_contract import frames
from shoal_contract.frames import Frame, Kind, Op, Status
from shoal_firmware_bridge import app
from shoal_firmware_bridge.config import BridgeConfig, DeviceTable
from shoal_firmware_bridge.device import Timing
from shoal_firmware_bridge.errors import SocketError
from shoal_firmware_bridge.firmware import Firmware
from shoal_firmware_bridge.hub import Patience
from shoal_firmware_bridge.simulated_lines import BadLine, on_pty, on_tcp
from shoal_firmware_bridge.simulated_mcu import SimulatedMcu

GARBAGE = Random(1).randbytes(3000)  # noqa: S311 - the same every time
ROWS = [bytes([k]) * 40 for k in range(7)]
HASTY = Patience(
    timing=Timing(repeat_s=0.03, max_sends=30),
    reconnect_s=0.02,
    max_reconnect_s=0.05,
    silence_s=0.3,
)


class Mcu:
    """A simulated microcontroller in this process; `log` is what it wrote down."""

    def __init__(self, *, loss=0.0, corrupt=0.0, seed=1, **settings) -> None:
        self._text = io.StringIO()
        self.firmware = Firmware(
            "meter",
            ROWS,
            **{"rate_hz": 100.0, "boot": 3, "limit": 0, "repeat_s": 0.05, **settings},
            now_s=time.monotonic(),
        )
        self.simulated = SimulatedMcu(self.firmware, BadLine(loss, corrupt, seed), self._text)

    def log(self, kind):
        entries = map(json.loads, self._text.getvalue().splitlines())
        return [entry for entry in entries if entry["kind"] == kind]

    @asynccontextmanager
    async def running(self):
        async with asyncio.TaskGroup() as tasks:
            life = tasks.create_task(self.simulated.run())
            yield self
            life.cancel()


@asynccontextmanager
async def bridge(socket_dir: Path, *devices: DeviceTable, patience: Patience = HASTY):
    """A running bridge; yields the socket of its first device."""
    config = BridgeConfig(socket_dir=str(socket_dir), device=devices)
    stop, ready = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
        tasks.create_task(app.run(config, stop=stop, on_ready=ready.set, patience=patience))
        await ready.wait()
        yield config.socket(devices[0])
        stop.set()


def serial(path: Path, name="meter") -> DeviceTable:
    return DeviceTable(name=name, link="serial", path=str(path))


def tcp(port: int, name="meter") -> DeviceTable:
    return DeviceTable(name=name, link="tcp", host="127.0.0.1", port=port)


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event to wait for
            await asyncio.sleep(0.005)


@asynccontextmanager
async def on_a_pty(tmp_path, **settings):
    """A device on a pty, its bridge and the bridge's socket."""
    with contextlib.ExitStack() as stack:
        mcu = Mcu(**settings)
        stack.enter_context(on_pty(mcu.simulated, tmp_path / "tty"))
        async with mcu.running(), bridge(tmp_path / "run", serial(tmp_path / "tty")) as socket:
            yield mcu, socket


@pytest.mark.parametrize("line", ["pty", "tcp"])
async def test_over_a_bad_line_every_sample_arrives_and_every_command_is_done_once(tmp_path, line):
    mcu = Mcu(loss=0.1, corrupt=0.05, limit=200, rate_hz=1000.0)
    async with contextlib.AsyncExitStack() as stack:
        if line == "pty":
            stack.enter_context(on_pty(mcu.simulated, tmp_path / "tty"))
            device = serial(tmp_path / "tty")
        else:
            device = tcp(await stack.enter_async_context(on_tcp(mcu.simulated, 0)))
        await stack.enter_async_context(mcu.running())
        socket = await stack.enter_async_context(bridge(tmp_path / "run", device))
        client = await stack.enter_async_context(DeviceClient.open(socket))
        answers = []
        for first in range(0, 100, 8):
            batch = range(first, min(first + 8, 100))
            answers += await asyncio.gather(*(client.command(Op.SET, 2, k, k) for k in batch))
        assert [status for status, _ in answers] == [Status.OK] * 100
        await until(lambda: len(mcu.log("answered")) == 200)
    assert Counter(entry["value"] for entry in mcu.log("set")) == dict.fromkeys(range(100), 1)
    assert client.samples == {k: ROWS[k % len(ROWS)] for k in range(200)}
    assert sorted(entry["seq"] for entry in mcu.log("answered")) == list(range(200))
    # The line was as bad as it was meant to be: repeats were needed in both directions.
    assert len(client.events) > 200
    assert mcu.firmware.repeated_commands > 0


async def test_garbage_from_the_device_and_from_the_agent_is_survived(tmp_path):
    async with on_a_pty(tmp_path) as (mcu, socket), DeviceClient.open(socket) as client:
        await client.command(Op.GET, 2)
        with capture_logs() as logs:
            mcu.simulated._send(GARBAGE + b"\x00")
            client.send_bytes(GARBAGE + b"\x00")
            assert await client.command(Op.SET, 2, 7) == (Status.OK, ())
            assert await client.command(Op.GET, 2) == (Status.OK, (7,))
        assert client.damaged == {}
        assert "damaged frames" in {entry["event"] for entry in logs}


async def test_frames_that_are_good_but_odd_are_survived(tmp_path):
    async with on_a_pty(tmp_path) as (mcu, socket), DeviceClient.open(socket) as client:
        await client.command(Op.GET, 2)
        for kind in Kind:
            for args in ((), (None,), ("x", 1.5), (b"\xff" * 48,)):
                odd = Frame(kind, 1000, 9, args)
                client.send(odd)
                if kind is not Kind.EVENT:
                    mcu.simulated._send(frames.encode(odd))
        assert await client.command(Op.SET, 2, 7) == (Status.OK, ())
        # Four commands under one number are one command and three repeats of it.
        assert {reply.args for reply in client.strays} == {(Status.UNKNOWN_OP,)}


async def test_the_newest_agent_wins(tmp_path):
    async with on_a_pty(tmp_path) as (_mcu, socket), DeviceClient.open(socket) as first:
        assert (await first.command(Op.GET, 2))[0] is Status.OK
        async with DeviceClient.open(socket) as second:
            await first.closed.wait()
            assert (await second.command(Op.GET, 2))[0] is Status.OK


async def test_what_was_not_answered_comes_again_to_the_next_agent(tmp_path):
    async with on_a_pty(tmp_path, limit=20, rate_hz=1000.0) as (mcu, socket):
        async with DeviceClient.open(socket, answering=False) as client:
            await until(lambda: {event.seq for event in client.events} == set(range(8)))
        async with DeviceClient.open(socket) as client:
            await until(lambda: len(mcu.log("answered")) == 20)
            assert set(client.samples) == set(range(20))


async def test_without_an_agent_the_device_falls_safe_and_recovers_with_the_first_beat(tmp_path):
    async with on_a_pty(tmp_path, silence_s=0.2) as (mcu, socket):
        async with DeviceClient.open(socket, beat_s=0.02) as client:
            assert await client.command(Op.SET, 2, 7) == (Status.OK, ())
        await until(lambda: mcu.log("safe"))
        assert mcu.firmware.display is None
        async with DeviceClient.open(socket, beat_s=None) as client:
            assert await client.command(Op.SET, 2, 8) == (Status.REFUSED, ())
            client.send(Frame(Kind.BEAT, 0, Op.ALIVE))
            await until(lambda: mcu.log("unsafe"))
            assert await client.command(Op.SET, 2, 8) == (Status.OK, ())


async def test_beats_of_the_device_reach_the_agent(tmp_path):
    async with on_a_pty(tmp_path) as (_mcu, socket), DeviceClient.open(socket) as client:
        await until(lambda: client.beats)
        uptime_s, safe, unanswered = client.beats[0]
        assert (uptime_s >= 0, safe, unanswered) == (True, False, 0)


async def test_a_device_that_is_not_there_is_answered_for_and_found_when_it_comes(tmp_path):
    patience = Patience(
        timing=Timing(repeat_s=0.02, max_sends=3), reconnect_s=0.02, max_reconnect_s=0.02
    )
    tty = tmp_path / "tty"
    with capture_logs() as logs:
        async with (
            bridge(tmp_path / "run", serial(tty), patience=patience) as socket,
            DeviceClient.open(socket) as client,
        ):
            assert await client.command(Op.SET, 2, 7) == (Status.NO_ANSWER, ())
            mcu = Mcu()
            with on_pty(mcu.simulated, tty):
                async with mcu.running():
                    await until(lambda: any(e["event"] == "device greeted" for e in logs))
                    assert await client.command(Op.SET, 2, 7) == (Status.OK, ())
    broken = [entry for entry in logs if entry["event"] == "device line broken"]
    assert len(broken) <= 2, "a line that stays broken is told once"


async def test_a_broken_device_does_not_stop_its_neighbour(tmp_path):
    mcu = Mcu()
    with on_pty(mcu.simulated, tmp_path / "tty"):
        devices = (
            serial(tmp_path / "tty"),
            serial(tmp_path / "none", "gone"),
            DeviceTable(name="nowhere", link="tcp", host="a..b", port=1),
            DeviceTable(name="file", link="serial", path=str(tmp_path)),
        )
        async with (
            mcu.running(),
            bridge(tmp_path / "run", *devices) as socket,
            DeviceClient.open(socket) as client,
        ):
            assert await client.command(Op.SET, 2, 7) == (Status.OK, ())


async def test_a_tcp_line_that_falls_silent_or_closes_is_opened_anew(tmp_path):
    mcu = Mcu()
    lines = 0

    async def deaf(reader, writer):
        nonlocal lines
        lines += 1
        if lines == 1:
            writer.close()
        else:
            await reader.read()
            writer.close()

    with capture_logs() as logs:
        server = await asyncio.start_server(deaf, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with bridge(tmp_path / "run", tcp(port)) as socket:
            await until(lambda: lines >= 3)
            server.close()
            await server.wait_closed()
            async with (
                on_tcp(mcu.simulated, port),
                mcu.running(),
                DeviceClient.open(socket) as client,
            ):
                assert await client.command(Op.SET, 2, 7) == (Status.OK, ())
    assert any("silent" in entry.get("reason", "") for entry in logs)


async def test_a_device_under_another_name_is_told(tmp_path):
    mcu = Mcu()
    with capture_logs() as logs, on_pty(mcu.simulated, tmp_path / "tty"):
        async with mcu.running(), bridge(tmp_path / "run", serial(tmp_path / "tty", "pump")):
            await until(lambda: any(e["event"] == "device has another name" for e in logs))


async def test_an_agent_that_does_not_read_is_dropped(tmp_path):
    async with on_a_pty(tmp_path) as (mcu, socket):
        with capture_logs() as logs:
            _reader, writer = await asyncio.open_unix_connection(socket, limit=64)
            event = frames.encode(Frame(Kind.EVENT, 1, Op.SAMPLE, (1, 3, bytes(40))))
            dropped = "agent does not read; connection dropped"
            for _ in range(20000):
                mcu.simulated._send(event * 10)
                await asyncio.sleep(0)
                if any(entry["event"] == dropped for entry in logs):
                    break
            else:
                pytest.fail("it was never dropped")
            writer.transport.abort()
        async with DeviceClient.open(socket) as client:
            assert (await client.command(Op.GET, 2))[0] is Status.OK


async def test_sockets_are_private_and_gone_afterwards(tmp_path):
    directory = tmp_path / "run" / "devices"
    async with bridge(directory, serial(tmp_path / "none")) as socket:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert socket.is_socket()
    assert not socket.exists()


async def test_a_bridge_ends_while_an_agent_is_connected(tmp_path):
    async with contextlib.AsyncExitStack() as clients:
        async with bridge(tmp_path, serial(tmp_path / "none")) as socket:
            client = await clients.enter_async_context(DeviceClient.open(socket))
            await client.command(Op.GET, 2)
        await client.closed.wait()


@contextmanager
def refused(says):
    with pytest.raises((SocketError, ExceptionGroup)) as caught:
        yield
    error = caught.value
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, SocketError)
    assert says in str(error)


async def test_a_second_bridge_on_the_same_sockets_is_refused(tmp_path):
    async with bridge(tmp_path, serial(tmp_path / "none")) as socket:
        with refused("another bridge"):
            async with bridge(tmp_path, serial(tmp_path / "none")):
                pytest.fail("it ran")
        async with DeviceClient.open(socket) as client:
            assert (await client.command(Op.GET, 2))[0] is Status.NO_ANSWER


async def test_a_socket_of_a_killed_bridge_is_replaced_but_a_file_is_not(tmp_path):
    async with bridge(tmp_path / "run", serial(tmp_path / "none")) as socket:
        os.link(socket, tmp_path / "left")
    (tmp_path / "left").rename(socket)
    async with bridge(tmp_path / "run", serial(tmp_path / "none")):
        assert socket.is_socket()
    socket.write_text("somebody's file")
    with refused("meter.sock"):
        async with bridge(tmp_path / "run", serial(tmp_path / "none")):
            pytest.fail("it ran")
    assert socket.read_text() == "somebody's file"


async def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with refused(str(tmp_path / "file")):
        async with bridge(tmp_path / "file" / "run", serial(tmp_path / "none")):
            pytest.fail("it ran")
