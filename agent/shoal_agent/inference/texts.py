"""Texts as the tensor that a release of texts takes: one row of UTF-8 each, filled up with zeros. Pure.

So they wait, are put together with others of about their length and travel to neighbours as all tensors do.
"""

import struct
from collections.abc import Sequence
from typing import Final

from shoal_agent.inference.errors import BadInputError
from shoal_agent.inference.tensors import Tensor

TEXT: Final = "text"
"""The type of a tensor in a request over MQTT whose data are texts, each behind its length."""
MAX_BYTES: Final = 16 * 1024 * 1024
"""Of all rows of one request, filled up."""
_LENGTH: Final = struct.Struct("<I")


def text_tensor(texts: Sequence[bytes]) -> Tensor:
    """uint8 [n, longest].

    Raises:
        BadInputError: a text is no UTF-8 or has a zero in it, or they are too many for their longest.
    """
    longest = max(map(len, texts), default=0) or 1
    if longest * len(texts) > MAX_BYTES:
        raise BadInputError(
            f"{len(texts)} texts, the longest of {longest} bytes, are too many for one request"
        )
    for place, text in enumerate(texts):
        if b"\0" in text:
            raise BadInputError(f"text {place} has a zero character in it")
        try:
            text.decode()
        except UnicodeDecodeError as exc:
            raise BadInputError(f"text {place} is not UTF-8") from exc
    return Tensor("uint8", (len(texts), longest), b"".join(t.ljust(longest, b"\0") for t in texts))


def count_in(shape: Sequence[int]) -> int:
    """How many texts a tensor of this shape has: [n], or [n, 1] as some clients write it.

    Raises:
        BadInputError: another shape.
    """
    if list(shape[1:]) not in ([], [1]) or not shape:
        raise BadInputError(f"texts have the shape [n] or [n, 1], not {list(shape)}")
    return shape[0]


def split(data: bytes | memoryview, count: int) -> list[bytes]:
    """The texts in these bytes: each behind its length, four bytes, little-endian.

    Raises:
        BadInputError: they are not `count`, or end elsewhere.
    """
    texts: list[bytes] = []
    start = 0
    while start < len(data) and len(texts) < count:
        if start + _LENGTH.size > len(data):
            break
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if length > len(data) - start:
            raise BadInputError(f"text {len(texts)} has {length} bytes, more than there are")
        texts.append(bytes(data[start : start + length]))
        start += length
    if len(texts) != count or start != len(data):
        raise BadInputError(f"{len(data)} bytes are not {count} texts, each behind its length")
    return texts


def joined(texts: Sequence[bytes]) -> bytes:
    """The bytes that `split` reads."""
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
