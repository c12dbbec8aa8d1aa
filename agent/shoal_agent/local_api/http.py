"""HTTP/1.1 of the local API, by h11: bounded heads and bodies, one request at a time, nobody waited for forever."""

from __future__ import annotations

import asyncio
import math
import time
from enum import Enum, auto
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11
import structlog

from shoal_agent.errors import AgentError
from shoal_agent.local_api import oip, routes
from shoal_agent.local_api.connection import GRACE_S, Connection, time_for
from shoal_agent.local_api.errors import (
    BAD_REQUEST,
    FAILED,
    TIMED_OUT,
    TOO_LARGE,
    UNSUPPORTED_MEDIA,
    ApiError,
    refusal,
)
from shoal_agent.local_api.oip import Encoded
from shoal_agent.local_api.routes import Question, Route
from shoal_agent.local_api.websocket import SocketConnection

if TYPE_CHECKING:
    from shoal_agent.local_api.server import LocalApi

log = structlog.get_logger()

MAX_HEAD_BYTES: Final = 16 * 1024
IDLE_S: Final = 75.0
LINGER_S: Final = 2.0
"""So long what still comes is thrown away behind a refusal, for a reset would overtake the answer."""
_READ_AHEAD_BYTES: Final = 64 * 1024
_UPGRADE_REQUIRED: Final = 426
_JSON_LENGTH: Final = b"inference-header-content-length"
# What is read may be there once: two of them are read in two ways by two programs.
_ONCE: Final = frozenset(
    {b"host", b"origin", b"authorization", b"content-encoding", b"upgrade", _JSON_LENGTH}
)
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_REASONS: Final = {int(status): status.phrase for status in HTTPStatus}
_CLOSE: Final = ("Connection", "close")
_MONTHS: Final = [
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
]


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
        self._http = _reader()
        self._phase = _Phase.IDLE
        self._route = Route(Question.LIVE)
        self._refused: ApiError | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._reserved_bytes = 0
        self._json_bytes: int | None = None
        self._ahead_bytes = 0
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
        if self._phase is _Phase.IDLE and not self._head_is_due:
            self.transport.close()
        elif self._phase in {_Phase.IDLE, _Phase.READING}:
            self._fail(ApiError(TIMED_OUT, "the request did not arrive in time"))
        else:
            self.transport.abort()

    def turn_away(self, why: ApiError) -> None:
        """Refuse whatever is going to be asked."""
        self._fail(why)

    # ------------------------------------------------------------------ the request
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
        headers: dict[bytes, bytes] = {}
        for name, value in request.headers:
            if name in headers and name in _ONCE:
                raise ApiError(BAD_REQUEST, f"more than one header {name.decode()}")
            headers[name] = value
        length = int(headers.get(b"content-length", b"0"))
        has_body = length > 0 or b"transfer-encoding" in headers
        try:
            self._route = routes.route(request.method, request.target)
            is_open = self._route.question in routes.OPEN_TO_ALL
            self.api.access.check(headers, needs_token=not is_open)
            if length > self.api.max_body_bytes:
                raise self._too_large()
            self._json_bytes = _json_length(headers)
            if self._route.question is Question.SOCKET:
                self._switch(request, headers)
                return
            self._reserve(length)
        except ApiError as exc:
            if has_body:
                raise
            # All of it has come: the connection can go on.
            self._refused = exc
        self.due_in(time_for(length or self.api.max_body_bytes) if has_body else GRACE_S)

    def _take(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > self.api.max_body_bytes:
            raise self._too_large()
        if self._body_bytes > self._reserved_bytes:
            self._reserve(self._body_bytes - self._reserved_bytes)
        self._body.append(bytes(data))

    def _too_large(self) -> ApiError:
        limit = self.api.max_body_bytes
        return ApiError(TOO_LARGE, f"a body has at most {limit} bytes ([local_api] max_body_bytes)")

    def _ask(self) -> None:
        """The request is complete."""
        self.no_due()
        self._phase = _Phase.BUSY
        if self._refused is not None:
            self._refuse(self._refused)
        elif self._route.question is Question.INFER:
            self._task = self.api.start(self._infer(), self, name="local_api.infer")
        else:
            try:
                self._reply(Encoded(self.api.service.describe(self._route)))
            except ApiError as exc:
                self._refuse(exc)

    async def _infer(self) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        try:
            route = self._route
            call = oip.decode(body, self._json_bytes, model=route.model, version=route.version)
            answer = await self.api.service.infer(call)
        except AgentError as exc:
            self._refuse(refusal(exc, is_served_here=True))
        except Exception:
            # One request must not end the service for all: say so and go on.
            log.exception("a local request failed", model=self._route.model)
            self._refuse(ApiError(FAILED, "internal error"))
        else:
            self._reply(answer)
        self._task = None
        if self._phase is _Phase.IDLE:
            self._advance()

    # ------------------------------------------------------------------ the answer
    def _refuse(self, why: ApiError) -> None:
        self._reply(Encoded(oip.error_body(str(why))), status=why.status, headers=_headers_of(why))

    def _reply(
        self,
        answer: Encoded,
        *,
        status: int = HTTPStatus.OK,
        headers: tuple[tuple[str, str], ...] = (),
        is_last: bool = False,
    ) -> None:
        """Answer, and be ready for the next request as soon as the answer has left."""
        if self.transport.is_closing():
            return
        self.api.stats.answers[status] += 1
        is_last = is_last or self._http.their_state is not h11.DONE
        if answer.tensors:
            headers += (("Inference-Header-Content-Length", str(len(answer.header))),)
        head = _head(status, answer, (*headers, _CLOSE) if is_last else headers)
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
        self._json_bytes = None
        self._was_told_to_go_on = False
        ahead, _ = self._http.trailing_data
        self._http = _reader()
        if ahead:
            self._http.receive_data(ahead)
        self._phase = _Phase.IDLE
        self.due_in(IDLE_S)
        if self._ahead_bytes > _READ_AHEAD_BYTES:
            self.transport.resume_reading()
        self._ahead_bytes = 0

    def _fail(self, why: ApiError) -> None:
        """Refuse in the middle of a request, and close: what follows cannot be told from it."""
        self._give_back()
        self._reply(
            Encoded(oip.error_body(str(why))),
            status=why.status,
            headers=_headers_of(why),
            is_last=True,
        )

    def _end(self) -> None:
        """The last answer is written: wait until the other side has it, but not for long."""
        self._phase = _Phase.ENDING
        self._give_back()
        self.due_in(LINGER_S)
        try:
            self.transport.write_eof()
        except OSError:
            self.transport.abort()  # it has gone without waiting for the answer

    def _reserve(self, size_bytes: int) -> None:
        self.api.reserve(size_bytes)
        self._reserved_bytes += size_bytes

    def _give_back(self) -> None:
        self.api.give_back(self._reserved_bytes)
        self._reserved_bytes = self._body_bytes = 0
        self._body.clear()

    # ------------------------------------------------------------------ WebSocket
    def _switch(self, request: h11.Request, headers: dict[bytes, bytes]) -> None:
        """Leave the socket to WebSocket."""
        if headers.get(b"upgrade", b"").lower() != b"websocket":
            upgrade = (("Upgrade", "websocket"),)
            raise ApiError(_UPGRADE_REQUIRED, "this is a WebSocket", headers=upgrade)
        lines = [b"GET %b HTTP/1.1\r\n" % request.target]
        lines += [b"%b: %b\r\n" % (name, value) for name, value in request.headers.raw_items()]
        rest, _ = self._http.trailing_data
        self._phase = _Phase.ENDING
        self.no_due()
        socket = SocketConnection(self.api)
        self.transport.set_protocol(socket)
        self.api.replace(self, socket)
        socket.begin(self.transport, b"".join([*lines, b"\r\n", rest]))


def _reader() -> h11.Connection:
    """Of one request: answers are written without it, which saves half of what it costs."""
    return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)


