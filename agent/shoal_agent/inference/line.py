"""The engine's end of the socket to a worker: frames in, frames out. What they mean is `process_worker`'s matter."""

import asyncio
from collections.abc import Callable

from shoal_agent.inference import pipe
from shoal_contract.errors import DecodeError


class Line(asyncio.Protocol):
    """Hands on whole messages as they come; a stream and its task would cost each batch a switch more.

    Args:
        received: called with call, verdict and the rest of each message.
        ended: called once, with what was wrong with the last bytes, or "" when the line closed.
    """

    def __init__(
        self, received: Callable[[int, str, list[object]], None], ended: Callable[[str], None]
    ) -> None:
        self._received = received
        self._ended = ended
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def send(self, message: list[object]) -> None:
        """Nothing is sent after the end."""
        if self._transport is not None:
            self._transport.write(pipe.pack(message))

    def close(self) -> None:
        """What was not sent is not sent any more."""
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------ asyncio's
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a socket's is
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        buffer = self._buffer
        buffer += data
        try:
            while len(buffer) >= pipe.PREFIX.size:
                end = pipe.PREFIX.size + pipe.body_bytes(buffer[: pipe.PREFIX.size])
                if len(buffer) < end:
                    return
                call, verdict, rest = pipe.unpack(bytes(buffer[pipe.PREFIX.size : end]))
                del buffer[:end]
                self._received(call, verdict, rest)
        except DecodeError as exc:
            buffer.clear()
            self._finish(str(exc))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it
        """See asyncio.Protocol."""
        self._transport = None
        self._finish("")

    def _finish(self, reason: str) -> None:
        ended, self._ended = self._ended, _nobody
        ended(reason)


def _nobody(_: str) -> None:
    """Who wanted to know that the line ended knows it."""
