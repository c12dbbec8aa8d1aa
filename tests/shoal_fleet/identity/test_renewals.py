"""A known key speaks for its node: in time, after a long sleep, and no longer once it is old or revoked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.shoal_fleet.identity.test_enrolment import refused
from tests.support.enrolling import DAY_MS, BoardKey, certificate_of

from shoal_fleet.identity.enrolment import TOO_OFTEN
from shoal_fleet.identity.renewals import verdict


async def enrolled(office, node="press-4"):
    board = BoardKey()
    await office.ask(board.asks(node, token=await office.token()))
    return board


async def test_a_certificate_in_force_earns_one_for_a_new_key(office):
    old, new = await enrolled(office), BoardKey()
    office.at_ms += 10 * DAY_MS
    office.groups["press-4"] = ("oslo",)
    answer = await office.ask(new.asks("press-4", known=old))
    assert certificate_of(answer.certificate).public_key() == new.key.public_key()
    assert office.inventory.newest["press-4"].how == "renewed"
    assert office.inventory.newest["press-4"].key == new.digest


async def test_the_old_key_counts_until_the_new_one_has_proved_itself(office):
    first, second, third = await enrolled(office), BoardKey(), BoardKey()
    office.at_ms += 10 * DAY_MS
    await office.ask(second.asks("press-4", known=first))
    # The board lost the answer and its new key with it: the old key asks again.
    office.at_ms += 1000
    await office.ask(third.asks("press-4", known=first))
    office.at_ms += 10 * DAY_MS
    fourth = BoardKey()
    await office.ask(fourth.asks("press-4", known=third))
    # Now a copy of the board with the first key is found out: it waits for a person like a stranger.
    assert (await office.ask(BoardKey().asks("press-4", known=first))).state == "pending"


async def test_a_board_that_slept_past_its_certificate_comes_back_with_its_known_key(office):
    old = await enrolled(office)
    office.at_ms += (30 + 89) * DAY_MS
    answer = await office.ask(BoardKey().asks("press-4", known=old))
    assert answer.state == "issued"
    assert office.inventory.newest["press-4"].how == "lapsed"


async def test_after_ninety_days_it_takes_a_token_or_a_person(office):
    old = await enrolled(office)
    office.at_ms += (30 + 91) * DAY_MS
    new = BoardKey()
    assert (await office.ask(new.asks("press-4", known=old))).state == "pending"
    token = await office.token("press-4", ttl_s=1e6)
    assert (await office.ask(new.asks("press-4", known=old, token=token))).state == "issued"


async def test_a_signature_by_another_key_or_for_another_request_does_not_count(office):
    mine, stranger = await enrolled(office), BoardKey()
    forged = BoardKey().asks("press-4", known=stranger)
    assert (await office.ask(forged)).state == "pending"
    good = BoardKey().asks("press-4", known=mine)
    for field, value in (
        ("csr", BoardKey().csr("press-4")),
        ("signature", b""),
        ("signature", good.signature[:-1]),
        ("known_key", stranger.digest),
    ):
        changed = type(good)(
            **{name: getattr(good, name) for name in good.__struct_fields__} | {field: value}
        )
        office.at_ms += DAY_MS * 2
        assert (await office.ask(changed)).state == "pending", field
    assert office.inventory.newest["press-4"].key == mine.digest


async def test_a_key_does_not_speak_for_another_node(office):
    mine = await enrolled(office, "press-4")
    await enrolled(office, "press-5")
    assert (await office.ask(BoardKey().asks("press-5", known=mine))).state == "pending"


async def test_a_revoked_node_gets_nothing_whatever_it_shows(office):
    mine = await enrolled(office)
    await office.revocations.revoke("press-4", "")
    await refused(office, BoardKey().asks("press-4", known=mine), "revoked")
    await refused(office, mine.asks("press-4"), "revoked")
    await refused(office, BoardKey().asks("press-4"), "revoked")
    await refused(office, BoardKey().asks("press-4", token=await office.token()), "taken")
    token = await office.token("press-4")
    assert (await office.ask(BoardKey().asks("press-4", token=token))).state == "issued"
    assert not office.inventory.is_revoked("press-4")
    # Its old key stays out.
    await refused(office, BoardKey().asks("press-4", known=mine), "revoked")


async def test_a_board_that_renews_without_end_is_slowed_down(office):
    known = await enrolled(office)
    for _ in range(TOO_OFTEN - 1):
        office.at_ms += 1000
        await office.ask(BoardKey().asks("press-4", known=known))
    office.at_ms += 1000
    await refused(office, BoardKey().asks("press-4", known=known), "too_often")
    office.at_ms += DAY_MS
    assert (await office.ask(BoardKey().asks("press-4", known=known))).state == "issued"


class Row:
    def __init__(self, not_after_ms, retired_ms=None, revoked_ms=None) -> None:
        self.not_after_ms, self.retired_ms, self.revoked_ms = not_after_ms, retired_ms, revoked_ms


@given(st.integers(0, 1 << 42), st.integers(0, 1 << 42))
def test_a_key_counts_from_its_issue_to_ninety_days_after_its_end(now_ms, end_ms):
    assert verdict(Row(end_ms), now_ms=now_ms) in {"", "lapsed"}
    assert (verdict(Row(end_ms), now_ms=now_ms) == "lapsed") == (now_ms > end_ms + 90 * DAY_MS)


@pytest.mark.parametrize(
    ("row", "why"),
    [(None, "unknown"), (Row(1, retired_ms=1), "retired"), (Row(1, retired_ms=1, revoked_ms=1), "revoked")],
)  # fmt: skip
def test_unknown_retired_and_revoked_keys_never_do(row, why):
    assert verdict(row, now_ms=0) == why