def _json_length(headers: dict[bytes, bytes]) -> int | None:
    """How much of the body is JSON; None: all of it. Raises ApiError."""
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise ApiError(UNSUPPORTED_MEDIA, "bodies are taken as they are, not compressed")
    text = headers.get(_JSON_LENGTH)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 12:  # noqa: PLR2004 - digits, more than any body has
        raise ApiError(BAD_REQUEST, "Inference-Header-Content-Length is no length")
    return int(text)


def _headers_of(why: ApiError) -> tuple[tuple[str, str], ...]:
    if why.retry_after_s is None:
        return why.headers
    return (*why.headers, ("Retry-After", str(max(1, math.ceil(why.retry_after_s)))))


def _head(status: int, answer: Encoded, more: tuple[tuple[str, str], ...]) -> bytes:
    """The status line and the headers of an answer; `more` are of our own making."""
    kind = "application/octet-stream" if answer.tensors else "application/json"
    lines = "".join([f"{name}: {value}\r\n" for name, value in more])
    return (
        f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n"
        f"Date: {_date(int(time.time()))}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {answer.size_bytes}\r\n{lines}\r\n"
    ).encode("ascii")


@lru_cache(maxsize=2)
def _date(now_s: int) -> str:
    """A moment as HTTP writes it (RFC 9110, 5.6.7), whatever the locale."""
    now = time.gmtime(now_s)
    return (
        f"{_DAYS[now.tm_wday]}, {now.tm_mday:02} {_MONTHS[now.tm_mon - 1]} {now.tm_year}"
        f" {now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} GMT"
    )
