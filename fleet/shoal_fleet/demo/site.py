"""Builds the demo's site: broker, controller, and for each board a device, a bridge and an agent."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from shoal_fleet import digits
from shoal_fleet.demo.audit import DISPLAY_CHANNEL, DeviceLog
from shoal_fleet.demo.processes import Processes
from shoal_fleet.demo.proxy import CuttableProxy

MODEL = "digits"
DEVICE = "meter"
SAMPLE_CHANNEL = 1
SAMPLE_BYTES = 40

_BRIDGE_TOML = """\
socket_dir = "{folder}/devices"

[[device]]
name = "{device}"
link = "serial"
path = "{folder}/tty-{device}"
"""

_AGENT_TOML = """\
node = "{node}"
state_dir = "{folder}/state"

[broker]
host = "127.0.0.1"
port = {broker_port}

[peers]
host = "127.0.0.1"
interfaces = ["127.0.0.1"]

[[device]]
name = "{device}"
socket = "{folder}/devices/{device}.sock"

[[pipeline]]
stream = "{model}"
device = "{device}"
channel = {sample_channel}
model = "{model}"

[pipeline.command]
channel = {display_channel}
value = "number"
"""


@dataclass(slots=True)
class Board:
    """One board of the site: what it is called, where it lives, and what its device wrote down."""

    node: str
    folder: Path
    log: DeviceLog


@dataclass(slots=True)
class Site:
    """The running site.

    Attributes:
        uplink: the proxy between the last board and the broker.
        controller_dir: the controller's state directory (its token and address).
    """

    processes: Processes
    boards: list[Board]
    uplink: CuttableProxy
    controller_dir: Path

    @property
    def far_board(self) -> Board:
        """The board behind the proxy."""
        return self.boards[-1]

    def refresh(self) -> None:
        """Read the devices' logs, and make sure that everything still runs."""
        self.processes.check()
        for board in self.boards:
            board.log.refresh()

    def stop_sampling(self) -> None:
        """Tell the devices to take no new samples; they go on until the old ones are answered."""
        for board in self.boards:
            self.processes.signal(f"device-{board.node}", signal.SIGUSR1)


@asynccontextmanager
async def build(folder: Path, *, nodes: int, rate_hz: float) -> AsyncIterator[Site]:
    """Start everything below `folder`; leaving ends everything.

    Raises:
        DemoError: a program did not start.
    """
    samples = folder / "samples.bin"
    samples.write_bytes(b"".join(digits.pack_u5(scan.levels) for scan in digits.held_out()))
    logs = folder / "logs"
    logs.mkdir()
    controller_dir = folder / "controller"
    async with AsyncExitStack() as stack:
        processes = await stack.enter_async_context(Processes.open(logs))
        ready = folder / "broker.ready"
        port = int(
            await processes.start(
                "broker",
                "shoal_broker",
                "--port",
                "0",
                "--ready-file",
                str(ready),
                ready_file=ready,
            )
        )
        uplink = await stack.enter_async_context(CuttableProxy.open(port))
        boards = [_prepare(folder, f"board-{number + 1}") for number in range(nodes)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_start_controller(processes, controller_dir, port), name="controller")
            for board in boards:
                board_port = uplink.port if board is boards[-1] else port
                tasks.create_task(
                    _start_board(processes, board, samples, board_port, rate_hz), name=board.node
                )
        yield Site(processes, boards, uplink, controller_dir)


def _prepare(folder: Path, node: str) -> Board:
    board = folder / node
    board.mkdir()
    return Board(node, board, DeviceLog(board / f"{DEVICE}.jsonl"))


async def _start_controller(processes: Processes, state_dir: Path, broker_port: int) -> None:
    ready = state_dir.with_suffix(".ready")
    await processes.start(
        "controller", "shoal_fleet", "serve",
        "--port", "0", "--broker", f"127.0.0.1:{broker_port}",
        "--state-dir", str(state_dir), "--ready-file", str(ready),
        ready_file=ready,
    )  # fmt: skip


async def _start_board(
    processes: Processes, board: Board, samples: Path, broker_port: int, rate_hz: float
) -> None:
    node, folder = board.node, board.folder
    await processes.start(
        f"device-{node}", "shoal_firmware_bridge.simulated_mcu",
        "--name", DEVICE, "--samples", str(samples), "--sample-bytes", str(SAMPLE_BYTES),
        "--rate-hz", str(rate_hz), "--pty-link", str(folder / f"tty-{DEVICE}"),
        "--log", str(board.log.path),
    )  # fmt: skip
    bridge_toml = folder / "bridge.toml"
    bridge_toml.write_text(_BRIDGE_TOML.format(folder=folder, device=DEVICE), encoding="utf-8")
    bridge_ready = folder / "bridge.ready"
    await processes.start(
        f"bridge-{node}", "shoal_firmware_bridge",
        "--config", str(bridge_toml), "--ready-file", str(bridge_ready),
        ready_file=bridge_ready,
    )  # fmt: skip
    agent_toml = folder / "agent.toml"
    agent_toml.write_text(
        _AGENT_TOML.format(
            node=node,
            folder=folder,
            broker_port=broker_port,
            device=DEVICE,
            model=MODEL,
            sample_channel=SAMPLE_CHANNEL,
            display_channel=DISPLAY_CHANNEL,
        ),
        encoding="utf-8",
    )
    agent_ready = folder / "agent.ready"
    await processes.start(
        f"agent-{node}", "shoal_agent",
        "--config", str(agent_toml), "--ready-file", str(agent_ready),
        ready_file=agent_ready,
    )  # fmt: skip
