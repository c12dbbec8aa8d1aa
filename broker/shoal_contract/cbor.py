"""Strict CBOR: the only place that imports cbor2.

Plain types only (None, bool, int, float, str, bytes, list, dict), definite lengths, no duplicate
keys, no tags, nothing trailing, depth at most 8 (RFC 8949; cbor2's own defaults accept far more).
"""

import io
from typing import NoReturn

import cbor2

from shoal_contract.errors import DecodeError, EncodeError

MAX_DEPTH = 8

# Tags that cbor2 decodes by itself; every other tag reaches the tag hook.
_BUILT_IN_TAGS = (
    *range(6), 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799,
)  # fmt: skip


def encode(value: object, *, shortest: bool = False) -> bytes:
    """Encode plain values; map keys in insertion order.

    Args:
        value: plain values.
        shortest: floats in the fewest bytes that hold them exactly; map keys sorted (RFC 7049, 3.9).

    Raises:
        EncodeError: a value of another type, or text that is not Unicode.
    """
    try:
        return cbor2.dumps(value, canonical=shortest)
    except (cbor2.CBOREncodeError, OverflowError, RecursionError, UnicodeEncodeError) as exc:
        raise EncodeError(f"not encodable as CBOR: {exc}") from exc


def decode(data: bytes, *, max_bytes: int) -> object:
    """Decode exactly one item.

    Args:
        data: the whole item, nothing before or after it.
        max_bytes: larger input is refused before it is looked at.

    Raises:
        DecodeError: anything else than one plain item.
    """
    if len(data) > max_bytes:
        raise DecodeError(f"{len(data)} bytes where at most {max_bytes} are allowed")
    source = io.BytesIO(data)
    try:
        value = cbor2.CBORDecoder(
            source,
            tag_hook=_refuse,
            semantic_decoders=_REFUSE_BUILT_IN,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=False,  # it would refuse integer keys; _check_plain looks instead
        ).decode()
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, EOFError) as exc:
        raise DecodeError(f"not strict CBOR: {exc}") from exc
    if source.tell() != len(data):
        raise DecodeError(f"{len(data) - source.tell()} bytes follow the CBOR item")
    _check_plain(value)
    return value


def _refuse(_tag: object, _immutable: bool) -> NoReturn:  # noqa: FBT001 - cbor2's signature
    raise ValueError("tags are not allowed")


_REFUSE_BUILT_IN = dict.fromkeys(_BUILT_IN_TAGS, _refuse)


_SCALARS = frozenset({str, bytes, int, float, bool, type(None)})
_KEYS = frozenset({str, int, bytes})


def _check_plain(value: object) -> None:
    kind = type(value)
    if kind is list:
        for item in value:  # type: ignore[attr-defined]
            # Most are: no call for each of them.
            if type(item) not in _SCALARS:
                _check_plain(item)
    elif kind is dict:
        for key, item in value.items():  # type: ignore[attr-defined]
            if type(key) not in _KEYS:
                raise DecodeError(f"a map key of type {type(key).__name__}")
            if type(item) not in _SCALARS:
                _check_plain(item)
    elif kind not in _SCALARS:
        raise DecodeError(f"a value of type {kind.__name__}")
