"""What a board and the controller say to each other when the board gets a certificate: JSON over HTTPS.

The request and its answers with their limits, what a known key signs, and how tokens, keys and authorities are
written. No X.509, no I/O.
"""

import hashlib
import re
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from shoal_contract.errors import DecodeError, KeyTextError
from shoal_contract.topics import check_node_id

ENROL_PATH: Final = "/v1/enrol"
CA_PATH: Final = "/v1/ca"
DEFAULT_PORT: Final = 8884
MAX_REQUEST_BYTES: Final = 8192
MAX_ANSWER_BYTES: Final = 32768
MAX_CSR_BYTES: Final = 2048
TOKEN_BYTES: Final = 32

_PROOF: Final = b"shoal enrolment 1\0"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_SHA256 = re.compile(r"(?:sha256:)?((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", re.IGNORECASE)
_PREFIX = "sha256:"

T = TypeVar("T", bound=msgspec.Struct)


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A board asks for a certificate for the key in its CSR (DER). The same request asks again.

    `token`: admits it at once. `known_key`, `signature`: the sha256 of a public key that the controller
    has certified for this node, and that key's signature (ECDSA, SHA-256) of `proof`. With neither it waits.
    """

    node: Annotated[str, msgspec.Meta(max_length=63)]
    csr: Annotated[bytes, msgspec.Meta(max_length=MAX_CSR_BYTES)]
    token: Annotated[str, msgspec.Meta(max_length=64)] = ""
    known_key: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    signature: Annotated[bytes, msgspec.Meta(max_length=80)] = b""
    hardware: Annotated[str, msgspec.Meta(max_length=200)] = ""


class EnrolAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Issued: `certificate` and `ca` in PEM form. Pending: ask again after `retry_s`.

    `at_ms` is the controller's clock.
    """

    state: Literal["issued", "pending"]
    at_ms: int
    certificate: str = ""
    ca: str = ""
    retry_s: float = 0.0


class EnrolRefusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why there is no certificate; `why` is one constant word. `retry_s` 0: only a person can help."""

    error: str
    why: str = ""
    at_ms: int = 0
    retry_s: float = 0.0


def encode(message: EnrolRequest | EnrolAnswer | EnrolRefusal) -> bytes:
    """The JSON text."""
    return msgspec.json.encode(message)


def decode(data: bytes, kind: type[T], *, max_bytes: int) -> T:
    """The message in these bytes.

    Raises:
        DecodeError: it is too large, or none.
    """
    if len(data) > max_bytes:
        raise DecodeError(f"{len(data)} bytes are too many: at most {max_bytes}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise DecodeError(f"not a {kind.__name__}: {exc}") from exc


def proof(node: str, csr: bytes) -> bytes:
    """What a known key signs, to speak for a new one. Raises TopicError."""
    return _PROOF + check_node_id(node).encode() + b"\0" + hashlib.sha256(csr).digest()


def token_digest(token: str) -> bytes:
    """What is kept of a token.

    Raises:
        DecodeError: it is no token.
    """
    if not _TOKEN.fullmatch(token):
        raise DecodeError("that is no token: 43 letters, digits, '-' and '_'")
    return hashlib.sha256(token.encode("ascii")).digest()


def sha256_text(digest: bytes) -> str:
    """How people read the sha256 of a key or of an authority's certificate (DER)."""
    return _PREFIX + digest.hex()


def parse_sha256(text: str) -> bytes:
    """The other way; colons between the bytes, as OpenSSL prints them, are welcome.

    Raises:
        KeyTextError: it is none.
    """
    found = _SHA256.fullmatch(text.strip())
    if found is None:
        raise KeyTextError(f"{text[:80]!r} is no sha256: 'sha256:' and 64 hexadecimal digits")
    return bytes.fromhex(found[1].replace(":", ""))
