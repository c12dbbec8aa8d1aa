import contextlib

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract import cbor
from shoal_contract.errors import DecodeError, EncodeError

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 23), inner, max_size=4)
    ),
    max_leaves=12,
)


def depth(value):
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 0


@given(values)
def test_every_plain_value_comes_back(value):
    if depth(value) <= cbor.MAX_DEPTH:
        assert cbor.decode(cbor.encode(value), max_bytes=4096) == value


@given(st.binary(max_size=64))
def test_any_bytes_end_in_a_value_or_a_decode_error(data):
    with contextlib.suppress(DecodeError):
        cbor.decode(data, max_bytes=64)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("820102ff", "trailing byte"),
        ("9f01ff", "indefinite array"),
        ("5f4101ff", "indefinite bytes"),
        ("a201020103", "duplicate key"),
        ("c11a00000000", "date tag"),
        ("d82361ff", "regex tag"),
        ("d823642861292b", "regex tag with a pattern"),
        ("c48200c249ffffffffffffffffff", "decimal tag"),
        ("c249ffffffffffffffffff", "big integer tag"),
        ("d81c81d81d00", "shared reference"),
        ("d9d9f701", "self-described"),
        ("d9ffff01", "unknown tag"),
        ("f7", "undefined"),
        ("e5", "simple value"),
        ("818181818181818181818100", "too deep"),
        ("5b7fffffffffffffff", "a length nobody has"),
        ("61ff", "invalid UTF-8"),
        ("a1800100", "array as a key"),
        ("a1a0010000", "map as a key"),
        ("a1f501", "a boolean as a key"),
        ("", "nothing"),
    ],
)
def test_what_is_not_strict_is_refused(data, why):
    with pytest.raises(DecodeError):
        cbor.decode(bytes.fromhex(data), max_bytes=4096)


def test_the_size_is_checked_before_anything_else():
    with pytest.raises(DecodeError, match="11 bytes where at most 10"):
        cbor.decode(b"\x4a" + bytes(10), max_bytes=10)


def test_a_value_of_a_foreign_type_is_refused_on_the_way_out():
    with pytest.raises(EncodeError):
        cbor.encode(object())


def test_it_writes_what_others_read():
    assert cbor2.loads(cbor.encode([1, {"a": b"x"}, None])) == [1, {"a": b"x"}, None]
