"""The agent's end of a device socket, moved by a test: it answers, commands and remembers what came."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from shoal_contract import frames
from shoal_contract.frames import Frame, FrameReader, Kind, Op, Scalar, Status


class DeviceClient:
    """Speaks device frames over a bridge's Unix socket; nobody reconnects it.

    Attributes:
        answering: whether it answers events; an unanswered one comes again.
        events: every event that came, repeats too.
        samples: payloads by seq, of the samples it answered.
        strays: replies to nothing it asked, or to what was answered already.
        beats: arguments of the device's beats.
        damaged: frames thrown away, by reason.
    """

    def __init__(self, writer: asyncio.StreamWriter, *, answering: bool) -> None:
        self.answering = answering
        self.events: list[Frame] = []
        self.samples: dict[int, bytes] = {}
        self.beats: list[tuple[Scalar, ...]] = []
        self.strays: list[Frame] = []
        self.closed = asyncio.Event()
        self._writer = writer
        self._seq = 0
        self._replies: dict[int, asyncio.Future[tuple[Scalar, ...]]] = {}
        self._cutter = FrameReader()
        self.damaged = self._cutter.errors

    @classmethod
    @asynccontextmanager
    async def open(
        cls, socket: Path, *, answering: bool = True, beat_s: float | None = 0.1
    ) -> AsyncIterator[Self]:
        """Connect; beat every `beat_s` seconds (None: never) until the context is left."""
        reader, writer = await asyncio.open_unix_connection(socket)
        client = cls(writer, answering=answering)
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(client._read(reader))
                beating = tasks.create_task(client._beat(beat_s)) if beat_s else None
                yield client
                reading.cancel()
                if beating:
                    beating.cancel()
        finally:
            writer.transport.abort()

    def send(self, frame: Frame) -> None:
        """Any frame."""
        self.send_bytes(frames.encode(frame))

    def send_bytes(self, data: bytes) -> None:
        """Any bytes."""
        if not self._writer.is_closing():
            self._writer.write(data)

    async def command(
        self, op: int, *args: Scalar, timeout_s: float = 45
    ) -> tuple[Status, tuple[Scalar, ...]]:
        """Send a command once; its status and what follows it in the reply."""
        self._seq += 1
        seq = self._seq
        reply = self._replies[seq] = asyncio.get_running_loop().create_future()
        self.send(Frame(Kind.COMMAND, seq, op, args))
        async with asyncio.timeout(timeout_s):
            status, *rest = await reply
        return Status(status), tuple(rest)

    async def _beat(self, beat_s: float) -> None:
        while True:
            self.send(Frame(Kind.BEAT, 0, Op.ALIVE))
            await asyncio.sleep(beat_s)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(4096):
                for frame in self._cutter.receive(data):
                    self._take(frame)
        except ConnectionError:
            pass
        finally:
            self.closed.set()

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.REPLY:
                waiting = self._replies.pop(frame.seq, None)
                if waiting is None:
                    self.strays.append(frame)
                else:
                    waiting.set_result(frame.args)
            case Kind.BEAT:
                self.beats.append(frame.args)
            case Kind.EVENT:
                self.events.append(frame)
                if self.answering:
                    if frame.op == Op.SAMPLE:
                        self.samples[frame.seq] = frame.args[2]
                    self.send(Frame(Kind.REPLY, frame.seq, frame.op, (int(Status.OK),)))
