"""Key files: sealed, never written over, and nothing secret readable in them."""

import json

import pytest

from shoal_contract import envelope
from shoal_fleet.errors import UsageError
from shoal_fleet.trust import keys

PASSPHRASE = b"correct horse battery"


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(keys, "COST", (1, 8192))


def test_a_sealed_key_signs_with_its_passphrase(tmp_path):
    path = tmp_path / "a.key"
    public = keys.make(path, PASSPHRASE)
    signer = keys.open_signer(path, PASSPHRASE)
    assert signer.public_key == keys.tuf_key(public)
    signer.public_key.verify_signature(signer.sign(b"data"), b"data")
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.is_sealed(path)


def test_nothing_of_the_seed_is_readable_in_a_sealed_file(tmp_path):
    path = tmp_path / "a.key"
    keys.make(path, PASSPHRASE)
    facts = json.loads(path.read_bytes())
    assert set(facts) == {"format", "public", "salt", "cost", "sealed"}


@pytest.mark.parametrize("wrong", [None, b"", b"correct horse batterz", PASSPHRASE + b" "])
def test_another_passphrase_does_not_open_it(tmp_path, wrong):
    path = tmp_path / "a.key"
    keys.make(path, PASSPHRASE)
    with pytest.raises(UsageError):
        keys.open_signer(path, wrong)


def test_a_short_passphrase_is_refused(tmp_path):
    with pytest.raises(UsageError, match="at least 8"):
        keys.make(tmp_path / "a.key", b"short")


def test_a_key_is_never_written_over(tmp_path):
    path = tmp_path / "a.key"
    keys.make(path, None)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="never written over"):
        keys.make(path, None)
    assert path.read_bytes() == before


def test_the_public_half_is_read_from_a_file_or_a_text(tmp_path):
    path = tmp_path / "a.key"
    public = keys.make(path, PASSPHRASE)
    assert keys.public_half(str(path)) == public
    assert keys.public_half(envelope.key_text(public)) == public
    with pytest.raises(UsageError, match="neither"):
        keys.public_half("no such thing")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"cost": [1, 1 << 40]},
        {"cost": [1000, 8192]},
        {"cost": "x"},
        {"sealed": "zz"},
        {"sealed": "00"},
        {"salt": ""},
        {"public": "AAAA"},
    ],
)
def test_a_file_that_was_changed_is_refused_in_a_line(tmp_path, change):
    path = tmp_path / "a.key"
    keys.make(path, PASSPHRASE)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    with pytest.raises(UsageError):
        keys.open_signer(path, PASSPHRASE)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{}", b"x" * 10000])
def test_what_is_no_key_file_is_refused(tmp_path, content):
    path = tmp_path / "a.key"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        keys.open_signer(path, PASSPHRASE)
