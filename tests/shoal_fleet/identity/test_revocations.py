"""A revoked node is out at once: in the book, in the list, at the broker, and in what is wanted of it."""

import pytest
from cryptography import x509
from tests.support.enrolling import DAY_MS, BoardKey, certificate_of

from shoal_fleet.errors import AuthorityError, NotFoundError, RequestError
from shoal_fleet.identity.authority import Authority


def listed(office):
    crl = x509.load_pem_x509_crl((office.authority.folder / "ca.crl").read_bytes())
    return {entry.serial_number for entry in crl}


async def test_every_certificate_of_the_node_gets_into_the_list_and_its_connection_ends(office):
    first, second, other = BoardKey(), BoardKey(), BoardKey()
    a = await office.ask(first.asks("press-4", token=await office.token()))
    b = await office.ask(second.asks("press-4", known=first))
    await office.ask(other.asks("press-5", token=await office.token()))
    found = await office.revocations.revoke("press-4", "stolen from the van")
    assert (found["certificates"], found["reason"]) == (2, "stolen from the van")
    assert listed(office) == {certificate_of(x.certificate).serial_number for x in (a, b)}
    assert (office.disconnected, office.forsaken) == (["press-4"], ["press-4"])
    assert office.inventory.is_revoked("press-4")
    assert not office.inventory.is_revoked("press-5")


async def test_a_second_time_changes_the_reason_alone(office):
    await office.ask(BoardKey().asks("press-4", token=await office.token()))
    before = await office.revocations.revoke("press-4", "lost")
    after = await office.revocations.revoke("press-4", "stolen")
    assert (before["certificates"], after["certificates"]) == (1, 0)
    assert len(listed(office)) == 1


async def test_a_node_without_a_certificate_of_ours_can_be_revoked_but_no_stranger(office):
    await office.revocations.revoke("inherited", "")
    assert office.inventory.is_revoked("inherited")
    with pytest.raises(NotFoundError):
        await office.revocations.revoke("stranger", "")
    with pytest.raises(RequestError):
        await office.revocations.revoke("../etc", "")
    with pytest.raises(RequestError):
        await office.revocations.revoke("inherited", "x" * 201)


async def test_tokens_for_the_node_and_its_place_in_the_list_of_who_waits_go_with_it(office):
    token = await office.token("inherited")
    board = BoardKey()
    await office.ask(board.asks("inherited"))
    await office.pending.accept("inherited", None)
    await office.revocations.revoke("inherited", "")
    assert await office.pending.list_all() == []
    (listed_token,) = await office.tokens.list_all()
    assert listed_token["state"] == "revoked"
    assert token not in str(listed_token)


async def test_a_disk_that_does_not_take_the_list_is_said_and_the_rest_is_done(office, monkeypatch):
    await office.ask(BoardKey().asks("press-4", token=await office.token()))

    def full(self, revoked, *, now_ms):
        raise AuthorityError("ca.crl: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Authority, "write_crl", full)
        with pytest.raises(AuthorityError):
            await office.revocations.revoke("press-4", "")
    assert (office.disconnected, office.forsaken) == (["press-4"], ["press-4"])
    assert office.inventory.is_revoked("press-4")
    assert office.revocations._due.is_set()
    await office.revocations.write_list()
    assert len(listed(office)) == 1


async def test_old_certificates_are_forgotten_but_not_that_their_node_is_known(office):
    board, other = BoardKey(), BoardKey()
    await office.ask(board.asks("press-4", token=await office.token()))
    await office.ask(other.asks("press-5", token=await office.token()))
    office.at_ms += 20 * DAY_MS
    newer = BoardKey()
    await office.ask(newer.asks("press-4", known=board))
    await office.inventory.prune(office.at_ms + 60 * DAY_MS)
    async with office.database.read() as session:
        assert await office.inventory.issued_since(session, "press-4", 0) == 2
    await office.inventory.prune(office.at_ms + 101 * DAY_MS)
    async with office.database.read() as session:
        assert await office.inventory.with_key(session, "press-4", board.digest) is None
        assert await office.inventory.with_key(session, "press-4", newer.digest) is not None
        # Its only one, however old.
        assert await office.inventory.is_known(session, "press-5")
