"""The signed envelope of messages to nodes, as bytes: COSE_Sign1 (RFC 9052, 4.2) bound to one topic.

    [ << {1: -8, 4: key id} >>, {}, payload, signature ]

The payload is a message as it would travel unsigned. external_aad is the topic it is sent to, so it
says nothing at any other node or group. Untagged, and in this one form only: whatever could be written
in another way is refused. Pure bytes; who makes and checks the Ed25519 signature is `signatures`.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from shoal_contract import cbor
from shoal_contract.errors import DecodeError, EncodeError, EnvelopeError, KeyTextError
from shoal_contract.messages import MAX_MESSAGE_BYTES

KEY_BYTES: Final = 32
"""A public key, and the seed of a private one (RFC 8032)."""
SIGNATURE_BYTES: Final = 64
MOST_BYTES: Final = 81
"""So much an envelope adds to a message of 64 KiB or more; 78 to one of at most 255 bytes."""
KEY_ID_BYTES: Final = 2
"""A hint, not a proof: it says which of a few keys to try, and two that share it are both tried."""

_ALGORITHM: Final = 1
_EDDSA: Final = -8
_KEY_ID: Final = 4
_CONTEXT: Final = "Signature1"

# An array of four, and a byte string in it where a message has the number of its kind.
_ARRAY_OF_FOUR: Final = 0x84
_BYTE_STRINGS: Final = range(0x40, 0x5C)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands in a signed envelope; nothing says yet that the signature is good."""

    key_id: bytes
    payload: bytes
    signature: bytes


def is_signed(data: bytes) -> bool:
    """Whether these bytes claim to be an envelope; no message begins like one."""
    return len(data) > 1 and data[0] == _ARRAY_OF_FOUR and data[1] in _BYTE_STRINGS


def key_id(public_key: bytes) -> bytes:
    """How an envelope names the key that signed it."""
    return hashlib.sha256(public_key).digest()[:KEY_ID_BYTES]


def to_be_signed(payload: bytes, *, key_id: bytes, topic: str) -> bytes:
    """The Sig_structure of RFC 9052, 4.4: what the signature is over."""
    return cbor.encode([_CONTEXT, _protected(key_id), topic.encode(), payload])


def pack(envelope: Envelope) -> bytes:
    """The envelope's bytes.

    Raises:
        EncodeError: more than may travel.
    """
    data = _encode(envelope)
    if len(data) > MAX_MESSAGE_BYTES:
        raise EncodeError(f"{len(data)} bytes when signed; at most {MAX_MESSAGE_BYTES} may travel")
    return data


def unpack(data: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Envelope:
    """What is in the envelope; the signature is not checked.

    Raises:
        EnvelopeError: "unsigned" or "shape".
    """
    if not is_signed(data):
        raise EnvelopeError("unsigned", "not a signed envelope")
    try:
        items = cbor.decode(data, max_bytes=max_bytes)
    except DecodeError as exc:
        raise EnvelopeError("shape", str(exc)) from exc
    match items:
        case [bytes(protected), {}, bytes(payload), bytes(signature)]:
            envelope = Envelope(protected[-KEY_ID_BYTES:], payload, signature)
        case _:
            raise EnvelopeError("shape", "an array of four, but no COSE_Sign1")
    if len(signature) != SIGNATURE_BYTES:
        raise EnvelopeError("shape", f"a signature of {len(signature)} bytes")
    # Other headers, a key id elsewhere, a length in more bytes than it needs: all of it shows here.
    if _encode(envelope) != data:
        raise EnvelopeError("shape", "not Ed25519 with a key id in the one form that is taken")
    return envelope


def stripped(data: bytes) -> bytes:
    """The message in it, whoever signed it; a message without an envelope as it is.

    Raises:
        EnvelopeError: "shape".
    """
    return unpack(data).payload if is_signed(data) else data


def key_text(key: bytes) -> str:
    """A key as people and configuration files write it: base64."""
    return base64.b64encode(key).decode()


def parse_key(text: str) -> bytes:
    """The 32 bytes of a key in base64.

    Raises:
        KeyTextError: it is something else. The text is not quoted: it may be a private key.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise KeyTextError("not a key in base64") from exc
    if len(key) != KEY_BYTES:
        raise KeyTextError(f"{len(key)} bytes where a key has {KEY_BYTES}")
    return key


def _protected(key_id: bytes) -> bytes:
    return cbor.encode({_ALGORITHM: _EDDSA, _KEY_ID: key_id})


def _encode(envelope: Envelope) -> bytes:
    return cbor.encode([_protected(envelope.key_id), {}, envelope.payload, envelope.signature])
