"""Ed25519 around the envelope: who signs messages for nodes, and who checks that. No I/O, no files.

Apart from `envelope` so that a board without keys does not load PyNaCl (some MiB of memory).
"""

from collections import defaultdict
from collections.abc import Iterable

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from shoal_contract import envelope
from shoal_contract.envelope import Envelope
from shoal_contract.errors import EnvelopeError
from shoal_contract.messages import MAX_MESSAGE_BYTES


class Signer:
    """One private key, from its 32-byte seed."""

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.public_key = bytes(self._key.verify_key)
        self._id = envelope.key_id(self.public_key)

    def sign(self, payload: bytes, *, topic: str) -> bytes:
        """The payload in an envelope that is good on this topic only.

        Raises:
            EncodeError: more than may travel.
        """
        signed = envelope.to_be_signed(payload, key_id=self._id, topic=topic)
        return envelope.pack(Envelope(self._id, payload, self._key.sign(signed).signature))


class Verifier:
    """The public keys, 32 bytes each, whose word counts."""

    def __init__(self, public_keys: Iterable[bytes]) -> None:
        self._keys: defaultdict[bytes, list[VerifyKey]] = defaultdict(list)
        for key in dict.fromkeys(public_keys):
            self._keys[envelope.key_id(key)].append(VerifyKey(key))

    def open(
        self, data: bytes, *, topic: str, max_bytes: int = MAX_MESSAGE_BYTES
    ) -> tuple[bytes, bytes]:
        """The payload and the public key that has signed it for this topic, when one of ours did.

        Raises:
            EnvelopeError: "unsigned", "shape", "unknown_key" or "bad_signature".
        """
        found = envelope.unpack(data, max_bytes=max_bytes)
        keys = self._keys.get(found.key_id, ())
        if not keys:
            raise EnvelopeError(
                "unknown_key", f"signed by {found.key_id.hex()}, a key that does not count here"
            )
        signed = envelope.to_be_signed(found.payload, key_id=found.key_id, topic=topic)
        for key in keys:
            try:
                key.verify(signed, found.signature)
            except BadSignatureError:
                continue
            return found.payload, bytes(key)
        # A forger, a damaged message, or one that was signed for another topic: nobody can tell.
        raise EnvelopeError("bad_signature", f"not signed by {found.key_id.hex()} for {topic}")
