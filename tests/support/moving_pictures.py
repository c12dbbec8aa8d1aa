"""Generated video: one colour a picture, as an MPEG-TS that a server on loopback sends, plainly or over RTSP."""

import asyncio
import base64
import contextlib
import io
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import av
import numpy as np

SIZE = (64, 48)
RATE_HZ = 25
PIECE_BYTES = 7 * 188


def colours(*levels: tuple[int, int, int], count: int = 25) -> bytes:
    """An MPEG-TS with `count` pictures of each colour."""
    return pictures([np.full((SIZE[1], SIZE[0], 3), level, np.uint8) for level in levels], count)


def pictures(shown: list[np.ndarray], count: int) -> bytes:
    """An MPEG-TS that shows each of these (uint8 [height, width, 3]) `count` times."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=RATE_HZ)
        stream.height, stream.width = shown[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 5
        stream.codec_context.bit_rate = 2_000_000
        for picture in shown:
            for _ in range(count):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


class VideoServer:
    """Sends the stream to whoever connects, again and again, at the pace of video.

    Attributes:
        connections: how often somebody came.
        sends: cleared, connections stay open and nothing is sent.
    """

    def __init__(self, stream: bytes, lasts_s: float) -> None:
        self.port = 0
        self._lasts_s = lasts_s
        self.connections = 0
        self.sends = asyncio.Event()
        self.sends.set()
        self._stream = stream
        self._writers: list[asyncio.StreamWriter] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, stream: bytes, lasts_s: float = 1.0) -> AsyncIterator[Self]:
        made = cls(stream, lasts_s)
        server = await asyncio.start_server(made._serve, "127.0.0.1", 0)
        made.port = server.sockets[0].getsockname()[1]
        async with server:
            try:
                yield made
            finally:
                for writer in made._writers:
                    writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(OSError):
            await self._send_for_ever(reader, writer)
        writer.close()

    async def _send_for_ever(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for piece in self._pieces():
            writer.write(piece)
            await writer.drain()

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Seven packets of the stream at a time, at about the pace of video."""
        pieces = range(0, len(self._stream), PIECE_BYTES)
        while True:
            for start in pieces:
                await self.sends.wait()
                yield self._stream[start : start + PIECE_BYTES]
                await asyncio.sleep(self._lasts_s / len(pieces))


class RtspServer(VideoServer):
    """The same behind RTSP (RFC 2326): DESCRIBE, SETUP over the same connection, PLAY; MPEG-TS in RTP (RFC 2250).

    Attributes:
        asked: the methods that came.
        password: `name:password` that is asked for.
    """

    def __init__(self, stream: bytes, lasts_s: float) -> None:
        super().__init__(stream, lasts_s)
        self.asked: list[str] = []
        self.password = ""

    async def _send_for_ever(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            playing = None
            while head := (await _until_blank_line(reader)).decode():
                method, url, _ = head.split(" ", 2)
                self.asked.append(method)
                fields = dict(
                    line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line
                )
                status, more, body = self._answer(method, url, fields)
                lines = [
                    f"RTSP/1.0 {status}", f"CSeq: {fields['CSeq']}", *more,
                    f"Content-Length: {len(body)}", "", body,
                ]  # fmt: skip
                writer.write("\r\n".join(lines).encode())
                if method == "PLAY" and playing is None:
                    playing = tasks.create_task(self._play(writer))
            if playing is not None:
                playing.cancel()

    def _answer(self, method: str, url: str, fields: dict[str, str]) -> tuple[str, list[str], str]:
        wanted = base64.b64encode(self.password.encode()).decode()
        if self.password and fields.get("Authorization") != f"Basic {wanted}":
            return "401 Unauthorized", ['WWW-Authenticate: Basic realm="camera"'], ""
        match method:
            case "DESCRIBE":
                sdp = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=c\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:v\r\n"
                return "200 OK", ["Content-Type: application/sdp", f"Content-Base: {url}/"], sdp
            case "SETUP":
                return "200 OK", [f"Transport: {fields['Transport']}", "Session: 1"], ""
        return "200 OK", ["Session: 1", "Public: DESCRIBE, SETUP, PLAY, TEARDOWN"], ""

    async def _play(self, writer: asyncio.StreamWriter) -> None:
        seq = 0
        async for piece in self._pieces():
            rtp = struct.pack(">BBHII", 0x80, 33, seq & 0xFFFF, seq * 3600 & 0xFFFFFFFF, 7) + piece
            writer.write(b"$\0" + struct.pack(">H", len(rtp)) + rtp)
            await writer.drain()
            seq += 1


async def _until_blank_line(reader: asyncio.StreamReader) -> bytes:
    """A request; what a receiver says of the stream meanwhile (RTCP) is passed over."""
    try:
        while (first := await reader.readexactly(1)) == b"$":
            channel_and_length = await reader.readexactly(3)
            await reader.readexactly(int.from_bytes(channel_and_length[1:], "big"))
        return first + await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
