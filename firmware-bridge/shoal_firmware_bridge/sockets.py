"""Unix sockets that belong to one process: private from their first moment, never somebody else's."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal_firmware_bridge.errors import SocketError

PRIVATE_UMASK = 0o177
BACKLOG = 4


@contextmanager
def owned_directory(path: Path) -> Iterator[None]:
    """The directory, made with mode 0700 when it is not there, locked against another bridge.

    Raises:
        SocketError: it cannot be made, or another bridge has it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise SocketError(f"{path}: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise SocketError(f"{path}: another bridge has its sockets here") from exc
        yield
    finally:
        os.close(lock)


@contextmanager
def listening_socket(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket with mode 0600 in a directory that is owned; removed at the end.

    Raises:
        SocketError: it cannot be made, or something that is no socket stands there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        try:
            if path.is_socket():
                path.unlink()
            before = os.umask(PRIVATE_UMASK)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(BACKLOG)
        except OSError as exc:
            raise SocketError(f"{path}: {exc.strerror}") from exc
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
