"""Boards without a token wait for a person, in a list that strangers cannot fill for ever."""

import pytest
from tests.shoal_fleet.identity.test_enrolment import refused
from tests.support.enrolling import DAY_MS, BoardKey

from shoal_contract.enrolment import sha256_text
from shoal_fleet.clock import now_ms
from shoal_fleet.errors import ConflictError, NotFoundError, RequestError
from shoal_fleet.identity import pending


async def test_a_board_waits_until_it_is_accepted_and_then_gets_its_certificate(office):
    board = BoardKey()
    answer = await office.ask(board.asks("press-4"))
    assert (answer.state, answer.retry_s) == ("pending", pending.RETRY_S)
    (row,) = await office.pending.list_all()
    assert (row["node"], row["fingerprint"]) == ("press-4", sha256_text(board.digest))
    assert (row["address"], row["state"], row["known_node"]) == ("192.0.2.1", "waiting", False)
    await office.pending.accept("press-4", None)
    # Another key under this name gets nothing from that.
    assert (await office.ask(BoardKey().asks("press-4"))).state == "pending"
    assert (await office.ask(board.asks("press-4"))).state == "issued"
    assert await office.pending.list_all() == []
    assert office.admitted == [("press-4", {})]


async def test_where_several_keys_claim_an_id_a_person_names_one(office):
    honest, thief = BoardKey(), BoardKey()
    await office.ask(thief.asks("press-4"))
    await office.ask(honest.asks("press-4"))
    with pytest.raises(ConflictError, match="2 keys claim to be press-4"):
        await office.pending.accept("press-4", None)
    with pytest.raises(RequestError, match="at least its first 16"):
        await office.pending.accept("press-4", honest.digest.hex()[:8])
    with pytest.raises(NotFoundError):
        await office.pending.accept("press-4", "0" * 64)
    await office.pending.accept("press-4", f"sha256:{honest.digest.hex()[:20].upper()}")
    assert (await office.ask(honest.asks("press-4"))).state == "issued"
    # The other claim went with it, and may wait anew like anybody else.
    assert await office.pending.list_all() == []
    assert (await office.ask(thief.asks("press-4"))).state == "pending"


async def test_to_put_another_board_in_the_place_of_a_known_one_its_key_must_be_named(office):
    await office.ask(BoardKey().asks("press-4", token=await office.token()))
    board = BoardKey()
    await office.ask(board.asks("press-4"))
    with pytest.raises(ConflictError, match="--fingerprint"):
        await office.pending.accept("press-4", None)
    await office.pending.accept("press-4", board.digest.hex())
    assert (await office.ask(board.asks("press-4"))).state == "issued"


async def test_a_rejected_board_is_told_so_until_a_person_thinks_again(office):
    board = BoardKey()
    await office.ask(board.asks("press-4"))
    await office.pending.reject("press-4", None)
    await refused(office, board.asks("press-4"), "rejected")
    await office.pending.accept("press-4", None)
    assert (await office.ask(board.asks("press-4"))).state == "issued"


async def test_a_flood_fills_neither_the_list_nor_an_id_nor_takes_all_places_from_one_address(
    office, monkeypatch
):
    monkeypatch.setattr(pending, "MAX_PENDING", 12)
    monkeypatch.setattr(pending, "MAX_OF_ADDRESS", 6)
    for n in range(6):
        await office.ask(BoardKey().asks(f"flood-{n}"))
    assert "use a token" in await refused(office, BoardKey().asks("flood-6"), "full")
    # Somebody else still gets in, and with a token everybody.
    assert (await office.ask(BoardKey().asks("honest"), address="192.0.2.2")).state == "pending"
    for _ in range(pending.MAX_OF_NODE):
        await office.ask(BoardKey().asks("popular"), address="192.0.2.3")
    await refused(office, BoardKey().asks("popular"), "full")
    await office.ask(BoardKey().asks("last"), address="192.0.2.4")
    await refused(office, BoardKey().asks("too-late"), "full")
    token = await office.token()
    assert (await office.ask(BoardKey().asks("with-token", token=token))).state == "issued"


async def test_who_does_not_ask_any_more_is_forgotten_and_makes_room(office, monkeypatch):
    monkeypatch.setattr(pending, "MAX_PENDING", 1)
    gone = BoardKey()
    await office.ask(gone.asks("gone"))
    office.at_ms += pending.EXPIRES_MS + 1
    assert (await office.ask(BoardKey().asks("here"))).state == "pending"
    assert [row["node"] for row in await office.pending.list_all()] == ["here"]


async def test_who_is_accepted_and_never_comes_is_forgotten_after_two_weeks(office):
    board = BoardKey()
    await office.ask(board.asks("press-4"))
    await office.pending.accept("press-4", None)
    office.at_ms = now_ms() + 13 * DAY_MS
    assert (await office.pending.list_all())[0]["state"] == "accepted"
    office.at_ms = now_ms() + 15 * DAY_MS
    assert (await office.ask(board.asks("press-4"))).state == "pending"
