"""Where metadata files come from: a directory, or a web server. Each hands out pieces; nobody is trusted.

The other source, the broker's retained messages, is reached through the agent (`wire`) or, without an agent,
by `mqtt_source`.
"""

import http.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote, urlsplit

PIECE_BYTES: Final = 16 * 1024

_ALREADY_QUOTED: Final = "%/:@!$&'()*+,;=~"


class MissingError(Exception):
    """The source has no such file.

    Attributes:
        status: what a web server would answer, or has answered.
    """

    def __init__(self, name: str, *, status: int = 404) -> None:
        super().__init__(f"{name[:80]} is not there (status {status})")
        self.status = status


class Source(Protocol):
    """A place that files come from."""

    def pieces(self, name: str, *, left_s: Callable[[], float]) -> Iterator[bytes]:
        """The file in pieces; no read takes longer than `left_s()`.

        Raises:
            MissingError: it is not there.
            OSError: it cannot be had now.
        """
        ...


class DirectorySource:
    """Files of a directory: what a neighbour shares, a USB stick, a mirror."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def pieces(self, name: str, *, left_s: Callable[[], float]) -> Iterator[bytes]:  # noqa: ARG002 - a disk needs no deadline
        """See Source. A name that leads out of the directory is a missing file."""
        if name in {"", ".", ".."} or "/" in name or "\0" in name:
            raise MissingError(name)
        try:
            with (self._directory / name).open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece
        except FileNotFoundError as exc:
            raise MissingError(name) from exc


class HttpSource:
    """Files below an http or https address. It follows no redirect.

    Raises ValueError: it is no such address.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{address[:80]!r} is not an http(s) address")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path if parts.path.endswith("/") else parts.path + "/"

    def pieces(self, name: str, *, left_s: Callable[[], float]) -> Iterator[bytes]:
        """See Source."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=left_s())
        try:
            connection.request("GET", quote(self._path + name, safe=_ALREADY_QUOTED))
            with connection.getresponse() as answer:
                if answer.status != http.client.OK:
                    raise MissingError(name, status=answer.status)
                while not answer.isclosed():
                    if connection.sock is not None:
                        connection.sock.settimeout(left_s())
                    if not (piece := answer.read1(PIECE_BYTES)):
                        return
                    yield piece
        except http.client.HTTPException as exc:
            raise OSError(f"no HTTP answer: {type(exc).__name__}") from exc
        finally:
            connection.close()
