"""TLS 1.3 towards clients: a listener's context, and the stream that a Link takes for its socket.

Not asyncio's own TLS: that closes without the alert which tells a client what is wrong with its
certificate, and holds 256 KiB of buffer for each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast

from shoal_broker.bus_errors import CertificateFactsError, TlsFilesError
from shoal_broker.certificate_facts import (
    MAX_FILE_BYTES,
    NOTHING_REVOKED,
    RevokedList,
    read_revoked,
)
from shoal_broker.errors import CertificateFileError
from shoal_broker.reading import ReadingProtocol
from shoal_broker.server.config import Tls
from shoal_broker.server.counters import Counters
from shoal_broker.server.link import Link
from shoal_broker.tls import identify, trust
from shoal_broker.tls_failures import explain_client

_RECORD_BYTES: Final = 1 << 14
REVOKED: Final = "the certificate was revoked"
_CLOSED: Final = (ssl.SSLZeroReturnError, ssl.SSLEOFError)

Stamp = tuple[int, int, int]
"""Of a file: another one when it was replaced or written to."""


@dataclass(frozen=True, slots=True)
class Secured:
    """What a listener goes by: its context, and the certificates that were revoked by then."""

    context: ssl.SSLContext
    revoked: RevokedList = NOTHING_REVOKED
    stamp: Stamp | None = None
    """Of `crl_file`, taken before it was read."""

    @classmethod
    def read(cls, files: Tls) -> Self:
        """Blocks for as long as the disk does. Raises CertificateFileError."""
        if files.crl_file is None:
            return cls(server_context(files))
        stamp = stamp_of(files.crl_file)
        return cls(server_context(files), revoked_in(files.crl_file), stamp)


def stamp_of(path: Path) -> Stamp | None:
    """None: there is no such file, or it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def revoked_in(path: Path) -> RevokedList:
    """What the file says now. Raises CertificateFileError."""
    try:
        with path.open("rb") as file:
            return read_revoked(file.read(MAX_FILE_BYTES + 1))
    except OSError as exc:
        raise CertificateFileError(f"crl_file {path} cannot be read: {exc.strerror}") from exc
    except CertificateFactsError as exc:
        raise CertificateFileError(f"crl_file {path} {exc}") from exc


def server_context(files: Tls) -> ssl.SSLContext:
    """Read the files. Blocks for as long as the disk does. Raises CertificateFileError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    # No resumption: each connection shows its certificate, which may be revoked by then.
    made.num_tickets = 0
    try:
        identify(made, str(files.cert_file), str(files.key_file))
        if files.client_ca_file is not None:
            trust(made, str(files.client_ca_file), key="client_ca_file")
            made.verify_mode = ssl.CERT_REQUIRED
        if files.crl_file is not None:
            trust(made, str(files.crl_file), key="crl_file", what="list of revoked certificates")
            made.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    except TlsFilesError as exc:
        raise CertificateFileError(str(exc)) from exc
    return made


class TlsStream(ReadingProtocol, asyncio.Transport):
    """The protocol of an accepted socket, and the transport of the Link behind it.

    The link is told of the connection before the handshake, so that its limits and time-out hold
    for that, too; `Link.identified` follows it, before any data.
    """

    def __init__(self, secured_by: Callable[[], Secured], link: Link, counters: Counters) -> None:
        self._link = link
        self._counters = counters
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._secured_by = secured_by
        self._tls = secured_by().context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._secured = False
        self._has_ended = False
        """The client has said goodbye."""
        self._socket: asyncio.Transport

    # --- the socket's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket was accepted."""
        self._socket = cast("asyncio.Transport", transport)
        self._link.connection_made(self)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes arrived."""
        if self._socket.is_closing():
            return
        self._incoming.write(data)
        try:
            received = self._read() if self._secured or self._shake_hands() else b""
        except ssl.SSLError as exc:
            self._link.why_lost = explain_client(exc)
            # The alert that tells the client what is wrong.
            self._write_out()
            self._socket.close()
            return
        self._write_out()
        if received:
            self._link.data_received(received)
        if self._has_ended:
            self.close()

    def pause_writing(self) -> None:
        """asyncio: the write buffer is above its limit."""
        self._link.pause_writing()

    def resume_writing(self) -> None:
        """asyncio: the write buffer is well below its limit again."""
        self._link.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the socket is closed."""
        if not self._secured:
            self._counters.tls_failed += 1
            if self._link.why_lost is None:
                self._link.why_lost = "the connection ended in the TLS handshake"
        self._link.connection_lost(exc)

    # --- the link's transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send it encrypted; nothing is sent before the handshake is over."""
        if self._secured and not self._socket.is_closing():
            self._tls.write(data)
            self._write_out()

    def close(self) -> None:
        """Close once everything is written."""
        if self._secured and not self._socket.is_closing():
            # It wants to read the client's own goodbye, which is not waited for.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._write_out()
        self._socket.close()

    def abort(self) -> None:
        """Close without a word."""
        self._socket.abort()

    def is_closing(self) -> bool:
        """Whether nothing more goes out."""
        return self._socket.is_closing()

    def pause_reading(self) -> None:
        """As a socket's."""
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        """As a socket's."""
        self._socket.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As a socket's, for encrypted bytes."""
        self._socket.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Encrypted bytes that wait for the network."""
        return self._socket.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As a socket's; `ssl_object` as asyncio's TLS has it."""
        return self._tls if name == "ssl_object" else self._socket.get_extra_info(name, default)

    # --- TLS

    def _shake_hands(self) -> bool:
        """Go on with the handshake; whether it is over."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        certificate = self._tls.getpeercert() or {}
        number = _number(certificate)
        if number in self._secured_by().revoked.numbers:
            # The list came while hands were shaken by the earlier one.
            self._link.why_lost = REVOKED
            self._socket.close()
            return False
        self._secured = True
        self._link.identified(_common_name(certificate), number)
        return True

    def _read(self) -> bytes:
        """What can be decrypted."""
        received: list[bytes] = []
        try:
            while self._incoming.pending or self._tls.pending():
                received.append(self._tls.read(_RECORD_BYTES))
        except ssl.SSLWantReadError:
            pass
        except _CLOSED:
            self._has_ended = True
        return b"".join(received)

    def _write_out(self) -> None:
        if self._outgoing.pending:
            self._socket.write(self._outgoing.read())


def _common_name(certificate: Mapping[str, Any]) -> str | None:
    """Who the client is; None without a certificate, or when that does not name exactly one."""
    subject = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate.get("subject", ()))
    names = [value for part in subject for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 else None


def _number(certificate: Mapping[str, Any]) -> int | None:
    """By which number a list of revoked certificates names it."""
    number: str | None = certificate.get("serialNumber")
    return None if number is None else int(number, 16)
