"""The API's certificate: TLS 1.3 for operators on other machines, and renewed without a restart.

A copy of it lies in the state directory, for the command line of this machine: whoever may read the
token there believes exactly this certificate, whatever name it bears.
"""

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Final, NoReturn, Self

import structlog

from shoal_broker.bus_errors import TlsFilesError
from shoal_broker.durable import write_durably
from shoal_broker.tls import identify
from shoal_fleet.config import ListenTable
from shoal_fleet.errors import ConfigError, StateError

log = structlog.get_logger(__name__)

PINNED_FILE: Final = "api.crt"
LOOK_EVERY_S: Final = 10.0
MAX_BYTES: Final = 1 << 20

Stamp = tuple[tuple[int, int, int] | None, ...]


class ApiCertificate:
    """What the API shows. `context` stays the same one: each handshake shows what was read last."""

    def __init__(self, cert_file: str, key_file: str, pinned: Path) -> None:
        self.context = _context()
        self._cert_file, self._key_file = cert_file, key_file
        self._pinned = pinned
        self._stamp: Stamp = ()

    @classmethod
    def load(cls, table: ListenTable, state_dir: Path) -> Self | None:
        """None: plain HTTP.

        Raises:
            ConfigError: a file cannot be used; names the key.
            StateError: the copy cannot be written.
        """
        if table.cert_file is None or table.key_file is None:
            with contextlib.suppress(OSError):
                (state_dir / PINNED_FILE).unlink()
            return None
        certificate = cls(table.cert_file, table.key_file, state_dir / PINNED_FILE)
        try:
            certificate._read()
        except TlsFilesError as exc:
            raise ConfigError(f"[listen] {exc}") from exc
        return certificate

    async def run(self) -> NoReturn:
        """Read the files again when they were replaced."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Look once whether they were. Raises StateError."""
        try:
            if await asyncio.to_thread(self._read):
                log.info("certificate of the API read again", cert_file=self._cert_file)
        except TlsFilesError as exc:
            log.error("tls files unusable, the earlier ones stay", error=str(exc))  # noqa: TRY400 - one line

    def _read(self) -> bool:
        stamp = tuple(_stamp_of(name) for name in (self._cert_file, self._key_file))
        if stamp == self._stamp:
            return False
        # What does not go together is noticed before the context that is in use has half of it.
        identify(_context(), self._cert_file, self._key_file)
        try:
            new = _content(Path(self._cert_file))
            # For as long as it is not said which of them is shown.
            both = new + _content(self._pinned) if self._stamp else new
            write_durably(self._pinned, both, mode=0o644)
            identify(self.context, self._cert_file, self._key_file)
            if both != new:
                write_durably(self._pinned, new, mode=0o644)
        except OSError as exc:
            raise StateError(f"{self._pinned}: {exc.strerror}") from exc
        self._stamp = stamp
        return True


def pinned_context(certificate: Path) -> ssl.SSLContext:
    """Believes this certificate and no other, under any name. Raises OSError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    made.load_verify_locations(cafile=certificate)
    return made


def _context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    return made


def _content(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(MAX_BYTES)


def _stamp_of(name: str) -> tuple[int, int, int] | None:
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
