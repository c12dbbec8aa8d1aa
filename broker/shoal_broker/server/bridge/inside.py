"""A session's way to the core of its own process: a pair of sockets, no port, no password. No MQTT.

Both ends are those that a connection from outside has, so limits, windows and pushing back are too.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from shoal_broker.bus_errors import LinkError
from shoal_broker.client_packets import connect_packet
from shoal_broker.codec_transport import CodecLink
from shoal_broker.link import Connect, SessionConfig, Will

Accept = Callable[[socket.socket], Awaitable[None]]
"""Has the broker take a socket for a connection from inside. Raises OSError when it listens no more."""


def connect_inside(accept: Accept) -> Connect:
    """How a session reaches the broker behind `accept`."""

    @asynccontextmanager
    async def connect(config: SessionConfig, will: Will | None) -> AsyncIterator[CodecLink]:
        hello = connect_packet(config, will)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        try:
            await accept(theirs)
        except OSError as exc:
            ours.close()
            theirs.close()
            raise LinkError(f"this broker takes no connections now: {exc}") from exc
        try:
            _, link = await asyncio.get_running_loop().create_connection(CodecLink, sock=ours)
        except BaseException:
            ours.close()
            raise
        try:
            await link.greet(hello, config)
            yield link
        finally:
            link.abort()

    return connect
