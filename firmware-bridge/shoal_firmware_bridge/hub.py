"""One device between its line and its agent: reads both, does what `device` says, comes back for ever."""

import asyncio
import contextlib
import dataclasses
import random
import time
from pathlib import Path
from typing import NoReturn

import serialx
import structlog

from shoal_contract import frames
from shoal_contract.frames import Frame, FrameReader
from shoal_firmware_bridge import device as machine
from shoal_firmware_bridge.config import DeviceTable
from shoal_firmware_bridge.device import Action, DeviceState, Greeted, Timing, ToAgent, ToDevice
from shoal_firmware_bridge.errors import LineError
from shoal_firmware_bridge.links import open_line
from shoal_firmware_bridge.sockets import listening_socket

log = structlog.get_logger()

MAX_AGENT_BUFFER_BYTES = 64 * 1024
MAX_LINE_BUFFER_BYTES = 4 * 1024
"""A third of a second at 115200 baud: more would only be old news and repeats of it."""

READ_BYTES = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Patience:
    """How long the hub waits for what; tests are less patient.

    Attributes:
        reconnect_s: before a broken line is opened again, doubled every time in vain.
        silence_s: a TCP line on which nothing came for so long is opened anew (devices beat every
            second; a device that lost its power does not close its connection).
    """

    timing: Timing = dataclasses.field(default_factory=Timing)
    reconnect_s: float = 0.5
    max_reconnect_s: float = 10.0
    silence_s: float = 10.0


class DeviceHub:
    """Serves one device at one Unix socket until its `run` is cancelled."""

    def __init__(self, device: DeviceTable, socket: Path, patience: Patience | None = None) -> None:
        self._device = device
        self._socket = socket
        self._patience = patience or Patience()
        first_seq = random.SystemRandom().randint(machine.LOWEST_SEQ, machine.HIGHEST_FIRST_SEQ)
        self._state = DeviceState(first_seq, self._patience.timing)
        self._line: asyncio.StreamWriter | None = None
        self._agent: asyncio.StreamWriter | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        self._log = log.bind(device=device.name)

    async def run(self, *, listening: asyncio.Event) -> NoReturn:
        """Serve for ever; `listening` is set once the socket is there.

        Raises:
            SocketError: the socket cannot be made.
        """
        with listening_socket(self._socket) as sock:
            async with asyncio.TaskGroup() as tasks:

                def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    if self._stopping:
                        writer.transport.abort()
                        return
                    tasks.create_task(
                        self._serve_agent(reader, writer), name=f"{self._device.name}.agent"
                    )

                server = await asyncio.start_unix_server(greet, sock=sock)
                try:
                    listening.set()
                    tasks.create_task(self._repeat(), name=f"{self._device.name}.repeat")
                    await self._keep_line()
                finally:
                    self._stopping = True
                    server.close()
                    self._log.info("device counters", **dataclasses.asdict(self._state.stats))

    # ------------------------------------------------------------- the device's side
    async def _keep_line(self) -> NoReturn:
        shortest_s = self._patience.reconnect_s
        delay_s, told = shortest_s, ""
        while True:
            try:
                async with open_line(self._device) as (reader, writer):
                    self._log.info("device line open", link=self._device.link)
                    told = ""
                    self._line = writer
                    self._act(self._state.link_up(time.monotonic()))
                    if await self._read_line(reader):
                        delay_s = shortest_s
                    self._log.warning("device line closed")
            except LineError as exc:
                if str(exc) != told:
                    self._log.warning("device line broken", reason=str(exc))
                    told = str(exc)
            finally:
                self._line = None
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, self._patience.max_reconnect_s)

    async def _read_line(self, reader: asyncio.StreamReader) -> bool:
        """Until the line ends; whether a frame came.

        Raises:
            LineError: it broke, or fell silent.
        """
        cutter = FrameReader()
        damaged, heard = 0, False
        silence_s = self._patience.silence_s if self._device.link == "tcp" else None
        try:
            while True:
                async with asyncio.timeout(silence_s):
                    data = await reader.read(READ_BYTES)
                if not data:
                    return heard
                for frame in cutter.receive(data):
                    heard = True
                    self._act(self._state.from_device(frame, time.monotonic()))
                total = sum(cutter.errors.values())
                if total > 2 * damaged:  # a bad line would fill the log
                    self._log.warning("damaged frames", reasons=dict(cutter.errors))
                    damaged = total
        except TimeoutError as exc:
            raise LineError(f"silent for {silence_s:g} s") from exc
        except OSError as exc:
            raise LineError(exc.strerror or str(exc)) from exc
        except serialx.SerialException as exc:
            raise LineError(str(exc)) from exc

    # ------------------------------------------------------------- the agent's side
    async def _serve_agent(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._agent is not None:
            self._log.info("a newer agent took over")
            self._agent.transport.abort()
        self._agent = writer
        self._state.agent_came()
        self._log.info("agent connected")
        cutter = FrameReader()
        try:
            while (data := await reader.read(READ_BYTES)) and self._agent is writer:
                for frame in cutter.receive(data):
                    self._act(self._state.from_agent(frame, time.monotonic()))
        except OSError:
            pass  # gone is gone
        finally:
            if self._agent is writer:
                self._agent = None
                self._state.agent_went()
                self._log.info("agent gone", damaged=dict(cutter.errors))
            writer.transport.abort()

    # ------------------------------------------------------------- doing
    async def _repeat(self) -> NoReturn:
        while True:
            due_s = self._state.next_tick_s
            wait_s = None if due_s is None else max(0.0, due_s - time.monotonic())
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            self._act(self._state.tick(time.monotonic()))

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case ToDevice(frame):
                    self._to_device(frame)
                case ToAgent(frame):
                    self._to_agent(frame)
                case Greeted(name, firmware, boot):
                    self._greeted(name, firmware, boot)
        self._wake.set()

    def _to_device(self, frame: Frame) -> None:
        # Without a line, or when it is full, the frame is as lost as on a bad one: commands are repeated,
        # and so are events when the answer to them is lost.
        line = self._line
        if line is None or line.transport.get_write_buffer_size() > MAX_LINE_BUFFER_BYTES:
            return
        # A serial line that broke says so to its writer too; its reader deals with it.
        with contextlib.suppress(OSError, serialx.SerialException):
            line.write(frames.encode(frame))

    def _to_agent(self, frame: Frame) -> None:
        agent = self._agent
        if agent is None or agent.is_closing():
            return
        if agent.transport.get_write_buffer_size() > MAX_AGENT_BUFFER_BYTES:
            self._log.warning("agent does not read; connection dropped")
            agent.transport.abort()
            return
        agent.write(frames.encode(frame))

    def _greeted(self, name: str, firmware: str, boot: int) -> None:
        self._log.info("device greeted", firmware=firmware, boot=boot)
        if name != self._device.name:
            self._log.warning("device has another name", says=name)
