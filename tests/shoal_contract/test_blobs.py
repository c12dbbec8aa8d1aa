import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract import blobs
from shoal_contract.errors import DecodeError
from shoal_contract.messages import BlobRef


@given(st.binary(max_size=5000))
def test_the_chunks_of_a_blob_make_the_blob(blob):
    ref = blobs.describe(blob, chunk_bytes=1024)
    chunks = list(blobs.cut(blob, chunk_bytes=1024))
    assert b"".join(chunk for _, chunk in chunks) == blob
    assert blobs.chunk_count(ref) == len(chunks)
    assert all(blobs.chunk_is_good(ref, index, chunk) for index, chunk in chunks)


def test_a_chunk_with_one_wrong_bit_or_in_the_wrong_place_is_not_good():
    blob = bytes(range(256)) * 10
    ref = blobs.describe(blob, chunk_bytes=1024)
    first = blob[:1024]
    assert not blobs.chunk_is_good(ref, 0, bytes([first[0] ^ 1]) + first[1:])
    assert not blobs.chunk_is_good(ref, 2, first)
    assert not blobs.chunk_is_good(ref, 99, first)


@pytest.mark.parametrize(
    ("size", "digests"), [(2048, b""), (2048, b"x" * 33), (1 << 31, b"x" * 16), (0, b"x" * 16)]
)
def test_a_reference_that_contradicts_itself_is_refused(size, digests):
    with pytest.raises(DecodeError):
        blobs.chunk_count(BlobRef(bytes(32), size, 1024, digests))
