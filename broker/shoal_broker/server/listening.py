"""Sockets to listen on, and what to tell a person when there is none. Knows no MQTT."""

import asyncio
import errno
import socket
from collections.abc import Callable

from shoal_broker.errors import ListenError

BACKLOG = 1024


async def listen(
    host: str, port: int, new_protocol: Callable[[], asyncio.BaseProtocol]
) -> tuple[asyncio.Server, int]:
    """Accept connections there; the port is the one found where `port` is 0. Raises ListenError."""
    server = await _listen_on(host, port, new_protocol)
    found = int(server.sockets[0].getsockname()[1])
    if len(server.sockets) > 1 and not port:
        # `localhost` is two addresses, and each was given a free port of its own.
        server.close()
        server = await _listen_on(host, found, new_protocol)
    return server, found


async def _listen_on(
    host: str, port: int, new_protocol: Callable[[], asyncio.BaseProtocol]
) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(new_protocol, host, port, backlog=BACKLOG)
    except (OSError, ValueError) as exc:
        raise ListenError(
            f"cannot listen on {host}:{port}: {_explain(exc)}", host=host, port=port
        ) from exc


def _explain(exc: OSError | ValueError) -> str:
    if isinstance(exc, socket.gaierror):
        return "no such address"
    match getattr(exc, "errno", None):
        case errno.EADDRINUSE:
            return "the port is in use"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address"
        case errno.EACCES:
            return "ports below 1024 need privileges"
        case _:
            return str(exc)
