"""The local API over WebSocket: many requests under way, told apart by their ids, and answers in pieces.

A text message is a request in JSON; a binary one is the length of its JSON (4 bytes, big-endian), the JSON,
and the tensors' bytes. Answers have the same two forms. The library's sans-I/O half does the framing.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from http import HTTPStatus
from typing import Annotated, Final

import msgspec
import structlog
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from shoal_agent.errors import AgentError
from shoal_agent.inference.errors import BadInputError
from shoal_agent.local_api import oip
from shoal_agent.local_api.connection import GRACE_S, Connection, time_for
from shoal_agent.local_api.errors import (
    BAD_REQUEST,
    CANCELLED,
    FAILED,
    TOO_MANY,
    ApiError,
    refusal,
)
from shoal_agent.local_api.inside import LocalApi
from shoal_agent.local_api.oip import Encoded

log = structlog.get_logger()

MAX_UNDER_WAY: Final = 16
QUIET_S: Final = 30.0
"""After so long without a word the other side is asked whether it is there."""
_LENGTH: Final = struct.Struct(">I")
_COME_AGAIN_S: Final = 0.1
_QUIET_LOG = logging.getLogger(__name__)
_QUIET_LOG.disabled = True


class _Envelope(msgspec.Struct, frozen=True):
    """What is read of every message before the rest of it."""

    id: Annotated[str, msgspec.Meta(max_length=256)] = ""
    cancel: str = ""


_ENVELOPES: Final = msgspec.json.Decoder(_Envelope)


class SocketConnection(Connection):
    """One WebSocket, from its handshake to its close frame."""

    def __init__(self, api: LocalApi) -> None:
        super().__init__(api)
        self.api = api
        limit = api.max_body_bytes
        self._protocol = ServerProtocol(max_size=(limit, limit), logger=_QUIET_LOG)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._parts: list[bytes] = []
        self._opcode = Opcode.TEXT
        self._arriving_bytes = 0
        self._is_midway = False
        self._was_pinged = False
        self._turn = asyncio.Lock()

    def begin(self, transport: asyncio.Transport, received: bytes) -> None:
        """Take a transport over, with the request that asked for a WebSocket and what followed it."""
        self.take_over(transport)
        self.due_in(QUIET_S)
        self.data_received(received)

    # ------------------------------------------------------------------ asyncio's side
    def data_received(self, data: bytes) -> None:
        """asyncio: bytes arrived."""
        if self.transport.is_closing():
            return
        self._was_pinged = False
        try:
            self.api.reserve(len(data))
        except ApiError as exc:
            self._end(CloseCode.TRY_AGAIN_LATER, str(exc))
            return
        self._arriving_bytes += len(data)
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._protocol.send_response(self._protocol.accept(event))
                self.api.give_back(self._arrived())
            elif isinstance(event, Frame):
                self._take(event)
        self._write_out()
        self._expect()

    def gone(self) -> None:
        """Nobody waits for the answers any more."""
        for task in self._running.values():
            task.cancel()
        self.api.give_back(self._arrived())

    def timed_out(self) -> None:
        """Silent, or too slow."""
        if self.is_behind or self._was_pinged or self._protocol.state is not State.OPEN:
            self.transport.abort()
        elif self._is_midway:
            self._end(CloseCode.POLICY_VIOLATION, "the message did not arrive in time")
        else:
            self._was_pinged = True
            self._protocol.send_ping(b"")
            self._write_out()
            self.due_in(QUIET_S)

    # ------------------------------------------------------------------ messages
    def turn_away(self, why: ApiError) -> None:
        """There is no place."""
        self._end(CloseCode.TRY_AGAIN_LATER, str(why))

    def _take(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.TEXT | Opcode.BINARY:
                self._opcode = frame.opcode
                self._parts = [bytes(frame.data)]
            case Opcode.CONT:
                self._parts.append(bytes(frame.data))
            case _:
                if not self._parts:
                    self.api.give_back(self._arrived())
                return
        if frame.fin:
            message = b"".join(self._parts)
            self._parts = []
            self._begin(message, self._arrived())

    def _arrived(self) -> int:
        """A message is complete: its bytes are of those who answer it."""
        size_bytes, self._arriving_bytes = self._arriving_bytes, 0
        return size_bytes

    def _expect(self) -> None:
        """How long may pass until the next word."""
        is_midway = self._arriving_bytes > 0
        if is_midway and not self._is_midway:
            self.due_in(time_for(self.api.max_body_bytes))
        elif not is_midway and not self.is_behind:
            self.due_in(QUIET_S)
        self._is_midway = is_midway

    def _begin(self, message: bytes, held_bytes: int) -> None:
        """Start what a message asks for."""
        name = ""
        try:
            body, json_bytes = self._opened(message)
            try:
                envelope = _ENVELOPES.decode(memoryview(body)[:json_bytes])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
                raise BadInputError(f"no message: {exc}") from exc
            name = envelope.id
            if envelope.cancel:
                self._cancel(envelope.cancel)
                self.api.give_back(held_bytes)
                return
            if name in self._running:
                raise ApiError(BAD_REQUEST, f"a request with the id {name[:64]!r} is under way")
            if len(self._running) >= MAX_UNDER_WAY:
                raise ApiError(
                    TOO_MANY,
                    f"{MAX_UNDER_WAY} requests are under way",
                    retry_after_s=_COME_AGAIN_S,
                )
        except AgentError as exc:
            self.api.give_back(held_bytes)
            self._refuse(name, refusal(exc, is_served_here=True))
            return
        work = self._answer(name, body, json_bytes)
        task = self.api.start(work, self, name="local_api.socket")
        self._running[name] = task

        # Not within the task: one that is cancelled before its first step never runs.
        def over(_: asyncio.Task[None]) -> None:
            self.api.give_back(held_bytes)
            if self._running.get(name) is task:
                del self._running[name]

        task.add_done_callback(over)

    def _opened(self, message: bytes) -> tuple[bytes, int | None]:
        """The request's bytes, and how many of them are JSON; None: all."""
        if self._opcode is Opcode.TEXT:
            return message, None
        if len(message) < _LENGTH.size:
            raise BadInputError("a binary message begins with the length of its JSON")
        (json_bytes,) = _LENGTH.unpack_from(message)
        if json_bytes > len(message) - _LENGTH.size:
            raise BadInputError("the JSON is longer than the message")
        return message[_LENGTH.size :], json_bytes

    async def _answer(self, name: str, body: bytes, json_bytes: int | None) -> None:
        try:
            call = oip.decode(body, json_bytes)
            if call.stream_rows:
                async for answer in self.api.service.stream(call):
                    await self._say(answer)
            else:
                await self._say(await self.api.service.infer(call))
        except AgentError as exc:
            await self.drained()
            self._refuse(name, refusal(exc, is_served_here=True))
        except Exception:
            # One request must not end the service for all: say so and go on.
            log.exception("a local request failed", over="websocket")
            self._refuse(name, ApiError(FAILED, "internal error"))

    def _cancel(self, name: str) -> None:
        """Answer a request with 499 instead; one that is not under way has had its answer."""
        task = self._running.pop(name, None)
        if task is not None:
            task.cancel()
            self._refuse(name, ApiError(CANCELLED, "cancelled"))

    # ------------------------------------------------------------------ what is said
    async def _say(self, answer: Encoded) -> None:
        """In one's turn, and when the other side has read what was said before."""
        async with self._turn:
            await self.drained()
            self._say_now(answer, HTTPStatus.OK)

    def _refuse(self, name: str, why: ApiError) -> None:
        said: dict[str, object] = {"id": name, "error": str(why), "status": why.status}
        if why.retry_after_s is not None:
            said["retry_after_s"] = round(why.retry_after_s, 3)
        self._say_now(Encoded(msgspec.json.encode(said)), why.status)

    def _say_now(self, answer: Encoded, status: int) -> None:
        if self._protocol.state is not State.OPEN:
            return
        self.api.stats.answers[status] += 1
        was_behind = self.is_behind
        if answer.tensors:
            length = _LENGTH.pack(len(answer.header))
            self._protocol.send_binary(b"".join([length, answer.header, *answer.tensors]))
        else:
            self._protocol.send_text(answer.header)
        self._write_out()
        if self.is_behind and not was_behind:
            self.due_in(time_for(answer.size_bytes))

    def pause_writing(self) -> None:
        """asyncio: who does not read is not read from, or refusals would pile up."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """asyncio: everything is on its way."""
        super().resume_writing()
        self.transport.resume_reading()
        if not self._is_midway:
            self.due_in(QUIET_S)

    def _end(self, code: CloseCode, reason: str) -> None:
        """End the connection for what the other side did."""
        if self._protocol.state is State.OPEN:
            self._protocol.fail(code, reason)
            self._write_out()
            self.due_in(GRACE_S)
        else:
            self.transport.abort()

    def _write_out(self) -> None:
        if self.transport.is_closing():
            return
        if output := b"".join(self._protocol.data_to_send()):
            self.transport.write(output)
        if self._protocol.eof_sent:
            self.transport.close()
