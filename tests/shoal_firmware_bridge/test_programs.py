"""`shoal-bridge` and the simulated microcontroller as the processes that they are."""

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.support.device_client import DeviceClient

from shoal_contract.exits import Exit
from shoal_contract.frames import Op, Status

BRIDGE = "shoal_firmware_bridge"
MCU = "shoal_firmware_bridge.simulated_mcu"
CONFIG = """
socket_dir = "{folder}/run"
[[device]]
name = "meter"
link = "serial"
path = "{folder}/tty"
"""


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)


@asynccontextmanager
async def program(module: str, *arguments: object):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *map(str, arguments), stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - another process brings it about
            await asyncio.sleep(0.01)


async def ended(process) -> int:
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        return await process.wait()


def mcu_arguments(folder: Path) -> list[object]:
    (folder / "samples.bin").write_bytes(bytes(range(120)))
    return [
        "--name", "meter", "--samples", folder / "samples.bin", "--log", folder / "mcu.jsonl",
        "--boot", 9,
    ]  # fmt: skip


def entries(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "mcu.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


@pytest.mark.system
async def test_two_processes_over_a_pty_lose_nothing_even_when_the_bridge_is_killed(tmp_path):
    config, ready, socket = (tmp_path / name for name in ("bridge.toml", "ready", "run/meter.sock"))
    config.write_text(CONFIG.format(folder=tmp_path))
    bridge_arguments = ["--config", config, "--ready-file", ready, "--log-format", "json"]
    mcu_options = [
        *mcu_arguments(tmp_path), "--pty-link", tmp_path / "tty", "--rate-hz", 200, "--limit", 60,
        "--loss", 0.05, "--corrupt", 0.05,
    ]  # fmt: skip
    async with AsyncExitStack() as stack:
        mcu = await stack.enter_async_context(program(MCU, *mcu_options))
        async with program(BRIDGE, *bridge_arguments) as killed:
            await until(ready.exists)
            async with DeviceClient.open(socket) as client:
                assert (await client.command(Op.SET, 2, 1))[0] is Status.OK
                killed.kill()
                await client.closed.wait()
                await killed.wait()
        ready.unlink()
        bridge = await stack.enter_async_context(program(BRIDGE, *bridge_arguments))
        await until(ready.exists)
        async with DeviceClient.open(socket) as client:
            assert (await client.command(Op.SET, 2, 2, b"\xab"))[0] is Status.OK
            await until(lambda: len(entries(tmp_path, "answered")) == 60)
        assert await ended(bridge) == Exit.OK
        assert not socket.exists()
        assert await ended(mcu) == Exit.OK
        assert not (tmp_path / "tty").is_symlink()
    sampled = entries(tmp_path, "sample")
    assert [(entry["seq"], entry["row"]) for entry in sampled] == [(k, k % 3) for k in range(60)]
    assert Counter(e["seq"] for e in entries(tmp_path, "answered")) == dict.fromkeys(range(60), 1)
    sets = [(e["channel"], e["value"], e["context"]) for e in entries(tmp_path, "set")]
    assert sets == [(2, 1, []), (2, 2, ["ab"])]
    assert entries(tmp_path, "start")[0]["boot"] == 9


@pytest.mark.system
async def test_the_simulated_device_listens_on_tcp_and_says_where(tmp_path):
    async with program(MCU, *mcu_arguments(tmp_path), "--limit", 1, "--tcp-port", 0) as mcu:
        port = int(await mcu.stdout.readline())
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await ended(mcu) == Exit.OK
        writer.close()
    assert len(entries(tmp_path, "sample")) == 1


@pytest.mark.system
async def test_a_signal_ends_the_sampling_and_not_the_device(tmp_path):
    arguments = [*mcu_arguments(tmp_path), "--rate-hz", 1000, "--tcp-port", 0]
    async with program(MCU, *arguments) as mcu:
        await mcu.stdout.readline()
        mcu.send_signal(signal.SIGUSR1)
        taken = -1
        while taken != (now := len(entries(tmp_path, "sample"))):
            taken = now
            await asyncio.sleep(0.1)
        assert 0 < taken < 4096
        assert await ended(mcu) == Exit.OK


@pytest.mark.system
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rate-hz", "0"], "--rate-hz"),
        (["--sample-bytes", "43"], "--sample-bytes"),
        (["--sample-bytes", "7"], "whole samples"),
        (["--name", "n" * 25], "--name"),
        (["--loss", "2"], "--loss"),
        (["--samples", "/none"], "/none"),
    ],
)
def test_a_wrong_option_of_the_simulated_device_is_one_line(tmp_path, arguments, says):
    done = run(MCU, *mcu_arguments(tmp_path), "--tcp-port", 0, *arguments)
    assert done.returncode == Exit.USAGE
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.system
def test_a_pty_link_that_cannot_be_made_is_one_line(tmp_path):
    done = run(MCU, *mcu_arguments(tmp_path), "--pty-link", tmp_path / "none" / "tty")
    assert done.returncode == Exit.FAILED
    assert "none/tty" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.system
def test_a_wrong_configuration_is_one_line_and_exit_2(tmp_path):
    config = tmp_path / "bridge.toml"
    config.write_text(CONFIG.format(folder=tmp_path) + "speed = 9\n")
    done = run(BRIDGE, "--config", config)
    assert done.returncode == Exit.USAGE
    assert done.stderr == f"shoal-bridge: {config}: [device[0]] unknown key `speed`\n"


@pytest.mark.system
def test_a_configuration_can_be_checked_without_running_it(tmp_path):
    config = tmp_path / "bridge.toml"
    config.write_text(CONFIG.format(folder=tmp_path))
    done = run(BRIDGE, "--config", config, "--check")
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert "1 device" in done.stdout


@pytest.mark.system
def test_sockets_that_cannot_be_made_are_one_line_and_exit_1(tmp_path):
    (tmp_path / "run").write_text("in the way")
    config = tmp_path / "bridge.toml"
    config.write_text(CONFIG.format(folder=tmp_path))
    done = run(BRIDGE, "--config", config)
    assert done.returncode == Exit.FAILED
    assert str(tmp_path / "run") in done.stderr
    assert len(done.stderr.splitlines()) == 1
