"""The agent's end of a device: a Unix socket to the bridge that speaks device frames.

Sends a beat every second (the device goes to its safe state without it), commands and waits for their
replies, and answers a sample only when its handler is done: an unanswered sample comes again.
"""

import asyncio
import contextlib
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import structlog

from shoal_agent.background import Background
from shoal_agent.errors import DeviceError, TooLongError
from shoal_contract import frames
from shoal_contract.errors import EncodeError
from shoal_contract.frames import Frame, Kind, Op, Scalar, Status

log = structlog.get_logger()

COMMAND_TIMEOUT_S = 5.0
RECONNECT_S = 0.5
MAX_AT_ONCE = 8
_REMEMBERED = 256
_READ_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """What a device measured; (boot, seq) names it for ever."""

    channel: int
    boot: int
    seq: int
    payload: bytes


class NotNowError(Exception):
    """Raised by a sample handler: not done, leave it unanswered; it comes again."""


SampleHandler = Callable[[Sample], Awaitable[None]]


class DeviceLink:
    """One device. Build it with `DeviceLink.open`.

    Attributes:
        samples: how many samples were answered.
        damaged: frames thrown away, by reason.
    """

    def __init__(self, name: str, socket: str) -> None:
        self.name = name
        self._socket = socket
        self._writer: asyncio.StreamWriter | None = None
        self._handlers: dict[int, SampleHandler] = {}
        self._waiting: dict[int, asyncio.Future[tuple[Scalar, ...]]] = {}
        self._seq = random.SystemRandom().randrange(1 << 31)
        self._in_hand: set[tuple[int, int]] = set()
        self._done: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._last_beat: tuple[Scalar, ...] = ()
        self._refuses_unknown = False
        self.samples = 0
        self.damaged: dict[str, int] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str, socket: str) -> AsyncIterator[Self]:
        """Connect now and again for ever, until the context is left."""
        link = cls(name, socket)
        async with Background.open() as background:
            background.start(link._serve(), name=f"device.{name}")
            yield link

    @property
    def connected(self) -> bool:
        """Whether the bridge is there (not whether the device is)."""
        return self._writer is not None

    def on_sample(self, channel: int, handler: SampleHandler) -> None:
        """Samples of this channel go to `handler`; they are answered when it has returned."""
        self._handlers[channel] = handler

    def no_sample(self, channel: int, handler: SampleHandler) -> None:
        """Samples of this channel do not go to `handler` any more; another one stays."""
        if self._handlers.get(channel) == handler:
            del self._handlers[channel]

    def refuse_unknown(self) -> None:
        """Whoever wants samples has said so: those of other channels are refused, and the device drops them.

        Until then they are left unanswered, and come again.
        """
        self._refuses_unknown = True

    def describe(self) -> dict[str, object]:
        """For an operator."""
        uptime_s, safe, unanswered = (*self._last_beat[:3], None, None, None)[:3]
        return {
            "device": self.name,
            "bridge": self.connected,
            "uptime_s": uptime_s,
            "safe": safe,
            "unanswered": unanswered,
            "samples": self.samples,
            "damaged": dict(self.damaged),
        }

    async def set(self, channel: int, value: Scalar, *context: Scalar) -> None:
        """Set a channel; returns when the device says that it did.

        Raises:
            DeviceError: it refused, or did not answer.
        """
        await self._command(Op.SET, channel, value, *context)

    async def get(self, channel: int) -> Scalar:
        """Read a channel."""
        reply = await self._command(Op.GET, channel)
        return reply[1] if len(reply) > 1 else None

    async def _command(self, op: Op, *args: Scalar) -> tuple[Scalar, ...]:
        if self._writer is None:
            raise DeviceError(f"{self.name}: the bridge is not there")
        self._seq = (self._seq + 1) & frames.MAX_SEQ
        seq = self._seq
        reply: asyncio.Future[tuple[Scalar, ...]] = asyncio.get_running_loop().create_future()
        try:
            wire = frames.encode(Frame(Kind.COMMAND, seq, op, args))
        except EncodeError as exc:
            raise TooLongError(f"{self.name}: {exc}") from exc
        self._waiting[seq] = reply
        try:
            self._writer.write(wire)
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                answer = await reply
        except TimeoutError as exc:
            raise DeviceError(f"{self.name}: no answer in {COMMAND_TIMEOUT_S:g} s") from exc
        finally:
            del self._waiting[seq]
        status = answer[0] if answer else None
        if status != Status.OK:
            names = {int(one): one.name.lower().replace("_", " ") for one in Status}
            word = names.get(status, repr(status)) if isinstance(status, int) else repr(status)
            raise DeviceError(f"{self.name}: {op.name.lower()} was answered with: {word}")
        return answer

    # ------------------------------------------------------------- the connection
    async def _serve(self) -> None:
        told = False
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._socket)
            except OSError as exc:
                if not told:
                    log.warning("bridge is not there", device=self.name, reason=exc.strerror)
                    told = True
                await asyncio.sleep(RECONNECT_S)
                continue
            told = False
            log.info("bridge connected", device=self.name)
            self._writer = writer
            try:
                async with asyncio.TaskGroup() as tasks:
                    beats = tasks.create_task(self._beat(writer), name=f"device.{self.name}.beat")
                    await self._read(reader, tasks)
                    beats.cancel()
            except* OSError as group:
                log.info("bridge lost", device=self.name, reason=str(group.exceptions[0]))
            finally:
                self._writer = None
                for reply in self._waiting.values():
                    if not reply.done():
                        reply.set_exception(DeviceError(f"{self.name}: the bridge went away"))
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            await asyncio.sleep(RECONNECT_S)

    async def _beat(self, writer: asyncio.StreamWriter) -> None:
        beat = frames.encode(Frame(Kind.BEAT, 0, Op.ALIVE))
        while True:
            writer.write(beat)
            await writer.drain()
            await asyncio.sleep(frames.BEAT_INTERVAL_S)

    async def _read(self, reader: asyncio.StreamReader, tasks: asyncio.TaskGroup) -> None:
        cutter = frames.FrameReader()
        self.damaged = cutter.errors
        while data := await reader.read(_READ_BYTES):
            for frame in cutter.receive(data):
                match frame.kind:
                    case Kind.REPLY:
                        waiting = self._waiting.get(frame.seq)
                        if waiting is not None and not waiting.done():
                            waiting.set_result(frame.args)
                    case Kind.BEAT:
                        self._last_beat = frame.args
                    case Kind.EVENT if frame.op == Op.SAMPLE:
                        self._take(frame, tasks)
                    case _:
                        log.debug("unexpected frame", device=self.name, kind=frame.kind)

    def _take(self, frame: Frame, tasks: asyncio.TaskGroup) -> None:
        match frame.args:
            case (int(channel), int(boot), bytes(payload)):
                sample = Sample(channel, boot, frame.seq, payload)
            case _:
                self._reply(frame.seq, None, Status.BAD_ARGS)
                return
        key = (sample.boot, sample.seq)
        if key in self._done:
            self._reply(sample.seq, sample.boot, Status.OK)
        elif key in self._in_hand or len(self._in_hand) >= MAX_AT_ONCE:
            return
        elif (handler := self._handlers.get(channel)) is None:
            if self._refuses_unknown:
                self._reply(sample.seq, sample.boot, Status.UNKNOWN_OP)
        else:
            self._in_hand.add(key)
            tasks.create_task(self._handle(handler, sample), name=f"device.{self.name}.sample")

    async def _handle(self, handler: SampleHandler, sample: Sample) -> None:
        key = (sample.boot, sample.seq)
        try:
            await handler(sample)
        except NotNowError:
            return
        finally:
            self._in_hand.discard(key)
        self.samples += 1
        self._done[key] = None
        if len(self._done) > _REMEMBERED:
            self._done.popitem(last=False)
        self._reply(sample.seq, sample.boot, Status.OK)

    def _reply(self, seq: int, boot: int | None, status: Status) -> None:
        """Answer a sample; the boot keeps a late answer from the next boot's sample of that number."""
        args: tuple[Scalar, ...] = (int(status),) if boot is None else (int(status), boot)
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frames.encode(Frame(Kind.REPLY, seq, Op.SAMPLE, args)))
