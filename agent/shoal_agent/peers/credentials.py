"""Who we are to neighbours and whom we take for one: TLS 1.3 in both directions, from the board's own files.

mDNS is a rumour of an address. A neighbour is who its certificate names (SAN dNSName, or CN), of the
same authority as ours, and not in the list of revoked ones where the board has one. OpenSSL judges.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from shoal_agent.peers.errors import PeerUnreachableError
from shoal_broker.bus_errors import TlsFilesError
from shoal_broker.tls import TlsFiles, client_context, identify, trust
from shoal_broker.tls_failures import alert_in

Stamp = tuple[tuple[int, int, int] | None, ...]

HANDSHAKE_TIMEOUT_S: Final = 5.0


class Contexts(NamedTuple):
    """What connections are made with."""

    asking: ssl.SSLContext
    asking_anybody: ssl.SSLContext
    """Where the node's name is not known before; it must be compared afterwards."""
    accepting: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class PeerFiles:
    """PEM files: who vouches for neighbours, who we are, and, where there is one, who is revoked."""

    tls: TlsFiles
    crl_file: str | None = None


class Credentials:
    """Contexts of the files as they are now: a renewed certificate or a new list counts for the next connection."""

    def __init__(self, files: PeerFiles) -> None:
        self._files = files
        self._read: tuple[Stamp, Contexts] | None = None

    async def contexts(self) -> Contexts:
        """Raises TlsFilesError."""
        return await asyncio.to_thread(self._contexts)

    def _contexts(self) -> Contexts:
        tls, crl_file = self._files.tls, self._files.crl_file
        names = (tls.ca_file, tls.cert_file, tls.key_file, crl_file)
        stamp = tuple(None if name is None else _stamp_of(name) for name in names)
        if self._read is None or self._read[0] != stamp:
            self._read = stamp, _read(tls, crl_file)
        return self._read[1]


def _stamp_of(name: str) -> tuple[int, int, int] | None:
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(tls: TlsFiles, crl_file: str | None) -> Contexts:
    if tls.cert_file is None or tls.key_file is None:
        raise TlsFilesError("neighbours ask for a certificate", key="cert_file")
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.minimum_version = ssl.TLSVersion.TLSv1_3
    # Each connection shows its certificate, which may be revoked by then.
    accepting.num_tickets = 0
    trust(accepting, tls.ca_file)
    identify(accepting, tls.cert_file, tls.key_file)
    accepting.verify_mode = ssl.CERT_REQUIRED
    made = Contexts(client_context(tls), client_context(tls), accepting)
    made.asking_anybody.check_hostname = False
    if crl_file is not None:
        for context in made:
            trust(context, crl_file, key="crl_file", what="list of revoked certificates")
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    return made


def names_in(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """Whom a certificate that OpenSSL accepted names, as `ssl` tells it: the dNSNames or else the CN."""
    found = certificate or {}
    names = frozenset(name for kind, name in found.get("subjectAltName", ()) if kind == "DNS")
    if names:
        return names
    subject = (pair for part in found.get("subject", ()) for pair in part)
    return frozenset(value for key, value in subject if key == "commonName")


def explain(exc: ssl.SSLError) -> str:
    """What a neighbour's connection died of, for people."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {exc.verify_message}"
    alert = alert_in(exc)
    if alert is not None:
        return f"it ended TLS: {alert}"
    return f"TLS failed: {(exc.reason or str(exc)).replace('_', ' ').lower()}"


def check_named(node: str, certificate: Mapping[str, Any] | None) -> None:
    """Raise PeerUnreachableError unless the certificate is that of `node`."""
    names = names_in(certificate)
    if node not in names:
        shown = ", ".join(sorted(names)) or "nobody"
        raise PeerUnreachableError(f"it calls itself {node}, and its certificate names {shown}")
