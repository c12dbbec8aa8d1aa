"""Requests from enemies: bits turned over, pieces, noise. One kind of error, and never another key."""

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.enrolling import BoardKey

from shoal_contract.errors import DecodeError
from shoal_fleet.identity import csr

GOOD = BoardKey().csr("press-4")


def taken_for_another(data: bytes) -> bool:
    try:
        found = csr.read(data)
    except DecodeError:
        return False
    assert found.digest == csr.read(GOOD).digest
    # What is not signed, such as the count of bits that the signature does not use, says nothing.
    return content(data) != content(GOOD)


def content(data: bytes) -> bytes:
    return x509.load_der_x509_csr(data).tbs_certrequest_bytes


def test_no_request_with_one_bit_turned_over_is_taken_for_another():
    taken = [
        (position, bit)
        for position in range(len(GOOD))
        for bit in range(8)
        if taken_for_another(
            GOOD[:position] + bytes([GOOD[position] ^ 1 << bit]) + GOOD[position + 1 :]
        )
    ]
    assert taken == []


def test_no_beginning_of_one_and_none_with_more_behind_it_is_taken_for_another():
    for data in (*(GOOD[:end] for end in range(len(GOOD))), GOOD + b"\0"):
        with pytest.raises(DecodeError):
            csr.read(data)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_noise_is_refused(data):
    with pytest.raises(DecodeError):
        csr.read(data)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_noise_is_no_signature(signature, message):
    spki = csr.read(GOOD).spki
    assert not csr.has_signed(spki, signature, message)
    assert not csr.has_signed(signature, signature, message)
