"""A board of the tests: a simulated device, a bridge and an agent, real processes in one short folder."""

import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.support.programs import Program, running

from shoal_fleet import digits

NODE = "board-1"
SAMPLE_CHANNEL = 1
DISPLAY_CHANNEL = 2

DEVICE_TOML = """\
[[device]]
name = "meter"
socket = "{folder}/dev/meter.sock"
[[pipeline]]
stream = "digits"
device = "meter"
channel = 1
model = "digits"
[pipeline.command]
channel = 2
"""


class Board:
    """The files of a board; its programs are started one by one."""

    def __init__(self, folder: Path, node: str = NODE) -> None:
        self.folder = folder
        self.node = node
        self.state = folder / "state"
        self.tty = folder / "tty"
        self.device_log = folder / "device.jsonl"

    def agent_toml(
        self, broker_port: int, *, device: bool = False, more: str = "", transport: str = "aiomqtt"
    ) -> Path:
        path = self.folder / "agent.toml"
        path.write_text(
            f'node = "{self.node}"\nstate_dir = "{self.state}"\n'
            f'[broker]\nhost = "127.0.0.1"\nport = {broker_port}\ntransport = "{transport}"\n'
            f"[peers]\nenabled = false\n{more}\n"
            + (DEVICE_TOML.format(folder=self.folder) if device else "")
        )
        return path

    @asynccontextmanager
    async def agent(
        self,
        broker_port: int,
        *,
        device: bool = False,
        more: str = "",
        prefix: tuple[str, ...] = (),
        program: str | Path = "shoal_agent",
        before: tuple[object, ...] = (),
        transport: str = "aiomqtt",
    ) -> AsyncIterator[Program]:
        """`shoal-agent` (or a script that is one, with arguments of its own `before`), once it runs."""
        config = self.agent_toml(broker_port, device=device, more=more, transport=transport)
        async with running(
            program,
            *before,
            "--config",
            config,
            log=self.folder / "agent.log",
            ready_file=self.folder / "agent.ready",
            prefix=prefix,
        ) as agent:
            yield agent

    @asynccontextmanager
    async def bridge(self) -> AsyncIterator[Program]:
        """`shoal-bridge` on the device's pty."""
        config = self.folder / "bridge.toml"
        config.write_text(
            f'socket_dir = "{self.folder}/dev"\n'
            f'[[device]]\nname = "meter"\nlink = "serial"\npath = "{self.tty}"\n'
        )
        async with running(
            "shoal_firmware_bridge",
            "--config",
            config,
            log=self.folder / "bridge.log",
            ready_file=self.folder / "bridge.ready",
        ) as program:
            yield program

    @asynccontextmanager
    async def device(self, *, rate_hz: float, limit: int, **line: object) -> AsyncIterator[Program]:
        """The simulated microcontroller with `limit` digits to show; `line` is its line's faults."""
        samples = self.folder / "samples.bin"
        scans = digits.held_out()
        samples.write_bytes(b"".join(digits.pack_u5(scan.levels) for scan in scans))
        faults = [word for key, value in line.items() for word in (f"--{key}", str(value))]
        async with running(
            "shoal_firmware_bridge.simulated_mcu",
            *("--name", "meter", "--samples", samples, "--rate-hz", rate_hz, "--limit", limit),
            *("--pty-link", self.tty, "--log", self.device_log, *faults),
            log=self.folder / "device.log",
        ) as program:
            yield program

    def told(self, kind: str) -> list[dict]:
        """What the device wrote down of one kind."""
        if not self.device_log.exists():
            return []
        events = [
            json.loads(line)
            for line in self.device_log.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        return [event for event in events if event["kind"] == kind]


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path, because a Unix socket's may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="b-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
