"""One web server, asked for byte ranges of files by HTTP/1.1: what it may send is known before it sends it.

Everything else is cut off: a whole file where a part was asked for, a redirect, another length, a
transfer that is slower than `MIN_BYTES_PER_S` or that stands still. Nothing is believed of the bytes.
"""

import asyncio
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import h11

from shoal_agent.sources.errors import HostileSourceError, NotHereError, SourceError

GRACE_S: Final = 10.0
"""For connecting and the head of an answer; and no longer may a transfer stand still."""
MIN_BYTES_PER_S: Final = 1024
MAX_HEAD_BYTES: Final = 16 * 1024
_PIECE_BYTES: Final = 32 * 1024
_MISSING: Final = frozenset(
    {HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
)


@dataclass(slots=True)
class _Line:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection


class RangeServer:
    """Files below an http(s) address.

    Args:
        address: its beginning; `name` is put behind it.
        context: who is believed; None with a plain http address.
    """

    def __init__(self, address: str, context: ssl.SSLContext | None) -> None:
        parts = urlsplit(address)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._at = parts.netloc.rpartition("@")[2]
        self._path = parts.path.rstrip("/") + "/"
        self._context = context
        self._idle: list[_Line] = []
        self._is_closed = False

    async def get(self, name: str, offset_bytes: int, size_bytes: int, of_bytes: int) -> bytes:
        """So many bytes of a file that has `of_bytes`.

        Raises:
            NotHereError: there is no such file.
            HostileSourceError: the answer is not what HTTP gives for this.
            SourceError: nobody answers, or too slowly.
        """
        deadline_s = 2 * GRACE_S + size_bytes / MIN_BYTES_PER_S
        try:
            async with asyncio.timeout(deadline_s):
                while self._idle:
                    try:
                        return await self._got(
                            self._idle.pop(), name, offset_bytes, size_bytes, of_bytes
                        )
                    except (EOFError, ConnectionError):
                        # A server may close a kept connection at the moment we use it.
                        continue
                line = await self._connected()
                return await self._got(line, name, offset_bytes, size_bytes, of_bytes)
        except TimeoutError as exc:
            raise SourceError("it is too slow") from exc
        except EOFError as exc:
            raise SourceError("it hung up") from exc
        except OSError as exc:
            raise SourceError(exc.strerror or type(exc).__name__) from exc
        except h11.RemoteProtocolError as exc:
            raise HostileSourceError(f"not HTTP: {exc}"[:200]) from exc

    def close(self) -> None:
        """Close what is kept open, and keep nothing from now on."""
        self._is_closed = True
        for line in self._idle:
            line.writer.transport.abort()
        self._idle.clear()

    async def _connected(self) -> _Line:
        async with asyncio.timeout(GRACE_S):
            reader, writer = await asyncio.open_connection(
                self._host,
                self._port,
                ssl=self._context,
                limit=_PIECE_BYTES,
            )
        return _Line(reader, writer, _connection())

    async def _got(
        self, line: _Line, name: str, offset_bytes: int, size_bytes: int, of_bytes: int
    ) -> bytes:
        is_kept = False
        try:
            request = h11.Request(
                method="GET",
                target=self._path + name,
                headers=[
                    ("Host", self._at),
                    ("Range", f"bytes={offset_bytes}-{offset_bytes + size_bytes - 1}"),
                    ("Accept-Encoding", "identity"),
                ],
            )
            line.writer.write(line.http.send(request) + line.http.send(h11.EndOfMessage()))
            head = await self._event(line)
            while isinstance(head, h11.InformationalResponse):
                head = await self._event(line)
            if not isinstance(head, h11.Response):
                raise HostileSourceError("no answer")
            _check_head(head, offset_bytes, size_bytes, of_bytes)
            body = bytearray()
            while isinstance(event := await self._event(line), h11.Data):
                body += event.data
                if len(body) > size_bytes:
                    raise HostileSourceError("it sends more than was asked for")
            if len(body) != size_bytes:
                raise HostileSourceError("it sends less than it said")
            is_kept = line.http.our_state is h11.DONE and line.http.their_state is h11.DONE
            return bytes(body)
        finally:
            if is_kept and not self._is_closed:
                line.http.start_next_cycle()
                self._idle.append(line)
            else:
                line.writer.transport.abort()

    async def _event(self, line: _Line) -> object:
        while (event := line.http.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout(GRACE_S):
                piece = await line.reader.read(_PIECE_BYTES)
            if not piece:
                raise EOFError
            line.http.receive_data(piece)
        return event


def _connection() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)


def _check_head(head: h11.Response, offset_bytes: int, size_bytes: int, of_bytes: int) -> None:
    if head.status_code in _MISSING:
        raise NotHereError(f"it has no such file (status {head.status_code})")
    if head.status_code == HTTPStatus.OK:
        raise HostileSourceError("it ignores Range")
    if head.status_code != HTTPStatus.PARTIAL_CONTENT:
        raise SourceError(f"it answers with status {head.status_code}")
    headers = {bytes(key): bytes(value) for key, value in head.headers}
    wanted = f"bytes {offset_bytes}-{offset_bytes + size_bytes - 1}/{of_bytes}"
    if headers.get(b"content-range", b"").decode("latin-1") != wanted:
        raise HostileSourceError("it sends another range than was asked for")
