import asyncio
import math

import msgspec
import pytest

from shoal_contract.errors import ContractError
from shoal_contract.messages import Reading
from shoal_fleet import inbox
from shoal_fleet.database import Database
from shoal_fleet.errors import StateError
from shoal_fleet.readings import SWEEP_EVERY, Readings, gaps
from shoal_fleet.tables import ReadingsBase


def reading(seq, *, device="meter", boot=1, by="n0"):
    return Reading(device, boot, seq, "7", 0.9, b"r" * 32, by, 5, 100)


@pytest.fixture
async def readings(tmp_path):
    async with Database.open(tmp_path / "r.db", ReadingsBase) as database:
        yield Readings(database, kept=2 * SWEEP_EVERY)


async def test_a_reading_that_comes_twice_counts_once(readings):
    for seq in (1, 2, 2, 1):
        await readings.add("n0", reading(seq))
    summary = await readings.summary()
    assert summary["total"] == 2
    assert (readings.stats.stored, readings.stats.duplicates) == (2, 2)


async def test_the_same_number_after_a_reboot_is_another_reading(readings):
    await readings.add("n0", reading(1, boot=1))
    await readings.add("n0", reading(1, boot=2))
    assert (await readings.summary())["total"] == 2


async def test_missing_numbers_are_counted_whatever_the_order_of_arrival(readings):
    for seq in (7, 1, 9, 3, 2, 6):
        await readings.add("n0", reading(seq, by="n3" if seq == 9 else "n0"))
    summary = await readings.summary()
    (row,) = summary["devices"]
    assert (row["min"], row["max"], row["count"], row["missing"]) == (1, 9, 6, 3)
    assert row["missing_ranges"] == [(4, 5), (8, 8)]
    assert summary["by_node"] == {"n0": 5, "n3": 1}


async def test_only_the_newest_readings_are_kept(readings):
    for seq in range(3 * SWEEP_EVERY):
        await readings.add("n0", reading(seq))
    (row,) = (await readings.summary())["devices"]
    assert row["min"] == SWEEP_EVERY
    assert row["missing"] == 0


async def test_pages_follow_each_other_without_a_gap(readings):
    for seq in range(10):
        await readings.add("n0", reading(seq))
        await readings.add("n1", reading(seq))
    first = await readings.page(node="n1", device=None, after=0, limit=6)
    second = await readings.page(node="n1", device=None, after=first[-1]["id"], limit=6)
    assert [row["seq"] for row in first + second] == list(range(10))


def test_gaps_lie_between_numbers_only():
    assert gaps([]) == gaps([5]) == gaps([5, 6]) == []
    assert gaps([0, 2, 7]) == [(1, 1), (3, 6)]


async def test_readings_arrive_over_the_bus(site):
    nodes = await site.nodes(2)
    for seq in range(20):
        for node in nodes:
            await node.read(seq)
    await site.until(lambda: site.controller.readings.stats.stored == 40)
    summary = (await site.api.get("/api/readings/summary")).json()
    assert (summary["total"], summary["missing"]) == (40, 0)
    page = (await site.api.get("/api/readings", params={"node": "n1", "limit": 3})).json()
    assert [row["seq"] for row in page] == [0, 1, 2]


async def test_a_reading_that_the_disk_does_not_take_comes_again(site, monkeypatch):
    (node,) = await site.nodes(1)
    readings, refusals = site.controller.readings, 2
    add = readings.add

    async def full_for_a_moment(name, reading):
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise StateError("the disk is full")
        await add(name, reading)

    monkeypatch.setattr(inbox, "RETRY_S", 0)
    monkeypatch.setattr(readings, "add", full_for_a_moment)
    for seq in range(5):
        await node.read(seq)
    await site.until(lambda: readings.stats.stored == 5)
    assert refusals == 0
    assert (await site.api.get("/api/readings/summary")).json()["missing"] == 0


async def test_readings_that_come_together_share_a_commit_and_each_is_told_when_it_is_safe(
    readings, monkeypatch
):
    commits = []
    append = readings._database.append

    async def counted(statement, rows):
        commits.append(len(rows))
        return await append(statement, rows)

    monkeypatch.setattr(readings._database, "append", counted)
    same = [reading(seq) for seq in range(50)]
    await asyncio.gather(*(readings.add("n1", one) for one in [*same, *same]))
    assert sum(commits) == 100
    assert len(commits) <= 3
    assert (readings.stats.stored, readings.stats.duplicates) == (50, 50)


async def test_a_commit_that_fails_is_told_to_everybody_who_shared_it(readings, monkeypatch):
    async def full(_statement, _rows):
        raise StateError("the disk is full")

    monkeypatch.setattr(readings._database, "append", full)
    told = await asyncio.gather(
        *(readings.add("n1", reading(seq)) for seq in range(5)), return_exceptions=True
    )
    assert [str(one) for one in told] == ["the disk is full"] * 5
    monkeypatch.undo()
    await readings.add("n1", reading(0))
    assert readings.stats.stored == 1


@pytest.mark.parametrize(
    "poison",
    [{"confidence": math.nan}, {"seq": 1 << 63}, {"boot": -(1 << 63) - 1}, {"latency_us": 1 << 64}],
)
async def test_a_reading_that_no_row_can_hold_is_refused_and_spoils_no_other(readings, poison):
    bad = msgspec.structs.replace(reading(3), **poison)
    told = await asyncio.gather(
        readings.add("n1", reading(1)),
        readings.add("n1", bad),
        readings.add("n1", reading(2)),
        return_exceptions=True,
    )
    assert told[0] is None
    assert told[2] is None
    assert isinstance(told[1], ContractError)
    assert readings.stats.stored == 2
