"""A rollout that is read from the database is the one that was written, at every moment."""

import random

import msgspec

from shoal_fleet.database import Database
from shoal_fleet.rollout import step
from shoal_fleet.rollout_roster import Roster
from shoal_fleet.rollout_rows import add_members, load_roster, save, state_of
from shoal_fleet.rollout_state import (
    Approval,
    Approve,
    Event,
    Fails,
    Freeze,
    Frozen,
    Joined,
    Member,
    Options,
    Pause,
    Prepared,
    Ready,
    Resume,
    Rollout,
    Serves,
    Status,
    Tick,
)
from shoal_fleet.tables import FleetBase, ReleaseRow, RolloutRow

NODES = [f"n{index}" for index in range(40)]
MOMENTS = 250


def any_event(draw: random.Random, roster: Roster, status: Status) -> Event:
    node = draw.choice(NODES)
    answering = list(roster.offered()) or [node]
    return draw.choice(
        [
            Prepared(),
            Prepared(),
            Ready(frozenset(draw.sample(NODES, 20))),
            Ready(frozenset(draw.sample(NODES, 20))),
            *(Serves(draw.choice(answering)) for _ in range(8)),
            Fails(node, "x") if draw.random() < 0.1 else Tick(),
            Tick(),
            Joined(((f"late-{draw.randrange(9)}", "rpi5"),)),
            Pause("a while", by="anna"),
            *(Resume(by="bert") for _ in range(4)),
            Approve("bert") if status is Status.AWAITING else Tick(),
            Frozen(Freeze(reason="night", until_ms=draw.randrange(10_000_000))),
            Frozen(None),
        ]
    )


async def test_a_restart_at_any_moment_finds_the_rollout_as_it_was_and_goes_on_alike(tmp_path):
    draw = random.Random(20261130)  # noqa: S311 - a course that can be repeated
    options = Options(
        first_wave=4, window="01:00-05:00", approval=Approval.CANARY, overdue_s=3600.0
    )
    state = Rollout(options=options, by="anna")
    roster = Roster((name, Member(kind="rpi4")) for name in NODES)
    seen = set()
    async with Database.open(tmp_path / "fleet.db", FleetBase) as database:
        async with database.write() as session:
            session.add(
                ReleaseRow(
                    id=b"r", name="m", version="1.0.0", description="", manifest=b"",
                    model_file=b"m", size_bytes=1, quality={}, added_ms=0,
                )
            )  # fmt: skip
            await session.flush()
            row = RolloutRow(
                release=b"r", group="", status="preparing", state=msgspec.json.encode(state),
                created_ms=0, updated_ms=0,
            )  # fmt: skip
            session.add(row)
            await session.flush()
            await add_members(session, row.id, roster)
        now_ms = 0
        for _ in range(MOMENTS):
            now_ms += draw.randrange(60_000)
            event = any_event(draw, roster, state.status)
            async with database.read() as session:
                stored = await session.get(RolloutRow, row.id)
                assert stored is not None
                read, again = state_of(stored), await load_roster(session, row.id)
            assert read == state
            assert list(again.members.items()) == list(roster.members.items())
            outcome = step(state, roster, event, now_ms)
            repeated = step(read, again, event, now_ms)
            assert repeated.rollout == outcome.rollout
            assert repeated.changes == outcome.changes
            assert repeated.actions == outcome.actions
            if not outcome.is_empty or outcome.rollout != state:
                async with database.write() as session:
                    await save(session, row.id, outcome, roster, at_ms=now_ms)
                state = outcome.rollout
                roster.put(outcome.changes)
            seen.add(state.status)
    assert seen >= {Status.PREPARING, Status.RUNNING, Status.PAUSED, Status.AWAITING}
    assert state.wave >= 2
