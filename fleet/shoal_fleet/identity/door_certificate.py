"""The door's own certificate: issued by the fleet's authority, renewed by itself, in files beside the state."""

import asyncio
import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shoal_broker.durable import write_durably
from shoal_fleet.clock import now_ms
from shoal_fleet.errors import AuthorityError
from shoal_fleet.identity.authority import Authority, key_pem

log = structlog.get_logger(__name__)

LIFE_S: Final = 30 * 86400.0
RENEW_EVERY_S: Final = 86400.0
FILE: Final = "door.pem"


class DoorCertificate:
    """A TLS 1.3 context whose certificate is always young.

    Attributes:
        context: for the listener.
    """

    def __init__(self, authority: Authority, folder: Path, names: Sequence[str]) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.num_tickets = 0
        self._authority = authority
        self._path = folder / FILE
        self._names = names

    def renew(self) -> None:
        """New key, new certificate: connections from now on see it. Blocks for as long as the disk does.

        Raises:
            AuthorityError: the disk does not take it, or a name is none.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            certificate = self._authority.certify(
                key.public_key(),
                name=self._names[0][:64],
                hosts=self._names,
                now_ms=now_ms(),
                life_s=LIFE_S,
            )
        except ValueError as exc:
            raise AuthorityError(f"[identity] names: {exc}") from exc
        chain = certificate.public_bytes(serialization.Encoding.PEM)
        try:
            # OpenSSL takes files only.
            write_durably(self._path, key_pem(key) + chain + self._authority.pem)
            self.context.load_cert_chain(self._path)
        except OSError as exc:
            reason = os.strerror(exc.errno) if exc.errno else str(exc)
            raise AuthorityError(f"{self._path}: {reason}") from exc

    async def run(self) -> NoReturn:
        """Renew it every day, for ever."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await asyncio.to_thread(self.renew)
            except AuthorityError as exc:
                log.error("door certificate not renewed", reason=str(exc))  # noqa: TRY400 - the message says it all
