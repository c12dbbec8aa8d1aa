"""The authority's directory: made once, read with care, and a list of revoked certificates that OpenSSL takes."""

import ssl
import stat

import pytest
from cryptography import x509
from tests.support.enrolling import BoardKey, an_authority

from shoal_contract.enrolment import parse_sha256
from shoal_fleet.clock import now_ms
from shoal_fleet.errors import AuthorityError
from shoal_fleet.identity import authority as module
from shoal_fleet.identity import names
from shoal_fleet.identity.authority import Authority, Revoked, read_pin
from shoal_fleet.identity.issuing import issue_files


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_once_with_a_key_for_its_owner_alone(tmp_path):
    folder = tmp_path / "ca"
    made = an_authority(folder)
    assert mode(folder / "ca.key") == 0o600
    assert parse_sha256(made.pin) == parse_sha256(read_pin(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(AuthorityError, match="there is an authority already"):
        an_authority(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert Authority.load(folder).pin == made.pin


@pytest.mark.parametrize("lost", ["ca.key", "ca.crt"])
def test_half_an_authority_is_not_written_over(tmp_path, lost):
    an_authority(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(AuthorityError, match="already"):
        an_authority(tmp_path)
    with pytest.raises(AuthorityError, match=lost):
        Authority.load(tmp_path)


def test_an_encrypted_key_needs_its_passphrase(tmp_path):
    module.make(tmp_path, name="plant", now_ms=now_ms(), passphrase=b"correct horse")
    assert b"ENCRYPTED" in (tmp_path / "ca.key").read_bytes()
    assert Authority.load(tmp_path, passphrase=b"correct horse").pin == read_pin(tmp_path)
    with pytest.raises(AuthorityError, match="name the file of its passphrase"):
        Authority.load(tmp_path)
    with pytest.raises(AuthorityError, match="the passphrase is wrong"):
        Authority.load(tmp_path, passphrase=b"wrong")


def test_a_key_that_others_may_read_or_that_is_another_ones_is_not_used(tmp_path):
    an_authority(tmp_path / "a")
    an_authority(tmp_path / "b")
    (tmp_path / "a" / "ca.key").chmod(0o640)
    with pytest.raises(AuthorityError, match="others may read it"):
        Authority.load(tmp_path / "a")
    (tmp_path / "a" / "ca.key").chmod(0o600)
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(AuthorityError, match="does not belong"):
        Authority.load(tmp_path / "a")
    (tmp_path / "a" / "ca.crt").write_bytes(b"nonsense")
    with pytest.raises(AuthorityError, match="is no certificate"):
        Authority.load(tmp_path / "a")


def test_the_list_of_revoked_certificates_grows_and_openssl_loads_it(tmp_path):
    made = an_authority(tmp_path)
    key = BoardKey().key.public_key()
    serials = [
        made.certify(key, name="a", now_ms=now_ms(), life_s=60).serial_number for _ in range(3)
    ]
    made.write_crl([Revoked(serial, now_ms()) for serial in serials], now_ms=now_ms())
    crl = x509.load_pem_x509_crl((tmp_path / "ca.crl").read_bytes())
    assert sorted(entry.serial_number for entry in crl) == sorted(serials)
    authority = x509.load_pem_x509_certificate(made.pem)
    assert crl.is_signature_valid(authority.public_key())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_verify_locations(tmp_path / "ca.crl")
    assert context.cert_store_stats()["crl"] == 1


def test_what_is_issued_by_hand_is_a_name_that_no_node_may_have(tmp_path):
    an_authority(tmp_path / "ca")
    issued = issue_files(
        tmp_path / "ca", "broker", out=tmp_path / "out", hosts=["localhost", "127.0.0.1"],
        days=2, passphrase=None,
    )  # fmt: skip
    assert mode(tmp_path / "out" / "broker.key") == 0o600
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued["certificate"], issued["key"])
    issue_files(tmp_path / "ca", "alice", out=tmp_path, hosts=[], days=2, passphrase=None)
    issue_files(tmp_path / "ca", "alice", out=tmp_path, hosts=[], days=2, passphrase=None)
    assert names.given(tmp_path / "ca") == {"broker", "alice"}
    assert (tmp_path / "ca" / "names").read_text() == "broker\nalice\n"
