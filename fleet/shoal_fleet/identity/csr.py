"""Certificate signing requests from hostile boards: which key asks, and that it is there. Names do not count."""

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shoal_contract.enrolment import MAX_CSR_BYTES
from shoal_contract.errors import DecodeError

_NO_REQUEST = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    UnsupportedAlgorithm,
    InvalidSignature,
)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


@dataclass(frozen=True, slots=True)
class AskingKey:
    """The key of a request: P-256, and whoever asks has its private half. `digest`: sha256 of `spki`."""

    public: ec.EllipticCurvePublicKey
    spki: bytes
    digest: bytes


def read(csr: bytes) -> AskingKey:
    """The key in a request (DER).

    Raises:
        DecodeError: it is no request, its key is not P-256, or that key has not signed it.
    """
    if len(csr) > MAX_CSR_BYTES:
        raise DecodeError(f"a request of {len(csr)} bytes is too large: at most {MAX_CSR_BYTES}")
    try:
        found = x509.load_der_x509_csr(csr)
        public = found.public_key()
        is_signed = (
            isinstance(public, ec.EllipticCurvePublicKey)
            and isinstance(found.signature_hash_algorithm, _HASHES)
            and found.is_signature_valid
        )
    except _NO_REQUEST as exc:
        raise DecodeError("that is no certificate signing request in DER form") from exc
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(
        public.curve, ec.SECP256R1
    ):
        raise DecodeError("the key of a request must be of the curve P-256")
    if not is_signed:
        raise DecodeError("the request is not signed by its own key")
    spki = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return AskingKey(public, spki, hashlib.sha256(spki).digest())


def has_signed(spki: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the private half of this key (SubjectPublicKeyInfo) signed the message with ECDSA and SHA-256."""
    try:
        public = serialization.load_der_public_key(spki)
        if not isinstance(public, ec.EllipticCurvePublicKey):
            return False
        public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
