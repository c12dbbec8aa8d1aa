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
    """Take the address; the port is the one found where `port` is 0. Raises ListenError.

    Nobody is let in before `let_in`.
    """
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
        return await loop.create_server(
            new_protocol, host, port, backlog=BACKLOG, start_serving=False
        )
    except (OSError, ValueError) as exc:
        raise _cannot(host, port, exc) from exc


async def let_in(server: asyncio.Server, host: str, port: int) -> None:
    """Accept connections from now on. Raises ListenError when another took the address meanwhile."""
    try:
        await server.start_serving()
    except OSError as exc:
        raise _cannot(host, port, exc) from exc


def _cannot(host: str, port: int, exc: OSError | ValueError) -> ListenError:
    return ListenError(f"cannot listen on {host}:{port}: {_explain(exc)}", host=host, port=port)


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
