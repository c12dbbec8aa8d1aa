"""One request of the enrolment door: HTTP/1.1 in, one answer out, and the connection ends. No sockets of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import h11

MAX_HEAD_BYTES: Final = 4096
_READ_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Asked:
    """What came."""

    method: str
    path: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answered:
    """What goes back."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = field(default=())


Respond = Callable[[Asked], Awaitable[Answered]]
PlainError = Callable[[int, str], Answered]


class _RefusedError(Exception):
    """The request is refused before it is understood."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def converse(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    respond: Respond,
    *,
    max_body_bytes: int,
    plain_error: PlainError,
) -> int:
    """Read a request, write its answer; the answer's status. Who hangs up first gets none, and 0 is returned."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    try:
        asked = await _read(connection, reader, max_body_bytes)
        answered = (
            plain_error(HTTPStatus.BAD_REQUEST, "nothing was asked") if asked is None else None
        )
        if answered is None and asked is not None:
            answered = await respond(asked)
    except h11.RemoteProtocolError as exc:
        answered = plain_error(exc.error_status_hint, "that is not HTTP/1.1")
    except _RefusedError as exc:
        answered = plain_error(exc.status, str(exc))
    except ConnectionError:
        return 0
    if answered is None:
        return 0
    _write(connection, writer, answered)
    await writer.drain()
    return answered.status


async def _read(
    connection: h11.Connection, reader: asyncio.StreamReader, max_body_bytes: int
) -> Asked | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                raise _RefusedError(HTTPStatus.EXPECTATION_FAILED, "send the body at once")
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Request):
            head = event
            said = dict(event.headers).get(b"content-length", b"0")
            if not said.isdigit() or int(said) > max_body_bytes:
                raise _RefusedError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the body is larger than {max_body_bytes} bytes",
                )
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_body_bytes:
                raise _RefusedError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the body is larger than {max_body_bytes} bytes",
                )
        elif head is None or not isinstance(event, h11.EndOfMessage):
            return None
        else:
            return Asked(
                head.method.decode("ascii"), head.target.decode("ascii", "replace"), bytes(body)
            )


def _write(connection: h11.Connection, writer: asyncio.StreamWriter, answered: Answered) -> None:
    if connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
        return
    headers = [
        ("Content-Type", answered.content_type),
        ("Content-Length", str(len(answered.body))),
        ("Connection", "close"),
        ("Cache-Control", "no-store"),
        *answered.headers,
    ]
    for event in (
        h11.Response(status_code=answered.status, headers=headers),
        h11.Data(data=answered.body),
        h11.EndOfMessage(),
    ):
        if data := connection.send(event):
            writer.write(data)
