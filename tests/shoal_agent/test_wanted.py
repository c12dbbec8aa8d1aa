"""Wanted states: whose count, which one holds, and that they are kept as they came."""

from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace

import pytest
from tests.shoal_agent.test_inbox import inbound, node
from tests.support.hostile_wanted import (
    HOLDER,
    MINE,
    NEWEST,
    ROOT,
    STRANGER,
    TRUE,
    Attacker,
    followed,
    signed,
    wanted,
)

from shoal_agent.journal import Journal
from shoal_agent.trust import Trust
from shoal_agent.wanted import WantedState
from shoal_broker.store import Store
from shoal_contract import messages
from shoal_contract.errors import ContractError
from shoal_contract.messages import Mandate, Policy

ALL = Mandate(HOLDER.public_key, "holder", ["*"], ["*"], may_delegate=True)


@asynccontextmanager
async def board(tmp_path, *keys):
    """The wanted state of n1 over a journal; the holder has a mandate for everything."""
    trust = Trust([key.public_key for key in keys])
    if keys:
        trust.follow({keys[0].public_key: Policy(1, 1, [ALL])})
    async with Store.open(tmp_path / "agent.db") as store:
        open_wanted = partial(trust.open_as_root, topic=MINE)
        journal = await Journal.load(store, open_wanted=open_wanted)
        state = WantedState(journal, trust, topic=MINE)
        yield SimpleNamespace(journal=journal, trust=trust, take=state.take, state=state)


async def test_what_was_signed_for_this_node_is_followed_and_kept(tmp_path):
    async with board(tmp_path, ROOT) as made:
        assert await made.journal.wanted() is None
        assert await made.take(TRUE) == wanted(NEWEST, "oven")
    async with board(tmp_path, ROOT) as made:
        assert await made.journal.wanted() == wanted(NEWEST, "oven")


@pytest.mark.parametrize(
    "tries",
    [
        pytest.param(700, id="short"),
        pytest.param(14_000, id="bench", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
async def test_nothing_that_was_not_signed_for_here_and_now_is_followed(
    tmp_path, tries, record_property
):
    async with board(tmp_path, ROOT) as made:
        await made.take(TRUE)
        counts = await followed(made.state, tries=tries)
        record_property("tries", tries)
        record_property("bad", counts.total())
        assert counts.total() == 0, counts
        assert len(counts) == 7
        assert await made.journal.wanted() == wanted(NEWEST, "oven")
        for reason in ("old", "unsigned", "unknown_key", "bad_signature", "not_a_root"):
            assert made.trust.refused[reason] >= tries // 7


async def test_the_attacks_would_move_a_board_without_keys(tmp_path):
    """The count above can fail."""
    async with board(tmp_path) as made:
        await made.take(TRUE)
        attacker = Attacker(7)
        for kind in (Attacker.replayed, Attacker.unsigned, Attacker.by_a_stranger):
            assert (await made.take(kind(attacker))).groups == ["bath"]


async def test_an_older_one_is_refused_also_after_a_restart_and_the_same_is_taken(tmp_path):
    async with board(tmp_path, ROOT) as made:
        assert await made.take(TRUE)
    async with board(tmp_path, ROOT) as made:
        assert await made.take(signed(wanted(NEWEST - 1, "bath"))) is None
        assert made.trust.refused["old"] == 1
        # A broker that lost what it retained is told the same once more.
        assert await made.take(TRUE)
        assert await made.take(signed(wanted(NEWEST + 1)))


async def test_a_second_key_of_the_configuration_goes_on_where_the_first_left_off(tmp_path):
    async with board(tmp_path, ROOT, STRANGER) as made:
        assert await made.take(TRUE)
        assert await made.take(signed(wanted(NEWEST - 1), by=STRANGER)) is None
        assert await made.take(signed(wanted(NEWEST + 1), by=STRANGER))


async def test_a_key_that_left_the_configuration_wants_nothing_any_more(tmp_path):
    async with board(tmp_path, ROOT) as made:
        assert await made.take(TRUE)
    async with board(tmp_path, STRANGER) as made:
        assert await made.journal.wanted() is None
        # Its numbers bind nobody: a thief could have signed the highest there is.
        assert await made.take(signed(wanted(1), by=STRANGER)) == wanted(1)


async def test_what_an_earlier_version_kept_unsigned_wants_nothing_once_there_are_keys(tmp_path):
    async with board(tmp_path) as made:
        assert await made.take(messages.encode(wanted(NEWEST)))
        assert await made.journal.wanted() == wanted(NEWEST)
    async with board(tmp_path, ROOT) as made:
        assert await made.journal.wanted() is None


async def test_what_is_signed_but_no_wanted_state_is_malformed(tmp_path):
    async with board(tmp_path, ROOT) as made:
        for payload in (b"", b"nonsense", messages.encode(messages.Cancel(b"12345678"))):
            with pytest.raises(ContractError):
                await made.take(ROOT.sign(payload, topic=MINE))
        assert await made.journal.wanted() is None


async def test_the_inbox_moves_nobody_to_another_group_without_a_signature(tmp_path):
    async with node(tmp_path, [ROOT.public_key]) as made:
        await made.inbox.wanted(inbound(MINE, messages.encode(wanted(5, "bath"))))
        assert not made.session._dispatcher.subscriptions
        await made.inbox.wanted(inbound(MINE, TRUE))
        assert set(made.session._dispatcher.subscriptions) == {"shoal/g/oven/c"}
        # Nor by taking the retained message away.
        await made.inbox.wanted(inbound(MINE, b""))
        assert set(made.session._dispatcher.subscriptions) == {"shoal/g/oven/c"}
        assert made.inbox.stats.malformed == 0
