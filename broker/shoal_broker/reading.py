"""Where asyncio puts the bytes of one read: in one buffer for all connections of a thread.

What asyncio takes for each read otherwise, 256 KiB, is mapped and unmapped every time. Knows no MQTT.
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod

READ_BYTES = 128 << 10


class _Buffer(threading.local):
    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_BYTES))


_buffer = _Buffer()


class ReadingProtocol(asyncio.BufferedProtocol):
    """A protocol that is given bytes, as asyncio.Protocol is: at most READ_BYTES at a time."""

    __slots__ = ()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's hint is -1
        """asyncio: where to put what comes in."""
        return _buffer.view

    def buffer_updated(self, nbytes: int) -> None:
        """asyncio: so much came in."""
        self.data_received(bytes(_buffer.view[:nbytes]))

    @abstractmethod
    def data_received(self, data: bytes) -> None:
        """Bytes came in."""
