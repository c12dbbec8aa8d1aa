"""From the files of a configuration to a context: what is good, and one clear error for what is not."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from tests.shoal_broker.render.rendered_mosquitto import Authority
from tests.support.tls_listener import client_files

from shoal_broker.bus_errors import BrokerNotTrustedError, IdentityRefusedError, TlsFilesError
from shoal_broker.tls import TlsFiles, client_context, configured
from shoal_broker.tls_failures import IDENTITY_ALERTS, alert_in, explain

FILES = TlsFiles(ca_file="/ca.crt", cert_file="/me.crt", key_file="/me.key")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def keys(**given: str) -> dict[str, str | None]:
    return dict.fromkeys(("ca_file", "cert_file", "key_file", "server_name")) | given


def test_a_context_speaks_tls_1_3_only_and_verifies_certificate_and_name(authority):
    made = client_context(client_files(authority))
    assert made.minimum_version == ssl.TLSVersion.TLSv1_3
    assert made.verify_mode == ssl.CERT_REQUIRED
    assert made.check_hostname


def test_a_client_certificate_is_optional(authority):
    assert client_context(client_files(authority, cert_file=None, key_file=None))


def test_certificate_and_key_may_stand_in_one_file(authority, tmp_path):
    files = client_files(authority)
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(Path(f).read_bytes() for f in (files.cert_file, files.key_file)))
    assert client_context(client_files(authority, cert_file=str(both), key_file=str(both)))


@pytest.mark.parametrize("key", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b""), "in PEM form"),
        (lambda path: path.write_bytes(b"\xff\0 no PEM \n"), "in PEM form"),
        (lambda path: path.write_text(path.read_text()[:120]), "in PEM form"),
        (lambda path: path.write_text(path.read_text().replace("\nM", "\nA")), "in PEM form"),
    ],
    ids=["missing", "folder", "empty", "garbage", "cut", "damaged"],
)
def test_a_file_that_cannot_be_used_is_named_with_its_key(authority, tmp_path, key, spoil, problem):
    path = tmp_path / key
    shutil.copy(getattr(client_files(authority), key), path)
    spoil(path)
    with pytest.raises(TlsFilesError) as raised:
        client_context(client_files(authority, **{key: str(path)}))
    assert (raised.value.key, raised.value.path) == (key, str(path))
    assert str(raised.value).startswith(f"{key} {path} ")
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_path_that_is_none_is_one_error(authority):
    with pytest.raises(TlsFilesError, match="ca_file a\0b cannot be read"):
        client_context(client_files(authority, ca_file="a\0b"))


def test_a_key_of_another_certificate_is_told_from_a_damaged_one(authority):
    other = client_files(authority, "other")
    with pytest.raises(TlsFilesError, match=r"key_file \S+other.key does not belong to cert_file"):
        client_context(client_files(authority, key_file=other.key_file))


def test_an_encrypted_key_is_refused_and_no_password_is_asked_for(authority, tmp_path):
    path = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", client_files(authority).key_file, "-aes256", "-passout",
         "pass:secret", "-out", path],
        check=True, timeout=20, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    with pytest.raises(TlsFilesError, match=r"key_file \S+locked.key is encrypted"):
        client_context(client_files(authority, key_file=str(path)))


def test_without_ca_file_there_is_no_tls():
    assert configured(**keys()) is None
    assert configured(**keys(ca_file="/ca.crt")) == TlsFiles(ca_file="/ca.crt")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"cert_file": "c", "key_file": "k"}, "cert_file needs ca_file"),
        ({"server_name": "b"}, "server_name needs ca_file"),
        ({"ca_file": "a", "cert_file": "c"}, "cert_file needs key_file"),
        ({"ca_file": "a", "key_file": "k"}, "key_file needs cert_file"),
        ({"ca_file": "a", "server_name": ""}, "is no name"),
    ],
)
def test_keys_that_need_each_other_are_told(given, told):
    with pytest.raises(TlsFilesError, match=told):
        configured(**keys(**given))


@pytest.mark.parametrize("alert", IDENTITY_ALERTS)
def test_every_alert_about_our_certificate_is_a_refused_identity(alert):
    # As OpenSSL 3.0 words it, with and without the mnemonic that Python may not know.
    error = ssl.SSLError(1, f"[SSL] tlsv13 alert {alert} (_ssl.c:2580)")
    assert alert_in(error) == alert
    told = explain(error, FILES)
    assert isinstance(told, IdentityRefusedError)
    assert told.alert == alert
    assert str(told).startswith(f"the broker refuses our certificate: {alert} (/me.crt: ")
    error.reason = f"SSLV3_ALERT_{alert.upper().replace(' ', '_')}"
    assert explain(error, FILES).alert == alert


def test_an_alert_about_something_else_is_no_refused_identity():
    told = explain(ssl.SSLError(1, "[SSL] sslv3 alert handshake failure (_ssl.c:1)"), FILES)
    assert not isinstance(told, IdentityRefusedError | BrokerNotTrustedError)
    assert str(told) == "the broker ended TLS: handshake failure"


def test_a_wrong_clock_is_asked_about():
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = 9, "certificate is not yet valid"
    told = explain(error, FILES)
    assert isinstance(told, BrokerNotTrustedError)
    assert "clock" in str(told)
