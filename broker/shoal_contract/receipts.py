"""What a receiver names a message by once it has committed it, so that its sender may forget it.

The name is made of the message itself: it costs no byte on the way out, passes every broker and
bridge, and a message that is sent twice has one name, as it has one effect. Pure.
"""

import hashlib
from collections.abc import Iterator

from shoal_contract.errors import DecodeError

NAME_BYTES = 8


def name(topic: str, payload: bytes) -> bytes:
    """The name of this message: 8 bytes."""
    return hashlib.blake2b(
        len(topic).to_bytes(2, "big") + topic.encode() + payload, digest_size=NAME_BYTES
    ).digest()


def split(names: bytes) -> Iterator[bytes]:
    """The names that are joined here.

    Raises:
        DecodeError: they are no whole names.
    """
    if len(names) % NAME_BYTES:
        raise DecodeError(f"{len(names)} bytes are no names of {NAME_BYTES} bytes each")
    return (names[at : at + NAME_BYTES] for at in range(0, len(names), NAME_BYTES))
