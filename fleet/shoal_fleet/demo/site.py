"""Builds the demo's site: broker, controller, and for each board a device, a bridge and an agent."""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from shoal_contract import envelope
from shoal_fleet import digits
from shoal_fleet.demo.audit import DISPLAY_CHANNEL, DeviceLog
from shoal_fleet.demo.processes import Processes
from shoal_fleet.demo.proxy import CuttableProxy
from shoal_fleet.issuer import load_signer

MODEL = "digits"
DEVICE = "meter"
SAMPLE_CHANNEL = 1
SAMPLE_BYTES = 40

_CONTROLLER_TOML = """\
root = "{root}"
state_dir = "{folder}"

[listen]
port = 0

[broker]
host = "127.0.0.1"
port = {broker_port}
"""

_BRIDGE_TOML = """\
socket_dir = "{folder}/devices"

[[device]]
name = "{device}"
link = "serial"
path = "{folder}/tty-{device}"
"""

_AGENT_TOML = """\
node = "{node}"
root = "{root}"
state_dir = "{folder}/state"

[broker]
host = "127.0.0.1"
port = {broker_port}

[trust]
command_keys = ["{command_key}"]

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


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all programs of the site have in common."""

    folder: Path
    root: str
    broker_port: int
    command_key: str
    samples: Path
    rate_hz: float


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
    async with AsyncExitStack() as stack:
        processes = await stack.enter_async_context(Processes.open(logs))
        ready = folder / "broker.ready"
        port = await processes.start(
            "broker", "shoal_broker", "--port", "0", "--ready-file", str(ready), ready_file=ready
        )
        # A root of its own: another demo on this machine is heard over mDNS, and is not ours.
        root = f"demo-{secrets.token_hex(3)}"
        plan = _Plan(folder, root, int(port), _command_key(folder), samples, rate_hz)
        uplink = await stack.enter_async_context(CuttableProxy.open(plan.broker_port))
        boards = [_prepare(folder, f"board-{number + 1}") for number in range(nodes)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_start_controller(processes, plan), name="controller")
            for board in boards:
                port_seen = uplink.port if board is boards[-1] else plan.broker_port
                tasks.create_task(
                    _start_board(processes, plan, board, broker_port=port_seen), name=board.node
                )
        yield Site(processes, boards, uplink, folder / "controller")


def _command_key(folder: Path) -> str:
    """The controller's public key, before it runs: boards start beside it, and obey nobody else."""
    state_dir = folder / "controller"
    state_dir.mkdir(mode=0o700)
    return envelope.key_text(load_signer(state_dir).public_key)


def _prepare(folder: Path, node: str) -> Board:
    board = folder / node
    board.mkdir()
    return Board(node, board, DeviceLog(board / f"{DEVICE}.jsonl"))


async def _start_controller(processes: Processes, plan: _Plan) -> None:
    config, ready = plan.folder / "controller.toml", plan.folder / "controller.ready"
    config.write_text(
        _CONTROLLER_TOML.format(
            root=plan.root, folder=plan.folder / "controller", broker_port=plan.broker_port
        ),
        encoding="utf-8",
    )
    await processes.start(
        "controller",
        "shoal_fleet",
        "serve",
        "--config",
        str(config),
        "--ready-file",
        str(ready),
        ready_file=ready,
    )


async def _start_board(
    processes: Processes, plan: _Plan, board: Board, *, broker_port: int
) -> None:
    """The device, then its bridge, then the agent: each finds the one before it ready."""
    folder = board.folder
    await processes.start(
        f"device-{board.node}", "shoal_firmware_bridge.simulated_mcu",
        "--name", DEVICE, "--samples", str(plan.samples), "--sample-bytes", str(SAMPLE_BYTES),
        "--rate-hz", str(plan.rate_hz), "--pty-link", str(folder / f"tty-{DEVICE}"),
        "--log", str(board.log.path),
    )  # fmt: skip
    bridge = _BRIDGE_TOML.format(folder=folder, device=DEVICE)
    await _start_role(processes, board, "bridge", "shoal_firmware_bridge", bridge)
    agent = _AGENT_TOML.format(
        node=board.node,
        root=plan.root,
        folder=folder,
        broker_port=broker_port,
        command_key=plan.command_key,
        device=DEVICE,
        model=MODEL,
        sample_channel=SAMPLE_CHANNEL,
        display_channel=DISPLAY_CHANNEL,
    )
    await _start_role(processes, board, "agent", "shoal_agent", agent)


async def _start_role(
    processes: Processes, board: Board, role: str, module: str, toml: str
) -> None:
    config, ready = board.folder / f"{role}.toml", board.folder / f"{role}.ready"
    config.write_text(toml, encoding="utf-8")
    await processes.start(
        f"{role}-{board.node}",
        module,
        "--config",
        str(config),
        "--ready-file",
        str(ready),
        ready_file=ready,
    )
