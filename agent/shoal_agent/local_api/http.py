"""HTTP/1.1 of the local API, by h11: bounded heads and bodies, one request at a time, nobody waited for forever."""

from __future__ import annotations

import asyncio
import importlib
from enum import Enum, auto
from http import HTTPStatus
from typing import Final

import h11
import structlog

from shoal_agent.errors import AgentError
from shoal_agent.local_api import answers, heads, oip
from shoal_agent.local_api.connection import GRACE_S, Connection, time_for
from shoal_agent.local_api.errors import FAILED, TIMED_OUT, ApiError, refusal
from shoal_agent.local_api.heads import Head
from shoal_agent.local_api.inside import LocalApi
from shoal_agent.local_api.oip import Encoded
from shoal_agent.local_api.routes import Question, Route

log = structlog.get_logger()

MAX_HEAD_BYTES: Final = 16 * 1024
IDLE_S: Final = 75.0
LINGER_S: Final = 2.0
"""So long what still comes is thrown away behind a refusal, for a reset would overtake the answer."""
_READ_AHEAD_BYTES: Final = 64 * 1024
_WEBSOCKET: Final = "shoal_agent.local_api.websocket"
_CLOSE: Final = ("Connection", "close")
_NOTHING: Final = Head(Route(Question.LIVE), 0, None, is_plain=False)


class _Phase(Enum):
    IDLE = auto()
    READING = auto()
    BUSY = auto()
    WRITING = auto()
    ENDING = auto()


