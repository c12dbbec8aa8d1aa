"""Files with one Ed25519 key each. Sealed with a passphrase, but for the one that a controller needs unattended.

The passphrase is stretched by Argon2id, the seed sealed by SecretBox (XSalsa20-Poly1305); the public half is
readable without it.
"""

import json
from pathlib import Path
from typing import Any, Final

import nacl.exceptions
import nacl.pwhash
import nacl.secret
import nacl.utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, SSlibKey

from shoal_broker.durable import write_durably
from shoal_contract import envelope
from shoal_contract.errors import KeyTextError
from shoal_fleet.errors import StateError, UsageError

FORMAT: Final = "shoal-trust-key-1"
COST: Final = (nacl.pwhash.argon2id.OPSLIMIT_MODERATE, nacl.pwhash.argon2id.MEMLIMIT_MODERATE)
"""Argon2id's passes and bytes of memory: a guess takes 0.7 s and 256 MiB."""
MIN_PASSPHRASE_BYTES: Final = 8

_SEED_BYTES: Final = 32
_MAX_FILE_BYTES: Final = 4096
_MAX_PASSES: Final = 64
_MAX_MEMORY_BYTES: Final = 1 << 31


def make(path: Path, passphrase: bytes | None) -> bytes:
    """Write a new key (mode 0600); returns its public half. None: it is not sealed.

    Raises:
        UsageError: the passphrase is too short, or the file is there already.
        StateError: the disk does not take it.
    """
    if path.exists():
        raise UsageError(f"{path} is there already: a key is never written over")
    seed = nacl.utils.random(_SEED_BYTES)
    public = _public(seed)
    facts: dict[str, Any] = {"format": FORMAT, "public": envelope.key_text(public)}
    if passphrase is None:
        facts["seed"] = seed.hex()
    else:
        if len(passphrase) < MIN_PASSPHRASE_BYTES:
            raise UsageError(f"a passphrase has at least {MIN_PASSPHRASE_BYTES} bytes")
        salt = nacl.utils.random(nacl.pwhash.argon2id.SALTBYTES)
        box = nacl.secret.SecretBox(_stretched(passphrase, salt, *COST))
        facts |= {"salt": salt.hex(), "cost": list(COST), "sealed": box.encrypt(seed).hex()}
    try:
        write_durably(path, json.dumps(facts, indent=1).encode() + b"\n", mode=0o600)
    except OSError as exc:
        raise StateError(f"{path}: {exc.strerror}") from exc
    return public


def is_sealed(path: Path) -> bool:
    """Whether the key in this file wants a passphrase.

    Raises:
        UsageError: it is no key file.
    """
    return "sealed" in _facts(path)


def public_half(text: str) -> bytes:
    """The public key in a key file, or in the text itself as `shoal trust key` prints it.

    Raises:
        UsageError: it is neither.
    """
    if Path(text).is_file():
        text = str(_facts(Path(text))["public"])
    try:
        return envelope.parse_key(text)
    except KeyTextError as exc:
        raise UsageError(f"{text[:80]!r} is neither a key file nor a public key") from exc


def open_signer(path: Path, passphrase: bytes | None = None) -> CryptoSigner:
    """What signs with the key in this file.

    Raises:
        UsageError: it is no key file, or the passphrase is not the right one.
    """
    facts = _facts(path)
    try:
        if "sealed" in facts:
            if passphrase is None:
                raise UsageError(f"{path}: the key is sealed: a passphrase is needed")
            passes, memory_bytes = facts["cost"]
            if not (0 < passes <= _MAX_PASSES and 0 < memory_bytes <= _MAX_MEMORY_BYTES):
                raise UsageError(f"{path}: it would cost too much to open")
            key = _stretched(passphrase, bytes.fromhex(facts["salt"]), passes, memory_bytes)
            seed = nacl.secret.SecretBox(key).decrypt(bytes.fromhex(facts["sealed"]))
        else:
            seed = bytes.fromhex(facts["seed"])
        if envelope.key_text(_public(seed)) != facts["public"]:
            raise UsageError(f"{path}: its public half is another key's")
    except nacl.exceptions.CryptoError as exc:
        raise UsageError(f"{path}: the passphrase does not open it") from exc
    except (KeyError, TypeError, ValueError) as exc:
        raise UsageError(f"{path} is not a key file of `shoal trust key`") from exc
    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(seed))


def tuf_key(public: bytes) -> SSlibKey:
    """A public key as the metadata lists it."""
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(public))


def _facts(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            facts = json.loads(file.read(_MAX_FILE_BYTES))
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise UsageError(f"{path} is not a key file of `shoal trust key`") from exc
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or "public" not in facts:
        raise UsageError(f"{path} is not a key file of `shoal trust key`")
    return facts


def _stretched(passphrase: bytes, salt: bytes, passes: int, memory_bytes: int) -> bytes:
    size = nacl.secret.SecretBox.KEY_SIZE
    return nacl.pwhash.argon2id.kdf(size, passphrase, salt, opslimit=passes, memlimit=memory_bytes)


def _public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
