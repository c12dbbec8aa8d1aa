"""Keys, requests and certificates of a board. Loads `cryptography`: only `child` may import it."""

import hashlib
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shoal_agent.errors import IdentityError
from shoal_agent.identity.store import Facts

MAX_PEM_BYTES: Final = 16384

PrivateKey = ec.EllipticCurvePrivateKey

_SHA256: Final = hashes.SHA256()


def make_key() -> ec.EllipticCurvePrivateKey:
    """A new key on the curve P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def read_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises IdentityError: the file is damaged."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise IdentityError("the stored key is damaged") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError("the stored key is of another kind")
    return key


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """As it is kept."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def digest_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The sha256 of its public half, by which people and the controller know it."""
    return hashlib.sha256(_spki(key.public_key())).digest()


def request(key: ec.EllipticCurvePrivateKey, node: str) -> bytes:
    """A certificate signing request (DER)."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    )
    return builder.sign(key, _SHA256).public_bytes(serialization.Encoding.DER)


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA with SHA-256."""
    return key.sign(message, ec.ECDSA(_SHA256))


def read_certificate(pem: bytes) -> x509.Certificate:
    """Raises IdentityError: that is none."""
    if len(pem) > MAX_PEM_BYTES:
        raise IdentityError("a certificate of that size is none")
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion) as exc:
        raise IdentityError("that is no certificate in PEM form") from exc


def pin_of(certificate: x509.Certificate) -> bytes:
    """The sha256 by which an authority is known."""
    return certificate.fingerprint(_SHA256)


def pem_of(certificate: x509.Certificate) -> bytes:
    """As it is kept, without anything else."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def begins_ms(certificate: x509.Certificate) -> int:
    """From when it is valid."""
    return round(certificate.not_valid_before_utc.timestamp() * 1000)


def check_issued(
    certificate: x509.Certificate,
    *,
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    node: str,
) -> Facts:
    """What an issued certificate says, if it is ours: of this authority, for this key, in this name.

    Its times are not compared with this board's clock, which may be wrong. Raises IdentityError.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as exc:
        raise IdentityError("the certificate is not of the authority that was pinned") from exc
    public = certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or _spki(public) != _spki(
        key.public_key()
    ):
        raise IdentityError("the certificate is for another key")
    names = [
        attribute.value
        for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    ]
    if names != [node]:
        raise IdentityError(f"the certificate is for {names}, not for {node}")
    return Facts(
        node=node,
        key=digest_of(key).hex(),
        not_before_ms=begins_ms(certificate),
        not_after_ms=round(certificate.not_valid_after_utc.timestamp() * 1000),
    )


def _spki(public: ec.EllipticCurvePublicKey) -> bytes:
    return public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