class HttpConnection(Connection):
    """One connection, from its first request to its last."""

    def __init__(self, api: LocalApi) -> None:
        super().__init__(api)
        self.api = api
        # Of one request: answers are written without it, which saves half of what it costs.
        self._http = _reader()
        self._phase = _Phase.IDLE
        self._head = b""
        self._asked = _NOTHING
        self._upgrade = b""
        self._refused: ApiError | None = None
        self._body = bytearray()
        self._reserved_bytes = 0
        self._ahead_bytes = 0
        self._is_known = False
        self._head_is_due = False
        self._was_told_to_go_on = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Between two requests, or before the first."""
        return self._phase is _Phase.IDLE and not self._head_is_due

    # ------------------------------------------------------------------ asyncio's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a socket was accepted."""
        super().connection_made(transport)
        if self._phase is _Phase.IDLE:
            self.due_in(IDLE_S)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes arrived."""
        if self._phase is _Phase.ENDING:
            return
        if self.is_idle and self._ask_what_is_known(data):
            return
        self._http.receive_data(data)
        if self._phase in {_Phase.BUSY, _Phase.WRITING}:
            self._ahead_bytes += len(data)
            if self._ahead_bytes > _READ_AHEAD_BYTES:
                self.transport.pause_reading()
            return
        self._advance()

    def resume_writing(self) -> None:
        """asyncio: the answer is on its way."""
        super().resume_writing()
        if self._phase is _Phase.WRITING and not self.transport.is_closing():
            self._next_request()
            self._advance()

    def gone(self) -> None:
        """Nobody waits for the answer any more."""
        if self._task is not None:
            self._task.cancel()
        self._give_back()

    def timed_out(self) -> None:
        """Too slow, or idle for too long."""
        if self.is_idle:
            self.transport.close()
        elif self._phase in {_Phase.IDLE, _Phase.READING}:
            self._fail(ApiError(TIMED_OUT, "the request did not arrive in time"))
        else:
            self.transport.abort()

    def turn_away(self, why: ApiError) -> None:
        """Refuse whatever is going to be asked."""
        self._fail(why)

    # ------------------------------------------------------------------ the request
    def _ask_what_is_known(self, data: bytes) -> bool:
        """Whether these bytes are one whole request, and its head one that came before."""
        self._head, asked = self.api.known_heads.find(data)
        if asked is None or len(data) - len(self._head) != asked.length:
            return False
        try:
            self._reserve(asked.length)
        except ApiError:
            return False
        self._is_known = True
        self._asked = asked
        self._body += data[len(self._head) :]
        self._ask()
        return True

    def _advance(self) -> None:
        """Take from the bytes that are here what can be taken."""
        try:
            while self._phase in {_Phase.IDLE, _Phase.READING}:
                event = self._http.next_event()
                match event:
                    case h11.Request():
                        self._begin(event)
                    case h11.Data():
                        self._take(event.data)
                    case h11.EndOfMessage():
                        if self._http.their_state is h11.DONE:  # and will ask again
                            self.api.known_heads.keep(self._head, self._asked)
                        self._ask()
                    case h11.NEED_DATA:
                        self._wait_for_more()
                        return
                    case _:
                        self.transport.close()
                        return
        except h11.RemoteProtocolError as exc:
            self._fail(ApiError(exc.error_status_hint, f"no HTTP/1.1 request: {exc}"))
        except ApiError as exc:
            self._fail(exc)

    def _wait_for_more(self) -> None:
        if self._phase is _Phase.READING:
            if self._http.they_are_waiting_for_100_continue and not self._was_told_to_go_on:
                self._was_told_to_go_on = True
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif not self._head_is_due and self._http.trailing_data[0]:
            self._head_is_due = True
            self.due_in(GRACE_S)

    def _begin(self, request: h11.Request) -> None:
        """A head has come: whether its body is wanted. Raises ApiError."""
        self._phase = _Phase.READING
        self._head_is_due = False
        headers = heads.fields(request)
        has_body = heads.has_body(headers)
        limit = self.api.max_body_bytes
        self.due_in(GRACE_S)
        try:
            self._asked = heads.understood(
                request, headers, access=self.api.access, max_body_bytes=limit
            )
            self._reserve(self._asked.length or 0)
        except ApiError as exc:
            if has_body:
                raise
            # All of it has come: the connection can go on.
            self._refused = exc
            return
        if has_body:
            self.due_in(time_for(self._asked.length or limit))
        if self._asked.route.question is Question.SOCKET:
            lines = [b"%b: %b\r\n" % (name, value) for name, value in request.headers.raw_items()]
            self._upgrade = b"GET %b HTTP/1.1\r\n%b\r\n" % (request.target, b"".join(lines))

    def _take(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self.api.max_body_bytes:
            raise heads.too_large(self.api.max_body_bytes)
        if len(self._body) > self._reserved_bytes:
            self._reserve(len(self._body) - self._reserved_bytes)

    def _ask(self) -> None:
        """The request is complete."""
        self.no_due()
        self._phase = _Phase.BUSY
        question = self._asked.route.question
        if self._refused is not None:
            self._refuse(self._refused)
        elif question is Question.INFER:
            self._task = self.api.start(self._infer(), self, name="local_api.infer")
        elif question is Question.SOCKET:
            self._task = self.api.start(self._switch(), self, name="local_api.switch")
        else:
            try:
                self._reply(Encoded(self.api.service.describe(self._asked.route)))
            except ApiError as exc:
                self._refuse(exc)

    async def _infer(self) -> None:
        route, body, self._body = self._asked.route, self._body, bytearray()
        try:
            call = oip.decode(
                body, self._asked.json_bytes, model=route.model, version=route.version
            )
            answer = await self.api.service.infer(call)
        except AgentError as exc:
            self._refuse(refusal(exc, is_served_here=True))
        except Exception:
            # One request must not end the service for all: say so and go on.
            log.exception("a local request failed", model=route.model)
            self._refuse(ApiError(FAILED, "internal error"))
        else:
            self._reply(answer)
        self._task = None
        if self._phase is _Phase.IDLE:
            self._advance()

    async def _switch(self) -> None:
        """Leave the socket to WebSocket."""
        # In a thread: the library takes long to load, and only who asks for it needs it.
        module = await asyncio.to_thread(importlib.import_module, _WEBSOCKET)
        socket = module.SocketConnection(self.api)
        self._phase = _Phase.ENDING
        self._task = None
        self.transport.set_protocol(socket)
        self.transport.resume_reading()
        self.api.replace(self, socket)
        socket.begin(self.transport, self._upgrade + self._http.trailing_data[0])

    # ------------------------------------------------------------------ the answer
    def _refuse(self, why: ApiError, *, is_last: bool = False) -> None:
        answer = Encoded(oip.error_body(str(why)))
        self._reply(answer, status=why.status, more=answers.headers_of(why), is_last=is_last)

    def _reply(
        self,
        answer: Encoded,
        *,
        status: int = HTTPStatus.OK,
        more: answers.Headers = (),
        is_last: bool = False,
    ) -> None:
        """Answer, and be ready for the next request as soon as the answer has left."""
        if self.transport.is_closing():
            return
        self.api.stats.answers[status] += 1
        # A known one is of a connection that goes on.
        is_last = is_last or not (self._is_known or self._http.their_state is h11.DONE)
        head = answers.head(status, answer, (*more, _CLOSE) if is_last else more)
        self.transport.write(b"".join((head, answer.header, *answer.tensors)))
        if is_last:
            self._end()
        elif self.is_behind:
            self._phase = _Phase.WRITING
            self.due_in(time_for(answer.size_bytes))
        else:
            self._next_request()

    def _next_request(self) -> None:
        self._give_back()
        self._refused = None
        self._asked = _NOTHING
        self._head = b""
        self._was_told_to_go_on = False
        if not self._is_known:
            ahead, _ = self._http.trailing_data
            self._http = _reader()
            if ahead:
                self._http.receive_data(ahead)
        self._is_known = False
        self._phase = _Phase.IDLE
        self.due_in(IDLE_S)
        if self._ahead_bytes > _READ_AHEAD_BYTES:
            self.transport.resume_reading()
        self._ahead_bytes = 0

    def _fail(self, why: ApiError) -> None:
        """Refuse in the middle of a request, and close: what follows cannot be told from it."""
        self._give_back()
        self._refuse(why, is_last=True)

    def _end(self) -> None:
        """The last answer is written: wait until the other side has it, but not for long."""
        self._phase = _Phase.ENDING
        self._give_back()
        self.due_in(LINGER_S)
        try:
            self.transport.write_eof()
        except OSError:
            self.transport.abort()  # it has gone without waiting for the answer

    # ------------------------------------------------------------------ the memory of bodies
    def _reserve(self, size_bytes: int) -> None:
        self.api.reserve(size_bytes)
        self._reserved_bytes += size_bytes

    def _give_back(self) -> None:
        self.api.give_back(self._reserved_bytes)
        self._reserved_bytes = 0
        self._body.clear()


def _reader() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
