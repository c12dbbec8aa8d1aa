"""A web server for byte ranges that can misbehave in the ways that a test names."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

_RANGE = re.compile(rb"range: bytes=(\d+)-(\d+)", re.IGNORECASE)


class RangeSimulator:
    """Serves `files` by name. Set `manner` to one of: right, ignores-range, truncates, too-much, garbage,
    wrong-bytes, stalls, drips, redirects, another-range. The first `right_answers` are right all the same.

    Attributes:
        asked: the ranges that were asked for.
        connections: how many were made.
        sent_bytes: of bodies.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.manner = "right"
        self.right_answers = 0
        self.asked: list[tuple[int, int]] = []
        self.connections = 0
        self.sent_bytes = 0
        self.address = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, context: ssl.SSLContext | None = None) -> AsyncIterator[Self]:
        simulator = cls()
        serving = set()

        async def connected(reader, writer):
            serving.add(asyncio.current_task())
            simulator.connections += 1
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                await simulator._serve(reader, writer)
            writer.transport.abort()

        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        host = "127.0.0.1" if context is None else "localhost"
        simulator.address = f"http{'s' if context else ''}://{host}:{port}/blobs"
        try:
            yield simulator
        finally:
            server.close()
            for task in serving:
                task.cancel()

    async def _serve(self, reader, writer) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            whole = self.files.get(head.split(b" ", 2)[1].rpartition(b"/")[2].decode())
            found = _RANGE.search(head)
            if whole is None or found is None:
                writer.write(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
                continue
            start, end = int(found[1]), int(found[2])
            self.asked.append((start, end))
            manner = self.manner if len(self.asked) > self.right_answers else "right"
            head, body = _answer(manner, whole, start, end)
            writer.write(head)
            if manner == "stalls":
                await asyncio.Event().wait()
            if manner == "drips":
                await _dripped(writer, body)
            self.sent_bytes += len(body)
            writer.write(body)
            await writer.drain()
            if manner in {"truncates", "garbage"}:
                return


def _answer(manner: str, whole: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    status, told = "206 Partial Content", f"bytes {start}-{end}/{len(whole)}"
    body = whole[start : end + 1]
    length = len(body)
    match manner:
        case "ignores-range":
            status, body, length = "200 OK", whole, len(whole)
        case "garbage":
            return b"\x00\xff no HTTP at all \r\n\r\n" * 100, b""
        case "redirects":
            status, body, length = "302 Found\r\nLocation: /elsewhere", b"", 0
        case "another-range":
            told = f"bytes {start + 1}-{end + 1}/{len(whole)}"
        case "wrong-bytes":
            body = bytes(len(body))
        case "too-much":
            body, length = body + b"more", length + 4
        case "truncates":
            body = body[: len(body) // 2]
    head = f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\nContent-Range: {told}\r\n\r\n"
    return head.encode(), body


async def _dripped(writer, body: bytes) -> None:
    for byte in body:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)
