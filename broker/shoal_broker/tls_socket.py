"""Sockets that let a broker's refusal be read, and the handshake for who wants a TLS socket: paho.

A broker that refuses our certificate says why and resets the connection at once. Whoever writes
before reading (the CONNECT) meets the reset and not the reason, which waits to be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

_AGAIN = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class TlsSocket(ssl.SSLSocket):
    """A TLS socket that remembers what it died of: paho tells nobody.

    Attributes:
        failure: the error after which nothing more can be sent or read.
    """

    failure: OSError | None = None

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as ssl has it
        """Go on with the handshake; closed when it fails, for paho would leave that to nobody."""
        try:
            super().do_handshake(block)
        except _AGAIN:
            raise
        except OSError:
            self.close()
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Read what has been decrypted."""
        try:
            return super().recv(buflen, flags)
        except _AGAIN:
            raise
        except OSError as exc:
            self.failure = exc
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        """Write; after a refusal the reason may wait to be read, and it is what counts."""
        try:
            return super().send(data, flags)
        except _AGAIN:
            raise
        except OSError as exc:
            self.failure = exc
            with contextlib.suppress(OSError):
                self.recv(1)
            raise


class LastWordsSocket(socket.socket):
    """A TCP socket for asyncio's TLS: a reset shows when reading, behind the peer's last words."""

    def send(self, data: Any, flags: int = 0) -> int:
        """Write, or seem to."""
        try:
            return super().send(data, flags)
        except ConnectionError:
            return len(data)


async def handshake(sock: socket.socket, context: ssl.SSLContext, server_name: str) -> TlsSocket:
    """Return the socket that stands for `sock`, an empty shell from now on.

    Raises OSError, ssl.SSLError included, and ValueError for a name that cannot be asked for.
    """
    context.sslsocket_class = TlsSocket
    # Refuses a name that is none before there is a half-made socket that nobody could close.
    context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=server_name)
    wrapped = context.wrap_socket(sock, server_hostname=server_name, do_handshake_on_connect=False)
    loop = asyncio.get_running_loop()
    try:
        while True:
            try:
                wrapped.do_handshake()
            except ssl.SSLWantReadError:
                await _once(wrapped.fileno(), loop.add_reader, loop.remove_reader)
            except ssl.SSLWantWriteError:
                await _once(wrapped.fileno(), loop.add_writer, loop.remove_writer)
            else:
                return cast("TlsSocket", wrapped)
    except BaseException:
        wrapped.close()
        raise


def pending_bytes(sock: object) -> int:
    """What is decrypted and not read: no selector tells of it."""
    return sock.pending() if isinstance(sock, ssl.SSLSocket) else 0


async def _once(number: int, add: Callable[..., None], remove: Callable[[int], object]) -> None:
    """Return when the file of this number is ready."""
    ready = asyncio.Event()
    add(number, ready.set)
    try:
        await ready.wait()
    finally:
        remove(number)
