"""One device between its line and its agent: reads both, does what `device` says, comes back for ever."""

import asyncio
import contextlib
import os
import random
import time
from pathlib import Path
from typing import NoReturn

import structlog

from shoal_contract import frames
from shoal_contract.frames import Frame, FrameReader
from shoal_firmware_bridge.config import DeviceTable
from shoal_firmware_bridge.device import Action, DeviceState, Greeted, ToAgent, ToDevice
from shoal_firmware_bridge.errors import SocketError
from shoal_firmware_bridge.links import Writer, open_line

log = structlog.get_logger()

RECONNECT_S = 0.5
MAX_RECONNECT_S = 10.0
MAX_BUFFERED_BYTES = 64 * 1024
READ_BYTES = 4096


class DeviceHub:
    """Serves one device at one Unix socket until its `run` is cancelled."""

    def __init__(self, device: DeviceTable, socket: Path) -> None:
        self._device = device
        self._socket = socket
        self._state = DeviceState(first_seq=random.SystemRandom().randrange(1 << 31))
        self._line: Writer | None = None
        self._agent: asyncio.StreamWriter | None = None
        self._wake = asyncio.Event()

    async def run(self, *, listening: asyncio.Event) -> NoReturn:
        """Serve for ever; `listening` is set once the socket is there.

        Raises:
            SocketError: the socket cannot be made.
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                self._socket.unlink()
            server = await asyncio.start_unix_server(self._serve_agent, self._socket)
            os.chmod(self._socket, 0o600)  # noqa: PTH101 - as above
        except OSError as exc:
            raise SocketError(f"{self._socket}: {exc.strerror}") from exc
        listening.set()
        async with server, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(), name=f"{self._device.name}.repeat")
            await self._keep_line()

    # ------------------------------------------------------------- the device's side
    async def _keep_line(self) -> NoReturn:
        delay_s, told = RECONNECT_S, ""
        while True:
            try:
                async with open_line(self._device) as (reader, writer):
                    log.info("device line open", device=self._device.name, link=self._device.link)
                    delay_s, told = RECONNECT_S, ""
                    self._line = writer
                    self._act(self._state.link_up(time.monotonic()))
                    await self._read_line(reader)
                    log.warning("device line closed", device=self._device.name)
            except (OSError, TimeoutError) as exc:
                reason = str(exc) or type(exc).__name__
                if reason != told:
                    log.warning("device line broken", device=self._device.name, reason=reason)
                    told = reason
            finally:
                self._line = None
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, MAX_RECONNECT_S)

    async def _read_line(self, reader: asyncio.StreamReader) -> None:
        cutter = FrameReader()
        damaged = 0
        while data := await reader.read(READ_BYTES):
            for frame in cutter.receive(data):
                self._act(self._state.from_device(frame, time.monotonic()))
            total = sum(cutter.errors.values())
            if total >= 2 * damaged + 1:
                log.warning("damaged frames", device=self._device.name, **cutter.errors)
                damaged = total

    # ------------------------------------------------------------- the agent's side
    async def _serve_agent(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._agent is not None:
            log.info("a newer agent took over", device=self._device.name)
            self._agent.transport.abort()
        self._agent = writer
        self._state.agent_came()
        log.info("agent connected", device=self._device.name)
        cutter = FrameReader()
        try:
            while data := await reader.read(READ_BYTES):
                for frame in cutter.receive(data):
                    self._act(self._state.from_agent(frame, time.monotonic()))
        except ConnectionError:
            pass
        finally:
            if self._agent is writer:
                self._agent = None
                self._state.agent_went()
                log.info("agent gone", device=self._device.name)
            writer.close()

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
        # Without a line the frame is as lost as on a bad one: commands are repeated, events come again.
        if self._line is not None:
            self._line.write(frames.encode(frame))

    def _to_agent(self, frame: Frame) -> None:
        agent = self._agent
        if agent is None or agent.is_closing():
            return
        if agent.transport.get_write_buffer_size() > MAX_BUFFERED_BYTES:
            log.warning("agent does not read; connection dropped", device=self._device.name)
            agent.transport.abort()
            return
        agent.write(frames.encode(frame))

    def _greeted(self, name: str, firmware: str, boot: int) -> None:
        log.info("device greeted", device=self._device.name, firmware=firmware, boot=boot)
        if name != self._device.name:
            log.warning("device has another name", device=self._device.name, says=name)
