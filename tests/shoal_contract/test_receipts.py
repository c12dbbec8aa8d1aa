import pytest

from shoal_contract import receipts
from shoal_contract.errors import DecodeError


def test_the_name_of_a_message_never_changes():
    assert receipts.name("shoal/n/n1/t/digits", b"payload").hex() == "728d08d6d8a4a41a"


def test_topic_and_payload_make_the_name_and_their_border_counts():
    names = [receipts.name(t, p) for t, p in [("a", b"bc"), ("ab", b"c"), ("a", b"bd")]]
    assert len(set(names)) == 3
    assert all(len(name) == receipts.NAME_BYTES for name in names)


def test_joined_names_come_apart_again():
    names = [bytes([n]) * 8 for n in range(5)]
    assert list(receipts.split(b"".join(names))) == names
    assert list(receipts.split(b"")) == []


def test_half_a_name_is_an_error():
    with pytest.raises(DecodeError, match="9 bytes"):
        receipts.split(bytes(9))
