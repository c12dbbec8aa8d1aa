"""Who gets a certificate, what stands in it, and who does not."""

import asyncio

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.support.enrolling import DAY_MS, BoardKey, certificate_of

from shoal_contract.enrolment import EnrolRequest
from shoal_contract.errors import DecodeError, TopicError
from shoal_fleet.errors import EnrolmentRefusedError
from shoal_fleet.identity.inventory import Inventory


async def refused(office, request, why):
    with pytest.raises(EnrolmentRefusedError) as found:
        await office.ask(request)
    assert found.value.why == why, found.value
    return str(found.value)


def names_in(certificate):
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        certificate.subject.rfc4514_string(),
        san.get_values_for_type(x509.DNSName),
        san.get_values_for_type(x509.UniformResourceIdentifier),
    )


async def test_a_token_earns_a_certificate_of_thirty_days_for_that_id_and_key(office):
    board = BoardKey()
    answer = await office.ask(board.asks("press-4", token=await office.token(group="oslo")))
    certificate = certificate_of(answer.certificate)
    assert names_in(certificate) == (
        "CN=press-4", ["press-4"], ["shoal:node:press-4", "shoal:group:oslo"],
    )  # fmt: skip
    assert certificate.public_key() == board.key.public_key()
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    authority = certificate_of(answer.ca)
    certificate.verify_directly_issued_by(authority)
    ends_ms = certificate.not_valid_after_utc.timestamp() * 1000
    assert abs(ends_ms - office.at_ms - 30 * DAY_MS) < 2000
    assert office.admitted == [("press-4", {"group": "oslo"})]


async def test_every_name_in_the_request_is_ignored(office):
    board = BoardKey()
    csr = board.csr(
        "shoal-controller",
        x509.SubjectAlternativeName(
            [x509.DNSName("broker.example.net"), x509.UniformResourceIdentifier("shoal:group:all")]
        ),
        x509.BasicConstraints(ca=True, path_length=3),
    )
    answer = await office.ask(EnrolRequest(node="press-4", csr=csr, token=await office.token()))
    certificate = certificate_of(answer.certificate)
    assert names_in(certificate) == ("CN=press-4", ["press-4"], ["shoal:node:press-4"])
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca


async def test_of_fifty_boards_with_one_token_one_wins(office, record_property):
    token = await office.token()
    answers = await asyncio.gather(
        *(office.ask(BoardKey().asks(f"board-{n}", token=token)) for n in range(50)),
        return_exceptions=True,
    )
    won = [answer for answer in answers if not isinstance(answer, BaseException)]
    lost = [answer for answer in answers if isinstance(answer, EnrolmentRefusedError)]
    record_property("tries", len(answers))
    record_property("bad", abs(len(won) - 1))
    assert (len(won), len(lost)) == (1, 49)
    assert {str(error) for error in lost} == {"the token was used already"}
    assert len(office.inventory.newest) == 1


async def test_a_token_is_good_once(office, record_property):
    token = await office.token()
    assert (await office.ask(BoardKey().asks("a", token=token))).state == "issued"
    assert "used already" in await refused(office, BoardKey().asks("b", token=token), "token")
    # Nor for the same id with another key.
    await refused(office, BoardKey().asks("a", token=token), "token")
    record_property("tries", 3)
    record_property("bad", len(office.inventory.newest) - 1)


async def test_who_lost_the_answer_asks_again_with_the_same_key_and_gets_the_same_certificate(
    office,
):
    board, token = BoardKey(), await office.token()
    first = await office.ask(board.asks("a", token=token))
    office.at_ms += DAY_MS
    assert (await office.ask(board.asks("a", token=token))).certificate == first.certificate
    assert (await office.ask(board.asks("a"))).certificate == first.certificate
    assert sum(office.enrolment.stats.issued.values()) == 1


