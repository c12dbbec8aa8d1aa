"""The controller's signature on what it says to nodes, and the file its key lies in.

Commands, requests to cancel and receipts, which go to a commands topic, and wanted states. Whether a node
asks for a signature is the node's configuration.
"""

import os
import secrets
from pathlib import Path
from typing import Final

from shoal_broker.durable import write_durably
from shoal_contract import envelope
from shoal_contract.errors import KeyTextError
from shoal_contract.signatures import Signer
from shoal_fleet.errors import StateError

KEY_FILE: Final = "command-key"
MAX_FILE_BYTES: Final = 256
SIGNED_BY_FILE: Final = "wanted-signed-by"
"""Whose signature the wanted states bear that are at the broker."""


class Issuer:
    """Signs with this key, or leaves messages as they are without one."""

    def __init__(self, signer: Signer | None) -> None:
        self._signer = signer

    @property
    def public_key(self) -> str | None:
        """What nodes are given to know us by."""
        return None if self._signer is None else envelope.key_text(self._signer.public_key)

    def sealed(self, payload: bytes, *, topic: str) -> bytes:
        """The message as it goes to this topic, and to no other.

        Raises:
            EncodeError: signed it is more than may travel.
        """
        return payload if self._signer is None else self._signer.sign(payload, topic=topic)


def signed_by(state_dir: Path) -> str | None:
    """The public key that signed what the broker retains; empty: nobody signed; None: not known."""
    try:
        text = (state_dir / SIGNED_BY_FILE).read_bytes()[:MAX_FILE_BYTES]
        return text.decode("ascii", "replace").strip()
    except OSError:
        return None


def remember_signed_by(state_dir: Path, public_key: str) -> None:
    """From now on what is retained gets this key's signature.

    Raises:
        StateError: the file cannot be written.
    """
    path = state_dir / SIGNED_BY_FILE
    try:
        write_durably(path, public_key.encode() + b"\n")
    except OSError as exc:
        raise StateError(f"{path}: {os.strerror(exc.errno or 0)}") from exc


def load_signer(state_dir: Path) -> Signer:
    """The key of this state directory; made at the first start, readable by its owner only.

    Raises:
        StateError: the file cannot be read or written, is no key, or others may read it.
    """
    path = state_dir / KEY_FILE
    return read_key(path) if path.exists() else make_signer(path)


def make_signer(path: Path) -> Signer:
    """A new key in a new file, readable by its owner only.

    Raises:
        StateError: there is such a file already, or it cannot be written.
    """
    if path.exists():
        raise StateError(f"{path}: there is a file already")
    text = envelope.key_text(secrets.token_bytes(envelope.KEY_BYTES))
    try:
        write_durably(path, text.encode() + b"\n", mode=0o600)
    except OSError as exc:
        raise StateError(f"{path}: {os.strerror(exc.errno or 0)}") from exc
    return read_key(path)


def read_signer(state_dir: Path) -> Signer:
    """The same where there has to be a key already.

    Raises:
        StateError: there is none, it cannot be read, is no key, or others may read it.
    """
    path = state_dir / KEY_FILE
    if not path.exists():
        raise StateError(f"{path}: there is no key yet; `shoal serve` makes it")
    return read_key(path)


def read_key(path: Path) -> Signer:
    """The key in a file.

    Raises:
        StateError: it cannot be read, is no key, or others may read it.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise StateError(f"{path}: others may read it; chmod 600 {path}")
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES).decode("ascii", "replace")
        return Signer(envelope.parse_key(text.strip()))
    except OSError as exc:
        raise StateError(f"{path}: {os.strerror(exc.errno or 0)}") from exc
    except KeyTextError as exc:
        raise StateError(
            f"{path}: {exc}; put the right file back, or delete it for a new key"
        ) from exc
