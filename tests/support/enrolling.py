"""A board as the enrolment door sees it: a key, requests, proofs; and an authority that is quick to make."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shoal_contract import enrolment
from shoal_contract.enrolment import EnrolRequest
from shoal_fleet.clock import now_ms
from shoal_fleet.identity import authority

DAY_MS = 86_400_000


class BoardKey:
    """A key of a board."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())

    @property
    def digest(self) -> bytes:
        spki = self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(spki).digest()

    def csr(self, name: str, *extensions: x509.ExtensionType) -> bytes:
        builder = x509.CertificateSigningRequestBuilder().subject_name(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def asks(self, node: str, *, token: str = "", known: BoardKey | None = None) -> EnrolRequest:
        """A request for this key; `known` vouches for it."""
        csr = self.csr(node)
        if known is None:
            return EnrolRequest(node=node, csr=csr, token=token)
        return EnrolRequest(
            node=node,
            csr=csr,
            token=token,
            known_key=known.digest,
            signature=known.key.sign(enrolment.proof(node, csr), ec.ECDSA(hashes.SHA256())),
        )


def an_authority(folder: Path, *, at_ms: int | None = None) -> authority.Authority:
    return authority.make(
        folder, name=None, now_ms=now_ms() if at_ms is None else at_ms, passphrase=None
    )


def certificate_of(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())