async def test_a_token_that_has_expired_was_revoked_or_is_none_is_refused(office, record_property):
    token = await office.token(ttl_s=60)
    office.at_ms += 61_000
    assert "expired" in await refused(office, BoardKey().asks("a", token=token), "token")
    (made,) = await office.tokens.create(node=None, labels={}, ttl_s=1e6, count=1)
    await office.tokens.revoke(made["id"])
    text = await refused(office, BoardKey().asks("a", token=made["token"]), "token")
    assert "revoked" in text
    assert "not known" in await refused(office, BoardKey().asks("a", token="A" * 43), "token")
    assert "no token" in await refused(office, BoardKey().asks("a", token="../etc"), "token")
    record_property("tries", 4)
    record_property("bad", len(office.inventory.newest))
    assert office.inventory.newest == {}


async def test_a_token_for_one_id_admits_no_other_and_is_not_used_up_by_the_attempt(office):
    token = await office.token("press-4")
    text = await refused(office, BoardKey().asks("press-5", token=token), "token")
    assert text == "the token is for another node than press-5"
    assert (await office.ask(BoardKey().asks("press-4", token=token))).state == "issued"


async def test_a_token_for_any_node_takes_no_identity_that_exists_and_stays_good(office):
    await office.ask(BoardKey().asks("press-4", token=await office.token()))
    token = await office.token()
    await refused(office, BoardKey().asks("press-4", token=token), "taken")
    assert (await office.ask(BoardKey().asks("press-5", token=token))).state == "issued"


async def test_a_token_for_an_id_that_exists_replaces_the_board_and_revokes_the_old_key(office):
    old, new = BoardKey(), BoardKey()
    first = await office.ask(old.asks("press-4", token=await office.token()))
    await office.ask(new.asks("press-4", token=await office.token("press-4")))
    await refused(office, BoardKey().asks("press-4", known=old), "revoked")
    crl = x509.load_pem_x509_crl((office.authority.folder / "ca.crl").read_bytes())
    serial = certificate_of(first.certificate).serial_number
    assert [entry.serial_number for entry in crl] == [serial]


async def test_reserved_names_are_no_nodes_and_what_is_no_id_is_none(office):
    token = await office.token()
    await refused(office, BoardKey().asks("shoal-controller", token=token), "reserved")
    for bad in ("", "A", "a/b", "x" * 64, "-a"):
        with pytest.raises(TopicError):
            await office.ask(EnrolRequest(node=bad, csr=BoardKey().csr("a"), token=token))


def signed(key, algorithm):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
    return request.public_bytes(serialization.Encoding.DER)


async def test_a_request_that_is_none_or_not_of_p256_or_signed_by_another_key_is_refused(office):
    token = await office.token()
    good = BoardKey().csr("a")
    broken = bytearray(good)
    broken[-1] ^= 1
    other = BoardKey()
    theirs = other.key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    mine = BoardKey()
    own = mine.key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for csr in (
        b"",
        b"\x30\x80",
        good[:-5],
        bytes(broken),
        mine.csr("a").replace(own, theirs),
        signed(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
        signed(rsa.generate_private_key(65537, 2048), hashes.SHA256()),
        signed(ed25519.Ed25519PrivateKey.generate(), None),
        b"\0" * 3000,
    ):
        with pytest.raises(DecodeError):
            await office.ask(EnrolRequest(node="a", csr=csr, token=token))
    assert office.inventory.newest == {}
    assert (await office.ask(EnrolRequest(node="a", csr=good, token=token))).state == "issued"


async def test_labels_that_a_kill_kept_from_a_node_are_given_at_the_next_start(office):
    async def die(node, labels):
        raise RuntimeError

    office.enrolment._admit = die
    with pytest.raises(RuntimeError):
        await office.ask(BoardKey().asks("a", token=await office.token(group="oslo")))
    office.enrolment._admit = office._admit
    await office.enrolment.recover()
    await office.enrolment.recover()
    assert office.admitted == [("a", {"group": "oslo"})]


async def test_the_inventory_is_there_again_after_a_restart(office):
    board = BoardKey()
    await office.ask(board.asks("a", token=await office.token()))
    await office.ask(BoardKey().asks("b", token=await office.token()))
    await office.revocations.revoke("b", "stolen")
    again = await Inventory.load(office.database)
    assert again.newest == office.inventory.newest
    assert again.is_revoked("b")
    assert not again.is_revoked("a")
    assert again.view("b")["reason"] == "stolen"
