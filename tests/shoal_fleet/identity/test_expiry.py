"""A certificate that nobody renews is an alarm, once when it is late and once when it is over."""

import structlog.testing
from tests.support.enrolling import DAY_MS, BoardKey

from shoal_fleet.identity.expiry import Expiry


async def test_it_is_said_once_when_a_third_is_left_and_once_when_it_has_run_out(office):
    board = BoardKey()
    await office.ask(board.asks("press-4", token=await office.token()))
    told = []
    expiry = Expiry(
        office.inventory,
        tell=lambda event, node, **facts: told.append((event, node)),
        clock_ms=lambda: office.at_ms,
    )
    office.at_ms += 19 * DAY_MS
    expiry.look()
    assert (told, expiry.soon) == ([], set())
    with structlog.testing.capture_logs() as logs:
        office.at_ms += 2 * DAY_MS
        expiry.look()
        expiry.look()
        assert told == [("certificate expires soon", "press-4")]
        assert (expiry.soon, expiry.over) == ({"press-4"}, set())
        office.at_ms += 10 * DAY_MS
        expiry.look()
        expiry.look()
    assert told[1:] == [("certificate has expired", "press-4")]
    assert [entry["log_level"] for entry in logs] == ["error", "error"]
    await office.ask(BoardKey().asks("press-4", known=board))
    expiry.look()
    assert (expiry.soon, expiry.over) == (set(), set())


async def test_a_revoked_node_is_no_alarm(office):
    await office.ask(BoardKey().asks("press-4", token=await office.token()))
    await office.revocations.revoke("press-4", "")
    expiry = Expiry(
        office.inventory, tell=lambda *_, **__: None, clock_ms=lambda: office.at_ms + 40 * DAY_MS
    )
    expiry.look()
    assert expiry.soon == set()
