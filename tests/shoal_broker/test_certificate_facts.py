"""What is read from certificates and lists of revoked ones, and what is none of either."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.certificates import Registry

from shoal_broker.bus_errors import CertificateFactsError
from shoal_broker.certificate_facts import MAX_FILE_BYTES, read_certificate, read_revoked


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def issued(registry):
    return Path(registry.certify("node-1", begins_in_s=-3600, ends_in_s=7200)[0]).read_bytes()


@pytest.fixture(scope="module")
def revoked(registry):
    registry.revoked(registry.certify("node-2")[0])
    return registry.revoked(registry.certify("node-3")[0], ends_in_s=7200)


def test_number_name_and_dates_of_a_certificate_are_those_it_was_issued_with(registry, issued):
    facts = read_certificate(b"a comment of OpenSSL\n" + issued)
    now = datetime.now(UTC)
    assert facts.common_name == "node-1"
    assert timedelta(0) < now - timedelta(seconds=3600) - facts.begins < timedelta(seconds=60)
    assert timedelta(0) < now + timedelta(seconds=7200) - facts.ends < timedelta(seconds=60)
    assert f"{facts.number:X}" in (registry.folder / "index.txt").read_text()


def test_every_revoked_number_and_the_end_of_the_list_are_read(registry, revoked):
    found = read_revoked(revoked)
    in_index = {
        int(line.split("\t")[3], 16)
        for line in (registry.folder / "index.txt").read_text().splitlines()
        if line.startswith("R")
    }
    assert len(in_index) >= 2
    assert found.numbers == in_index
    assert found.ends is not None
    assert found.ends - datetime.now(UTC) < timedelta(seconds=7200)


def test_a_list_without_an_entry_and_several_lists_in_one_file(tmp_path, revoked):
    nobody = Registry(tmp_path / "other").revoked(ends_in_s=600)
    assert read_revoked(nobody).numbers == frozenset()
    together = read_revoked(nobody + revoked)
    assert together.numbers == read_revoked(revoked).numbers
    assert together.ends == read_revoked(nobody).ends, "the first to end"


def test_a_file_with_other_things_in_it_is_read_past_them(registry, issued, revoked):
    key = (registry.folder / "ca.key").read_bytes()
    assert read_certificate(key + issued).common_name == "node-1"
    assert read_revoked(issued + revoked) == read_revoked(revoked)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "holds no"),
        (b"\0" * 100, "holds no"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n", "ends in the middle"),
        (b"-----BEGIN X509 CRL-----\n?\n-----END X509 CRL-----\n", "no base64"),
        (b"-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n", "cut off"),
        (b" " * (MAX_FILE_BYTES + 1), "larger than"),
    ],
)
def test_what_is_no_list_is_one_error(content, why):
    with pytest.raises(CertificateFactsError, match=why):
        read_revoked(content)


def test_a_list_that_was_cut_anywhere_is_an_error(revoked):
    end = revoked.index(b"-----END X509 CRL-----")
    for cut in range(0, end, 7):
        with pytest.raises(CertificateFactsError):
            read_revoked(revoked[:cut])


def test_damaged_bytes_are_an_error_of_this_kind_or_are_read(issued, revoked):
    chance = random.Random(7)  # noqa: S311 - the same every time
    for content, read in ((issued, read_certificate), (revoked, read_revoked)):
        outcomes = set()
        for _ in range(3_000):
            damaged = bytearray(content)
            for _ in range(chance.randint(1, 4)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            try:
                read(bytes(damaged))
                outcomes.add("read")
            except CertificateFactsError:
                outcomes.add("refused")
        assert outcomes == {"read", "refused"}
