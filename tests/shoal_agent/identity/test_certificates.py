"""What a board takes for its certificate: of its authority, for its key, in its name, and nothing damaged."""

import base64

import pytest
from tests.support.enrolling import an_authority

from shoal_agent.errors import IdentityError
from shoal_agent.identity import certificates
from shoal_fleet.clock import now_ms


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return an_authority(tmp_path_factory.mktemp("ca"))


def issued(authority, key, name="press-4"):
    certificate = authority.certify(
        key.public_key(), name=name, hosts=[name], now_ms=now_ms(), life_s=600
    )
    return certificates.pem_of(certificate)


def check(authority, pem, key, node="press-4"):
    return certificates.check_issued(
        certificates.read_certificate(pem),
        authority=certificates.read_certificate(authority.pem),
        key=key,
        node=node,
    )


def test_its_facts_are_those_of_the_certificate(authority):
    key = certificates.make_key()
    facts = check(authority, issued(authority, key), key)
    assert (facts.node, facts.key) == ("press-4", certificates.digest_of(key).hex())
    assert abs(facts.not_after_ms - now_ms() - 600_000) < 10_000
    assert 599_000 < facts.not_after_ms - facts.not_before_ms <= 661_000


def test_another_authority_key_or_name_is_refused(authority, tmp_path):
    key, other = certificates.make_key(), certificates.make_key()
    pem = issued(authority, key)
    for changed in (
        {"authority": an_authority(tmp_path)},
        {"key": other},
        {"node": "press-5"},
        {"pem": authority.pem},
    ):
        with pytest.raises(IdentityError):
            check(**{"authority": authority, "pem": pem, "key": key} | changed)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_no_certificate_with_one_bit_of_its_content_turned_over_is_taken(authority):
    key = certificates.make_key()
    good = issued(authority, key)
    original = certificates.read_certificate(good)
    der = original.public_bytes(certificates.serialization.Encoding.DER)
    taken = []
    for position in range(len(der)):
        for bit in range(8):
            broken = bytearray(der)
            broken[position] ^= 1 << bit
            pem = pem_text(bytes(broken))
            try:
                check(authority, pem, key)
            except IdentityError:
                continue
            # What is not signed, such as the count of bits that the signature does not use, says nothing.
            found = certificates.read_certificate(pem)
            if found.tbs_certificate_bytes != original.tbs_certificate_bytes:
                taken.append((position, bit))
    assert taken == []


def pem_text(der: bytes) -> bytes:
    text = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("pem", [b"", b"\0" * 100, b"x" * 20_000, b"-----BEGIN CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_one_kind_of_error(pem):
    with pytest.raises(IdentityError):
        certificates.read_certificate(pem)


@pytest.mark.parametrize("pem", [b"", b"\0" * 100, b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_damaged_key_is_one_kind_of_error(pem):
    with pytest.raises(IdentityError):
        certificates.read_key(pem)
