"""What two nodes say to each other over TCP: length-prefixed messages after a greeting.

A frame is a 32-bit big-endian length and that many bytes. The first frame in each direction is the greeting
`["shoal", 1, root, node]`; every other one an InferRequest or ChunkRequest (client), an InferReply or ChunkReply (server). Reading and
writing frames and checking greetings is all that stands here; not what to answer, not when to close.
"""

import asyncio
import struct
from dataclasses import dataclass
from typing import Final

from shoal_agent.peers.errors import WireError
from shoal_contract import cbor, topics
from shoal_contract.errors import ContractError
from shoal_contract.messages import MAX_MESSAGE_BYTES

VERSION: Final = 1
MAX_GREETING_BYTES: Final = 256
_MAGIC: Final = "shoal"
_PREFIX: Final = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Greeting:
    """Who speaks, and below which topic root."""

    root: str
    node: str


def frame(body: bytes) -> bytes:
    """The body with its length in front."""
    return _PREFIX.pack(len(body)) + body


def greeting_frame(greeting: Greeting) -> bytes:
    """The first frame of a connection."""
    return frame(cbor.encode([_MAGIC, VERSION, greeting.root, greeting.node]))


async def read_frame(reader: asyncio.StreamReader, *, max_bytes: int = MAX_MESSAGE_BYTES) -> bytes:
    """The next frame's body; the caller bounds the time.

    Raises:
        WireError: a longer frame was announced, or the connection ended within one.
        EOFError: the connection ended before one.
        OSError: the connection broke.
    """
    try:
        (length,) = _PREFIX.unpack(await reader.readexactly(_PREFIX.size))
        if length > max_bytes:
            raise WireError(f"a frame of {length} bytes; at most {max_bytes} are allowed")
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as exc:
        if exc.partial or exc.expected != _PREFIX.size:
            raise WireError("the connection ended within a frame") from exc
        raise EOFError("the connection ended") from exc


async def read_greeting(reader: asyncio.StreamReader, *, root: str) -> Greeting:
    """The other end's greeting, checked.

    Raises:
        WireError: it is none, of another version, or of a fleet with another root.
        EOFError, OSError: as `read_frame`.
    """
    body = await read_frame(reader, max_bytes=MAX_GREETING_BYTES)
    try:
        match cbor.decode(body, max_bytes=MAX_GREETING_BYTES):
            case [str(magic), int(version), str(theirs), str(node), *_] if magic == _MAGIC:
                topics.check_node_id(node)
            case _:
                raise WireError("not a greeting")
    except ContractError as exc:
        raise WireError(f"not a greeting: {exc}") from exc
    if version != VERSION:
        raise WireError(f"version {version} of the peer protocol; this node speaks {VERSION}")
    if theirs != root:
        raise WireError("a node of another fleet (its topic root differs)")
    return Greeting(theirs, node)
