"""Content-addressed blobs: cutting them into chunks and checking what comes back."""

import hashlib
from collections.abc import Iterator

from shoal_contract.errors import DecodeError
from shoal_contract.messages import CHUNK_BYTES, CHUNK_DIGEST_BYTES, MAX_CHUNKS, BlobRef


def describe(blob: bytes, *, chunk_bytes: int = CHUNK_BYTES) -> BlobRef:
    """How a blob is named and cut. An empty blob has no chunks."""
    return BlobRef(
        digest=hashlib.sha256(blob).digest(),
        size_bytes=len(blob),
        chunk_bytes=chunk_bytes,
        chunk_digests=b"".join(_digest(chunk) for _, chunk in cut(blob, chunk_bytes=chunk_bytes)),
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
    return len(expected) == CHUNK_DIGEST_BYTES and _digest(chunk) == expected


def _digest(chunk: bytes) -> bytes:
    return hashlib.sha256(chunk).digest()[:CHUNK_DIGEST_BYTES]
