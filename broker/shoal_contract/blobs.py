"""Content-addressed blobs: cutting them into chunks and checking what comes back."""

import hashlib
from collections.abc import Iterator
from typing import Final

from shoal_contract.errors import DecodeError
from shoal_contract.messages import CHUNK_BYTES, CHUNK_DIGEST_BYTES, MAX_CHUNKS, BlobRef

SMALLEST_CHUNK_BYTES: Final = 1024
LARGEST_CHUNK_BYTES: Final = 96 * 1024


def fitting_chunk_bytes(wanted_bytes: int, room_bytes: int | None) -> int:
    """The size to cut blobs to: what is wanted, or the whole KiB that a message has room for.

    `room_bytes` None: the broker has said no limit. Never below 1 KiB, whatever the room.
    """
    if room_bytes is None or wanted_bytes <= room_bytes:
        return wanted_bytes
    return max(SMALLEST_CHUNK_BYTES, room_bytes - room_bytes % 1024)


def describe(blob: bytes, *, chunk_bytes: int = CHUNK_BYTES) -> BlobRef:
    """How a blob is named and cut. An empty blob has no chunks."""
    return BlobRef(
        digest=hashlib.sha256(blob).digest(),
        size_bytes=len(blob),
        chunk_bytes=chunk_bytes,
        chunk_digests=b"".join(
            chunk_digest(chunk) for _, chunk in cut(blob, chunk_bytes=chunk_bytes)
        ),
    )


def cut(blob: bytes, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, bytes]]:
    """The chunks of a blob with their indexes."""
    for index, start in enumerate(range(0, len(blob), chunk_bytes)):
        yield index, blob[start : start + chunk_bytes]


def chunk_count(ref: BlobRef) -> int:
    """How many chunks the blob has.

    Raises:
        DecodeError: the reference contradicts itself or asks for too many.
    """
    count = -(-ref.size_bytes // ref.chunk_bytes)
    if count > MAX_CHUNKS or len(ref.chunk_digests) != count * CHUNK_DIGEST_BYTES:
        raise DecodeError(
            f"a blob of {ref.size_bytes} bytes with {len(ref.chunk_digests)} bytes of chunk digests"
        )
    return count


def chunk_is_good(ref: BlobRef, index: int, chunk: bytes) -> bool:
    """Whether this is chunk `index` of the blob, to the byte."""
    start = index * CHUNK_DIGEST_BYTES
    expected = ref.chunk_digests[start : start + CHUNK_DIGEST_BYTES]
    return len(expected) == CHUNK_DIGEST_BYTES and chunk_digest(chunk) == expected


def chunk_bytes_of(ref: BlobRef, index: int) -> int:
    """How long chunk `index` of the blob is; 0 for one that does not exist."""
    return min(ref.chunk_bytes, max(0, ref.size_bytes - index * ref.chunk_bytes))


def chunk_digest(chunk: bytes) -> bytes:
    """What a reference says of one chunk."""
    return hashlib.sha256(chunk).digest()[:CHUNK_DIGEST_BYTES]
